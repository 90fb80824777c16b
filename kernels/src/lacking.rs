//! Why this CPU does not run kernels that the program has.

use crate::available;

/// Names of features, each with whether this CPU has it.
macro_rules! detect {
    ($detected:ident: $($feature:tt),*) => { vec![$(($feature, std::arch::$detected!($feature))),*] };
}

/// Kernels of this architecture, the fastest first, each with the instructions that it needs.
fn needs() -> Vec<(&'static str, Vec<(&'static str, bool)>)> {
    vec![
        #[cfg(target_arch = "x86_64")]
        ("avx512", detect!(is_x86_feature_detected: "avx2", "f16c", "avx512f", "avx512bw", "avx512vnni")),
        #[cfg(target_arch = "x86_64")]
        ("avx_vnni", detect!(is_x86_feature_detected: "avx2", "f16c", "avxvnni")),
        #[cfg(target_arch = "x86_64")]
        ("avx512_256", detect!(is_x86_feature_detected: "avx2", "f16c", "avx512f", "avx512vl", "avx512vnni")),
        #[cfg(target_arch = "x86_64")]
        ("avx2", detect!(is_x86_feature_detected: "avx2", "f16c")),
        #[cfg(target_arch = "aarch64")]
        ("neon_i8mm", detect!(is_aarch64_feature_detected: "neon", "dotprod", "i8mm")),
        #[cfg(target_arch = "aarch64")]
        ("neon_dotprod", detect!(is_aarch64_feature_detected: "neon", "dotprod")),
        #[cfg(target_arch = "aarch64")]
        ("neon", detect!(is_aarch64_feature_detected: "neon")),
    ]
}

/// Kernels of this architecture that this CPU does not run, the fastest first, each with the instructions that are missing. They may be those that a virtual machine
/// hides, or an old operating system.
pub fn lacking() -> Vec<(&'static str, Vec<&'static str>)> {
    let missing = |features: Vec<(&'static str, bool)>| {
        features.into_iter().filter(|(_, here)| !here).map(|(name, _)| name).collect()
    };
    let all = needs().into_iter().map(|(name, features)| (name, missing(features)));
    all.filter(|(name, _)| available().all(|kernels| kernels.name != *name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels run where nothing is missing, and nowhere else.
    #[test]
    fn what_does_not_run_lacks_something() {
        let lacking = lacking();
        assert!(lacking.iter().all(|(_, missing)| !missing.is_empty()), "{lacking:?}");
        for (name, features) in needs() {
            let here = features.iter().all(|(_, here)| *here);
            assert_eq!(here, available().any(|kernels| kernels.name == name), "{name}: {features:?}");
        }
        let known = |name| name == "scalar" || needs().iter().any(|(known, _)| *known == name);
        assert!(available().all(|kernels| known(kernels.name)), "one is in no list");
    }
}
