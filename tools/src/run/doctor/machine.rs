//! The machine: its CPU and kernels, its memory, its GPU, and what this process may take of it.

use std::{env, path::Path, thread::available_parallelism};

use serde_json::json;
use yuan::{
    gpu,
    machine::{
        budget::Budget,
        facts::{self, Limits},
    },
    model::threads::usable_cores,
};
use yuan_tools::console::size;

use super::finding::Finding;

/// Memory below which no published model runs well.
const SMALL: u64 = 4 << 30;
/// Files and connections that a server with some clients wants.
const OPEN_FILES: u64 = 1024;
/// The oldest driver of NVIDIA's that CUDA 12 runs on.
const DRIVER: u64 = 525;

/// The program.
pub fn program() -> Finding {
    let system = format!("{}-{}", env::consts::ARCH, env::consts::OS);
    let path = env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
    let says = format!("yuan {} for {system}: {path}", yuan::VERSION);
    let facts = json!({ "version": yuan::VERSION, "system": system, "program": path, "arithmetic": yuan::ARITHMETIC });
    if cfg!(debug_assertions) {
        let remedy =
            "for speed, build it with `cargo install --path tools` or take one of the published archives";
        return Finding::note("program", format!("{says}; a debug build, which is slow"), remedy).with(facts);
    }
    Finding::ok("program", says).with(facts)
}

/// The CPU.
pub fn cpu() -> Finding {
    let name = facts::cpu_name();
    let processors = available_parallelism().map_or(1, usize::from);
    let cores = usable_cores();
    let called = name.clone().unwrap_or_else(|| format!("a CPU of {}", env::consts::ARCH));
    let says =
        format!("{called}; {cores} cores compute, of {processors} processors that this process may use");
    Finding::ok("cpu", says).with(json!({ "name": name, "cores": cores, "processors": processors }))
}

/// Which kernels there are, which are used, and what others would need.
pub fn kernels() -> Vec<Finding> {
    let (here, lacking) = (yuan::kernel_names(), yuan::lacking_kernels());
    let named = env::var("YUAN_KERNELS").ok();
    let known = named.as_deref().is_none_or(|name| here.contains(&name));
    let used = named.as_deref().filter(|_| known).unwrap_or(here[0]);
    let because = if named.is_some() && known { ", as YUAN_KERNELS says" } else { "" };
    let facts = json!({
        "used": used, "here": here, "named": named,
        "lacking": lacking.iter().map(|(name, missing)| json!({ "name": name, "missing": missing })).collect::<Vec<_>>(),
    });
    let says = format!("{used}{because} (here: {})", here.join(", "));
    let mut findings = Vec::new();
    findings.push(if !known {
        let named = named.as_deref().unwrap_or_default();
        let says = format!("YUAN_KERNELS={named:?} does not run on this machine: no model opens");
        Finding::wrong("kernels", says, format!("unset it, or choose from {}", here.join(", ")))
    } else if here.len() == 1 {
        let remedy = "on a virtual machine pass the host's CPU through (QEMU: -cpu host); otherwise models run on this CPU, but slowly";
        Finding::note("kernels", format!("{says}, the slowest"), remedy)
    } else if used != here[0] {
        Finding::note("kernels", says, format!("unset YUAN_KERNELS to use {}, the fastest", here[0]))
    } else {
        Finding::ok("kernels", says)
    });
    findings[0].facts = facts;
    // Those that are slower than what is used are nobody's loss.
    let faster: Vec<_> = lacking.iter().take_while(|(name, _)| better(name, used)).collect();
    if !faster.is_empty() {
        let each = faster.iter().map(|(name, missing)| format!("{name} needs {}", missing.join(", ")));
        let says = format!(
            "faster kernels that this CPU, or its virtual machine, has no instructions for: {}",
            each.collect::<Vec<_>>().join("; ")
        );
        findings.push(Finding::ok("kernels", says));
    }
    findings
}

/// Kernels, the fastest first.
const ORDER: [&str; 8] =
    ["avx512", "avx_vnni", "avx512_256", "avx2", "neon_i8mm", "neon_dotprod", "neon", "scalar"];

