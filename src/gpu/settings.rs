//! What the caller wants of a GPU.

use std::str::FromStr;

use crate::machine::budget::Limit;

/// Which GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first suitable one, or none.
    #[default]
    Auto,
    /// None.
    Off,
    /// This one, as the system counts them from 0; that it cannot be used is an error.
    Device(usize),
}

impl Choice {
    /// The name of the command line.
    pub fn name(self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Off => "off".into(),
            Self::Device(n) => n.to_string(),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            n if n.len() <= 3 && n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty() => {
                n.parse().map(Self::Device).map_err(|_| "give the number of a GPU".into())
            }
            _ => Err(format!("{text:?} is no GPU; give auto, off or its number")),
        }
    }
}

/// How to use a GPU.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Which one.
    pub choice: Choice,
    /// Its memory to use at most; by default what is free, less a reserve.
    pub memory: Option<Limit>,
    /// A driver in place of the machine's, for tests.
    #[cfg(feature = "gpu")]
    #[doc(hidden)]
    pub driver: Option<std::sync::Arc<dyn super::driver::Driver>>,
    /// In place of what is measured, for tests.
    #[cfg(feature = "gpu")]
    #[doc(hidden)]
    pub costs: Option<super::Costs>,
}

#[cfg(feature = "gpu")]
impl Settings {
    /// The machine's driver, or why there is none, for people. A build for tests has an emulated GPU, which is used when it is asked for by its number.
    pub(crate) fn driver(&self) -> Result<std::sync::Arc<dyn super::driver::Driver>, String> {
        if let Some(driver) = &self.driver {
            return Ok(driver.clone());
        }
        #[cfg(feature = "cuda")]
        return Ok(std::sync::Arc::new(super::cuda::Cuda::new()?));
        #[cfg(all(feature = "cuda-shim", not(feature = "cuda")))]
        if let Choice::Device(_) = self.choice {
            return Ok(std::sync::Arc::new(super::fake::Fake::new(1 << 30, super::fake::Schedule::Early)));
        }
        #[cfg(not(feature = "cuda"))]
        Err("this build has no CUDA".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        for choice in [Choice::Auto, Choice::Off, Choice::Device(0), Choice::Device(12)] {
            assert_eq!(choice.name().parse(), Ok(choice));
        }
        for wrong in ["", "-1", "on", "1.5", "99999999999999999999", "+1"] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }
}
