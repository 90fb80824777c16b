//! ggml's CPU backend with threads of its own, and weights as it would hold them.

mod graph;

use std::{
    ffi::CStr,
    ptr::{self, NonNull},
};

use ggml_sys::*;
pub use graph::{Layer, Products};
use yuan_kernels::DType;

use crate::init::{init, type_of};

/// Where weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// As in the file.
    Plain,
    /// Rearranged at load for ggml's fastest kernels.
    Repacked,
}

/// ggml's CPU backend.
#[derive(Debug)]
pub struct Rival {
    backend: NonNull<ggml_backend>,
    pool: NonNull<ggml_threadpool>,
}

impl Rival {
    /// A backend with a pool of `threads`, the caller's thread among them.
    ///
    /// # Panics
    /// Where ggml has no such backend.
    pub fn new(threads: usize) -> Self {
        init();
        // SAFETY: the parameters are a value that ggml fills and reads; the pool outlives the backend (see `drop`).
        unsafe {
            let mut parameters = ggml_threadpool_params_default(threads as i32);
            let pool = NonNull::new(ggml_threadpool_new(&raw mut parameters)).expect("ggml's threads");
            let backend = NonNull::new(ggml_backend_cpu_init()).expect("ggml's CPU backend");
            ggml_backend_cpu_set_n_threads(backend.as_ptr(), threads as i32);
            ggml_backend_cpu_set_threadpool(backend.as_ptr(), pool.as_ptr());
            Self { backend, pool }
        }
    }

    /// Lets the threads sleep until the next graph: after one they otherwise spin for a while, at the cost of others.
    pub fn rest(&self) {
        // SAFETY: the pool is alive, and no graph runs: only `&mut` graphs that borrow this backend could run one, on this
        // thread, since neither they nor this value are `Sync`.
        unsafe { ggml_threadpool_pause(self.pool.as_ptr()) }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // SAFETY: both were made by `new` and are freed once, the user before the used.
        unsafe {
            ggml_backend_free(self.backend.as_ptr());
            ggml_threadpool_free(self.pool.as_ptr());
        }
    }
}

/// Tensors' descriptions, without their data.
#[derive(Debug)]
struct Context(pub NonNull<ggml_context>);

impl Context {
    /// Room for `tensors` and a graph of them.
    fn new(tensors: usize) -> Self {
        // SAFETY: `ggml_init` copies the parameters, and allocates the memory itself where it is given none.
        unsafe {
            let mem_size = tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(tensors, false);
            let parameters = ggml_init_params { mem_size, mem_buffer: ptr::null_mut(), no_alloc: true };
            Self(NonNull::new(ggml_init(parameters)).expect("a context of ggml"))
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { ggml_free(self.0.as_ptr()) }
    }
}

/// The memory of a context's tensors.
#[derive(Debug)]
struct Memory(NonNull<ggml_backend_buffer>);

impl Memory {
    /// Memory of this kind for all tensors of `context` that have none yet.
    fn of(context: &Context, kind: ggml_backend_buffer_type_t) -> Self {
        // SAFETY: `context` is alive, and `kind` is one of ggml's, which live as long as the process.
        let buffer = unsafe { ggml_backend_alloc_ctx_tensors_from_buft(context.0.as_ptr(), kind) };
        Self(NonNull::new(buffer).expect("memory for the tensors"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `of`, freed once.
        unsafe { ggml_backend_buffer_free(self.0.as_ptr()) }
    }
}

/// ggml's kind of memory for repacked weights, where this CPU has one.
fn repacked() -> Option<ggml_backend_buffer_type_t> {
    // SAFETY: the CPU backend has one device, and its function of this name has the declared type (ggml-backend.h). It
    // returns a list that ends with null and lives as long as the process.
    unsafe {
        let registry = ggml_backend_cpu_reg();
        let name = c"ggml_backend_dev_get_extra_bufts";
        let function = ggml_backend_reg_get_proc_address(registry, name.as_ptr());
        if function.is_null() {
            return None;
        }
        let extra: ggml_backend_dev_get_extra_bufts_t = std::mem::transmute(function);
        let mut kind = extra?(ggml_backend_reg_dev_get(registry, 0));
        while !(*kind).is_null() {
            if CStr::from_ptr(ggml_backend_buft_name(*kind)) == c"CPU_REPACK" {
                return Some(*kind);
            }
            kind = kind.add(1);
        }
        None
    }
}

/// Tensors of weights of one shape and type.
#[derive(Debug)]
pub struct Weights {
    tensors: Vec<NonNull<ggml_tensor>>,
    columns: usize,
    rows: usize,
    /// Matrices in one tensor.
    depth: usize,
    bytes: usize,
    // Memory goes before the context that describes it.
    _memory: Memory,
    _context: Context,
}

impl Weights {
    /// `count` tensors of `depth` matrices [rows, columns], or `None` where ggml has no repacked form of them.
    ///
    /// # Panics
    /// Where rows are no whole blocks, or memory does not suffice.
    pub fn new(
        buffer: Buffer,
        dtype: DType,
        [depth, rows, columns]: [usize; 3],
        count: usize,
    ) -> Option<Self> {
        init();
        let kind = match buffer {
            // SAFETY: a plain function.
            Buffer::Plain => unsafe { ggml_backend_cpu_buffer_type() },
            Buffer::Repacked => repacked()?,
        };
        let bytes = depth * rows * dtype.row_bytes(columns).expect("whole blocks");
        let context = Context::new(count);
        let tensor = |_| {
            let (t, [columns, rows, depth]) = (type_of(dtype), [columns, rows, depth].map(|n| n as i64));
            // SAFETY: `context` has room for `count` tensors.
            let tensor = unsafe {
                match depth {
                    1 => ggml_new_tensor_2d(context.0.as_ptr(), t, columns, rows),
                    _ => ggml_new_tensor_3d(context.0.as_ptr(), t, columns, rows, depth),
                }
            };
            NonNull::new(tensor).expect("a tensor")
        };
        let tensors: Vec<_> = (0..count).map(tensor).collect();
        let memory = Memory::of(&context, kind);
        // ggml notes with every tensor how it is repacked, or nothing.
        // SAFETY: the tensors live in `context`.
        let known = tensors.iter().all(|t| unsafe { !t.as_ref().extra.is_null() });
        (buffer == Buffer::Plain || known).then_some(Self {
            tensors,
            columns,
            rows,
            depth,
            bytes,
            _memory: memory,
            _context: context,
        })
    }

    /// Fills tensor `i` with the bytes of its rows.
    ///
    /// # Panics
    /// Where there is no such tensor, or `bytes` is not its size.
    pub fn set(&mut self, i: usize, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes, "bytes of the tensor");
        // SAFETY: the tensor has memory for exactly so many bytes (asserted above).
        unsafe { ggml_backend_tensor_set(self.tensors[i].as_ptr(), bytes.as_ptr().cast(), 0, bytes.len()) }
    }

    /// Number of tensors.
    pub fn count(&self) -> usize {
        self.tensors.len()
    }
}