fn better(name: &str, than: &str) -> bool {
    let place = |name: &str| ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len());
    place(name) < place(than)
}

/// What models may take of the memory.
pub fn memory(budget: &Budget) -> Finding {
    let memory = facts::memory();
    let facts = json!({
        "total": memory.map(|m| m.total), "available": memory.map(|m| m.available), "swapped": memory.map(|m| m.swapped),
        "budget": budget.bytes, "budget_is": budget.set_by, "huge_pages": facts::huge_pages(),
    });
    let Some(there) = memory else {
        let says = format!(
            "this system does not say how much memory is free; {} are taken to be",
            size(budget.bytes)
        );
        return Finding::note("memory", says, "say with --memory how much models may take").with(facts);
    };
    let pages = facts::huge_pages().map_or_else(String::new, |when| format!("; huge pages: {when}"));
    let says = format!(
        "{} for models, {}; the machine has {}, of which {} are free{pages}",
        size(budget.bytes),
        if budget.set_by.starts_with("are ") {
            format!("which {}", budget.set_by)
        } else {
            format!("by {}", budget.set_by)
        },
        size(there.total),
        size(there.available)
    );
    let finding = if budget.set_by.contains("limit") {
        let remedy = "if that is too little, raise the limit of the container or of the service (docker run --memory, systemd's MemoryMax)";
        Finding::note("memory", says, remedy)
    } else if budget.bytes < SMALL {
        let remedy = "close other programs; models larger than that are streamed from the drive, which `yuan plan --geometry m32` tells more of";
        Finding::note("memory", says, remedy)
    } else if there.swapped > there.available / 2 && there.swapped > 1 << 30 {
        let says = format!("{says}; {} of programs are swapped out", size(there.swapped));
        Finding::note(
            "memory",
            says,
            "other programs want more memory than there is: close some, or give models less (--memory)",
        )
    } else {
        Finding::ok("memory", says)
    };
    finding.with(facts)
}

/// Whether there are addresses for `wanted` bytes; nothing where there are.
pub fn addresses(limits: &Limits, wanted: u64) -> Option<Finding> {
    let left = limits.addresses_left().filter(|left| *left < wanted)?;
    let says = format!(
        "this process may have {} of addresses (RLIMIT_AS), and {} are left: a model is mapped, so it needs as many as its file has bytes, and 1 GB beside",
        size(limits.address_space.unwrap_or(0)),
        size(left)
    );
    let remedy = "`ulimit -v unlimited` before the program starts, or LimitAS=infinity of its service; --memory bounds what is really used";
    Some(
        Finding::wrong("addresses", says, remedy)
            .with(json!({ "limit": limits.address_space, "left": left })),
    )
}

/// What else is limited.
pub fn limits(limits: &Limits) -> Vec<Finding> {
    let shown = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |n| n.to_string());
    let facts = json!({ "address_space": limits.address_space, "open_files": limits.open_files, "processes": limits.processes });
    let says = format!(
        "open files {}, threads and processes {}, addresses {}",
        shown(limits.open_files),
        shown(limits.processes),
        limits.address_space.map_or_else(|| "no limit".to_owned(), size)
    );
    let few = limits.open_files.is_some_and(|n| n < OPEN_FILES);
    // Nothing is locked into memory, so the limit of that does not matter.
    let finding = if few {
        Finding::note(
            "limits",
            says,
            format!(
                "`yuan serve` needs one file for each client: `ulimit -n {OPEN_FILES}`, or LimitNOFILE of its service"
            ),
        )
    } else {
        Finding::ok("limits", says)
    };
    vec![finding.with(facts)]
}

/// The GPU.
pub fn gpu() -> Finding {
    let (driver, found) = (facts::nvidia_driver(), gpu::found());
    let device = ["/dev/nvidiactl", "/dev/dxg"].iter().any(|path| Path::new(path).exists());
    let built = cfg!(feature = "cuda");
    let facts = json!({ "cuda_build": built, "driver": driver, "device": device, "gpus": found.as_ref().ok(), "why_not": found.as_ref().err() });
    judge_gpu(driver.as_deref(), device, built, found).with(facts)
}

