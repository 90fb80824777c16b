//! The emulator as Rust functions.

use std::{
    ffi::{CStr, c_char, c_void},
    sync::{Mutex, PoisonError},
};

/// A kernel as the C++ side lists it; the list ends with a null name.
#[repr(C)]
struct Kernel {
    name: *const c_char,
    kinds: *const c_char,
    call: Option<extern "C" fn(*const c_char)>,
}

#[allow(non_upper_case_globals)]
unsafe extern "C" {
    static shim_kernels_700: Kernel;
    static shim_kernels_750: Kernel;
    static shim_kernels_800: Kernel;
    static shim_kernels_faults: Kernel;
    fn shim_launch(
        kernel: *const Kernel,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        args: *mut *mut c_void,
    ) -> *const c_char;
    fn shim_register(begin: usize, size: usize);
    fn shim_unregister(begin: usize);
}

/// Whose code is run: they differ in how matrices of bytes are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// sm_70: `dp4a`.
    Volta,
    /// sm_75: tensor cores of 8 rows.
    Turing,
    /// sm_80 and later: tensor cores of 16 rows.
    Ampere,
    /// No kernels of ours, but some that do wrong, for tests of the emulator.
    Faults,
}

/// The emulator has one block's state: one launch at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// Makes `len` bytes from `begin` on device memory, which kernels may access.
pub fn register(begin: *const c_void, len: usize) {
    let _one = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: only notes the numbers down, under the lock.
    unsafe { shim_register(begin as usize, len) }
}

/// Takes it back.
pub fn unregister(begin: *const c_void) {
    let _one = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: only forgets the numbers, under the lock.
    unsafe { shim_unregister(begin as usize) }
}

/// Runs a kernel as [`Architecture::Ampere`] would, to its end.
///
/// # Errors
/// For a kernel or a number of arguments that do not exist, and for what the kernel must not do: an access outside the registered memory, a
/// misaligned one, a race in shared memory, a barrier that not all threads reach. The text names the kernel, the block, the thread and the address.
///
/// # Safety
/// `args[i]` points to parameter `i`, 8 bytes for a pointer and 4 for a number. What is registered is memory that nothing else uses meanwhile.
pub unsafe fn launch(
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: &mut [*mut c_void],
) -> Result<(), String> {
    // SAFETY: the caller's promise is the same.
    unsafe { launch_on(Architecture::Ampere, kernel, grid, block, shared, args) }
}

/// [`launch`] for another architecture.
///
/// # Errors
/// As [`launch`].
///
/// # Safety
/// As [`launch`].
pub unsafe fn launch_on(
    architecture: Architecture,
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: &mut [*mut c_void],
) -> Result<(), String> {
    let _one = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let found = find(architecture, kernel).ok_or_else(|| format!("there is no kernel {kernel}"))?;
    // SAFETY: the strings of the list are constants.
    let kinds = unsafe { CStr::from_ptr(found.kinds) }.count_bytes();
    if kinds != args.len() {
        return Err(format!("{kernel} takes {kinds} arguments, and not {}", args.len()));
    }
    // SAFETY: the lock is held; there are as many arguments as the kernel has, and the caller vouches for them.
    let problem = unsafe { shim_launch(found, grid.as_ptr(), block.as_ptr(), shared, args.as_mut_ptr()) };
    if problem.is_null() {
        return Ok(());
    }
    // SAFETY: a text that stays until the next launch, which the lock keeps away.
    Err(unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned())
}

fn find(architecture: Architecture, name: &str) -> Option<&'static Kernel> {
    let mut kernel: *const Kernel = match architecture {
        Architecture::Volta => &raw const shim_kernels_700,
        Architecture::Turing => &raw const shim_kernels_750,
        Architecture::Ampere => &raw const shim_kernels_800,
        Architecture::Faults => &raw const shim_kernels_faults,
    };
    loop {
        // SAFETY: the list is constant and ends with a null name, behind which this loop does not go.
        let entry = unsafe { &*kernel };
        if entry.name.is_null() {
            return None;
        }
        // SAFETY: the names of the list are constants.
        if unsafe { CStr::from_ptr(entry.name) }.to_bytes() == name.as_bytes() {
            return Some(entry);
        }
        // SAFETY: not yet at the end.
        kernel = unsafe { kernel.add(1) };
    }
}
