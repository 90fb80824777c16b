//! A GPU beside the CPU: what goes into its memory, and what it computes.
//!
//! The pure part, which every build has, says what is wanted ([`Settings`]), divides a GPU's memory ([`Room`]), and decides for each
//! expert of a request where it is computed ([`Tier`], [`Costs`]). The rest talks to a device through `driver::Driver` and is there
//! with the feature `cuda` (a real one) or `cuda-shim` (one that runs the same kernels on the CPU, for tests).

mod cost;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "gpu")]
mod device;
#[cfg(feature = "gpu")]
pub mod driver;
#[cfg(feature = "cuda-shim")]
pub mod fake;
#[cfg(feature = "gpu")]
pub(crate) mod form;
#[cfg(feature = "gpu")]
mod graph;
#[cfg(feature = "gpu")]
pub(crate) mod memory;
#[cfg(feature = "gpu")]
pub(crate) mod ops;
mod room;
mod settings;
mod tier;

pub use cost::Costs;
#[cfg(feature = "gpu")]
pub(crate) use device::Device;
#[cfg(feature = "gpu")]
pub(crate) use graph::Graph;
pub use room::{Needs, Room};
pub use settings::{Choice, Settings};
pub use tier::{Tier, Way};

/// The GPUs that this build could use, for people: number, name, compute capability and memory.
///
/// # Errors
/// Why there is none, for people.
pub fn found() -> Result<Vec<String>, String> {
    #[cfg(feature = "gpu")]
    {
        let devices = Settings::default().driver()?.devices();
        let devices = devices.map_err(|fault| format!("{}: {}", fault.call, fault.reason))?;
        let describe = |device: driver::Info| {
            let ((major, minor), gb) = (device.compute, device.total as f64 / 1e9);
            format!("{}: {}, compute capability {major}.{minor}, {gb:.1} GB", device.number, device.name)
        };
        Ok(devices.into_iter().map(describe).collect())
    }
    #[cfg(not(feature = "gpu"))]
    Err("this build has no CUDA".into())
}