fn judge_gpu(driver: Option<&str>, device: bool, built: bool, found: Result<Vec<String>, String>) -> Finding {
    let version =
        driver.map_or_else(|| "NVIDIA's driver".to_owned(), |version| format!("NVIDIA's driver {version}"));
    let old =
        driver.and_then(|v| v.split('.').next()?.parse::<u64>().ok()).is_some_and(|major| major < DRIVER);
    match found {
        Ok(gpus) if gpus.is_empty() => Finding::note(
            "gpu",
            format!("{version} names no GPU"),
            "if there is one, `nvidia-smi` says more of it",
        ),
        Ok(gpus) => Finding::ok("gpu", format!("{version}: {}", gpus.join("; "))),
        Err(_) if driver.is_none() && !device => {
            let build = if built { "this build would use one by CUDA" } else { "this build has no CUDA" };
            Finding::ok("gpu", format!("no NVIDIA GPU with a driver; models run on the CPU ({build})"))
        }
        Err(_) if !built && old => Finding::note(
            "gpu",
            format!(
                "{version} is there, but older than {DRIVER}, and this build has no CUDA: models run on the CPU"
            ),
            format!(
                "update the driver to {DRIVER} or later, and build with --features cuda (README.md, \"GPU\")"
            ),
        ),
        Err(_) if !built => Finding::note(
            "gpu",
            format!("{version} is there, but this build has no CUDA: models run on the CPU"),
            "build with --features cuda (README.md, \"GPU\")",
        ),
        Err(why) => Finding::note(
            "gpu",
            format!("{version} cannot be used, so models run on the CPU: {why}"),
            format!(
                "a driver of {DRIVER} or later is needed, and in a container `docker run --gpus all`; `nvidia-smi` says more of it"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;

    #[test]
    fn a_gpu_that_is_not_used_is_worth_a_word() {
        let none = || Err("this build has no CUDA".to_owned());
        assert_eq!(judge_gpu(None, false, false, none()).mark, Mark::Ok);
        let old = judge_gpu(Some("470.82.01"), true, false, none());
        assert_eq!(old.mark, Mark::Note);
        assert!(old.remedy.unwrap().contains("525"));
        let other = judge_gpu(Some("550.54.14"), true, false, none());
        assert!(other.says.contains("550.54.14") && other.remedy.unwrap().contains("--features cuda"));
        let refused = judge_gpu(None, true, true, Err("cuInit: no device".into()));
        assert!(refused.mark == Mark::Note && refused.says.contains("cuInit"));
        assert_eq!(judge_gpu(Some("550.54.14"), true, true, Ok(vec!["0: H200".into()])).mark, Mark::Ok);
        assert_eq!(judge_gpu(Some("550.54.14"), true, true, Ok(vec![])).mark, Mark::Note);
    }

    #[test]
    fn few_addresses_are_wrong_and_few_files_a_note() {
        let free = Limits::default();
        assert_eq!(addresses(&free, 1 << 30), None);
        assert_eq!(limits(&free)[0].mark, Mark::Ok);
        let tight = Limits {
            address_space: Some(1 << 30),
            addresses_used: Some(1 << 29),
            open_files: Some(256),
            ..free
        };
        let finding = addresses(&tight, 1 << 30).unwrap();
        assert!(finding.mark == Mark::Wrong && finding.remedy.unwrap().contains("ulimit -v unlimited"));
        assert_eq!(addresses(&tight, 1 << 28), None);
        assert_eq!(limits(&tight)[0].mark, Mark::Note);
    }

    #[test]
    fn the_order_of_kernels_is_that_of_the_program() {
        let here = yuan::kernel_names();
        assert!(here.windows(2).all(|pair| better(pair[0], pair[1])), "{here:?}");
        assert!(yuan::lacking_kernels().iter().all(|(name, _)| ORDER.contains(name)));
    }

    #[test]
    fn a_limit_of_memory_is_named() {
        let limited = memory(&Budget { bytes: 1 << 40, set_by: "are left of the limit of /x".into() });
        if facts::memory().is_some() {
            assert!(limited.mark == Mark::Note && limited.says.contains("/x"), "{limited:?}");
            assert_eq!(memory(&Budget { bytes: 1 << 20, set_by: "are free".into() }).mark, Mark::Note);
        }
    }
}
