//! The compiled kernels.

/// A module with all kernels, for `cuModuleLoadData`.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Compute capability, 10 times the major number plus the minor one.
    pub architecture: u32,
    /// Whether it is PTX, which the driver compiles (text that ends with a zero), or machine code.
    pub ptx: bool,
    /// The module.
    pub bytes: &'static [u8],
}

/// Machine code for each architecture, oldest first, and PTX for GPUs that are newer than all of them.
pub static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The compiler's version, and registers, bytes of stack, bytes spilled and bytes of static shared memory of every kernel on every architecture.
pub const REGISTERS: &str = include_str!(concat!(env!("OUT_DIR"), "/registers.txt"));

/// The image for a GPU of this compute capability: the newest machine code of the same major number, or PTX where there is
/// none; `None` for a GPU that is too old.
pub fn image_for(major: u32, minor: u32) -> Option<&'static Image> {
    let capability = 10 * major + minor;
    let runs = |i: &&Image| i.architecture <= capability && (i.ptx || i.architecture / 10 == major);
    IMAGES.iter().filter(runs).max_by_key(|i| (!i.ptx, i.architecture))
}
