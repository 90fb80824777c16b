//! Device memory of the emulator, arguments of kernels, and numbers that are the same on every run.
#![allow(dead_code)]

use std::{ffi::c_void, marker::PhantomData};

use bytemuck::Pod;
use half::f16;
use yuan_cuda::{Launch, launch::ROW};
use yuan_cuda_shim::{Architecture, launch_on, register, unregister};
use yuan_kernels::{Kernels, PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K, PanelQ8_0, panel::ActivationBlock};

/// All that have kernels of ours.
pub const ARCHITECTURES: [Architecture; 3] =
    [Architecture::Volta, Architecture::Turing, Architecture::Ampere];

/// The definition of every operation.
pub fn scalar() -> &'static Kernels {
    yuan_kernels::by_name("scalar").expect("it is always there")
}

/// `T`s in registered memory, aligned as device memory is, and with nothing behind them that kernels may touch.
pub struct Buffer<T> {
    words: *mut [u128],
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub fn of(data: &[T]) -> Self {
        let bytes = size_of_val(data);
        let words = Box::into_raw(vec![0u128; bytes.div_ceil(16)].into_boxed_slice());
        // SAFETY: fresh memory of at least `bytes` bytes.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), words.cast(), data.len()) };
        register(words.cast::<c_void>(), bytes);
        Self { words, len: data.len(), of: PhantomData }
    }

    pub fn zeroed(len: usize) -> Self {
        Self::of(&vec![T::zeroed(); len])
    }

    /// Filled with something that no result is.
    pub fn fresh(len: usize) -> Self {
        let mut data = vec![T::zeroed(); len];
        bytemuck::cast_slice_mut::<T, u8>(&mut data).fill(0xA5);
        Self::of(&data)
    }

    pub fn get(&self) -> &[T] {
        // SAFETY: `len` values, which only a launch writes, and a launch has ended when it returns.
        unsafe { std::slice::from_raw_parts(self.words.cast(), self.len) }
    }

    pub fn address(&self) -> u64 {
        self.words.cast::<u8>() as u64
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        unregister(self.words.cast::<c_void>());
        // SAFETY: it came from a box.
        drop(unsafe { Box::from_raw(self.words) });
    }
}

/// A parameter's 8 bytes.
pub trait Arg {
    fn slot(&self) -> u64;
}
impl<T: Pod> Arg for Buffer<T> {
    fn slot(&self) -> u64 {
        self.address()
    }
}
impl Arg for usize {
    fn slot(&self) -> u64 {
        u64::from(u32::try_from(*self).expect("an i32"))
    }
}
impl Arg for f32 {
    fn slot(&self) -> u64 {
        self.to_bits().into()
    }
}
/// A null pointer.
pub struct Null;
impl Arg for Null {
    fn slot(&self) -> u64 {
        0
    }
}

/// Runs a kernel.
pub fn run_on(architecture: Architecture, launch: Option<Launch>, args: &[&dyn Arg]) -> Result<(), String> {
    let Launch { kernel, grid, block, shared } = launch.expect("a launch");
    let mut slots: Vec<u64> = args.iter().map(|a| a.slot()).collect();
    let mut pointers: Vec<*mut c_void> = slots.iter_mut().map(|s| std::ptr::from_mut(s).cast()).collect();
    // SAFETY: each argument has 8 bytes, and buffers are registered memory that outlives the launch.
    unsafe { launch_on(architecture, kernel, grid, block, shared, &mut pointers) }
}

/// Runs a kernel that does no wrong.
pub fn run(launch: Option<Launch>, args: &[&dyn Arg]) {
    run_on(Architecture::Ampere, launch, args).unwrap_or_else(|e| panic!("{e}"));
}

/// Numbers that only depend on the seed.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// -1 to 1.
    pub fn float(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    fn bytes<T: Pod>(&mut self) -> T {
        let mut value = T::zeroed();
        bytemuck::bytes_of_mut(&mut value).fill_with(|| (self.0.wrapping_mul(31) >> 17, self.bits()).1 as u8);
        value
    }

    pub fn q4_k(&mut self) -> PanelQ4K {
        let scale = |r: &mut Self| [(); 16].map(|()| f16::from_f32(r.float() / 64.0));
        PanelQ4K { d: scale(self), dmin: scale(self), ..self.bytes() }
    }

    pub fn q4_0(&mut self) -> PanelQ4_0 {
        PanelQ4_0 {
            d: [(); 8].map(|()| [(); 16].map(|()| f16::from_f32(self.float() / 8.0))),
            ..self.bytes()
        }
    }

    pub fn q3_k(&mut self) -> PanelQ3K {
        PanelQ3K { d: [(); 16].map(|()| f16::from_f32(self.float() / 64.0)), ..self.bytes() }
    }

    pub fn q6_k(&mut self) -> PanelQ6K {
        PanelQ6K { d: [(); 16].map(|()| f16::from_f32(self.float() / 1024.0)), ..self.bytes() }
    }

    pub fn q8_0(&mut self) -> PanelQ8_0 {
        PanelQ8_0 {
            d: [(); 8].map(|()| [(); 16].map(|()| f16::from_f32(self.float() / 127.0))),
            ..self.bytes()
        }
    }

    /// Rows of `width` quantized blocks.
    pub fn activations<X: ActivationBlock>(&mut self, rows: usize, width: usize) -> Vec<X> {
        let mut blocks = vec![X::zeroed(); rows * width];
        let floats = self.floats(256 * rows * width);
        X::quantize(scalar(), &floats, &mut blocks);
        blocks
    }
}

/// Where the rows of sequences stand of which each has some positions and then some tokens.
pub fn rows(sequences: &[(usize, usize)]) -> Vec<[i32; ROW]> {
    let of = |(number, (start, tokens)): (usize, &(usize, usize))| {
        let start = *start;
        (0..*tokens).map(move |t| [(start + t) as i32, number as i32, i32::from(t == 0), -1])
    };
    sequences.iter().enumerate().flat_map(of).collect()
}

/// Equal bit for bit.
#[track_caller]
pub fn assert_same(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert_eq!(f.to_bits(), w.to_bits(), "{what}: number {i} is {f} and should be {w}");
    }
}
