//! `yuan doctor`: what of this machine, of this program's surroundings and of a model is fine, worth knowing or wrong, and what to do about it.

mod drive;
mod environment;
mod exact;
mod finding;
mod machine;
mod model;

use std::{thread::Builder, time::Duration};

use anyhow::{bail, ensure};
use clap::Args;
use serde_json::json;
use yuan::{
    machine::{budget::Budget, facts::Limits},
    model::threads::usable_cores,
};
use yuan_tools::{
    console::{busy, explain, stopped},
    open::RunArgs,
};

use crate::bandwidth::read_bandwidth;
use finding::{Finding, Report};

/// Check this machine, and a model, and say what to do about what is wrong
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan doctor
  yuan doctor model.gguf
  yuan doctor m32 --memory 8G --verify
  yuan doctor --json
Each line is ok, worth knowing (note) or WRONG, and says what to do. The status is 1 where something is wrong. The exactness check runs the demo model with all kernels of this CPU \
and compares its logits, bit by bit, with those that every machine must find.")]
pub struct Doctor {
    #[command(flatten)]
    run: RunArgs,
    /// Compare every tensor of the model with its digest, in place of some
    #[arg(long)]
    verify: bool,
    /// Leave out what takes longer than a moment: the speeds of memory and drive, and the exactness check
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Addresses that the program wants beside a model: threads, the demo model, what is measured.
const ADDRESSES: u64 = 1 << 30;
/// Memory that is read to measure it.
const MEASURED: u64 = 512 << 20;
/// For how long a drive is read.
const READ: Duration = Duration::from_secs(1);

/// What the checks know of the machine.
struct Machine {
    threads: usize,
    budget: Budget,
    /// Whether there is room for threads and memory, without which the longer checks had better not begin.
    roomy: bool,
    /// GB a second of memory, where it was measured.
    memory: Option<f64>,
}

impl Doctor {
    pub fn run(self, command: clap::Command) -> anyhow::Result<()> {
        ensure!(!self.verify || self.run.model.is_named(), "--verify is of a model: name one");
        let mut report = Report::new(self.json);
        report.add(machine::program())?;
        report.add(machine::cpu())?;
        machine::kernels().into_iter().try_for_each(|finding| report.add(finding))?;
        let limits = Limits::now();
        let threads = if self.run.threads == 0 { usable_cores() } else { self.run.threads };
        let crowded = [machine::addresses(&limits, ADDRESSES), startable(threads, &limits)];
        let mut here = Machine {
            threads,
            budget: Budget::of(self.run.paging.memory),
            roomy: crowded.iter().all(Option::is_none),
            memory: None,
        };
        report.add(machine::memory(&here.budget))?;
        if here.roomy && !self.quick {
            let (finding, speed) = here.memory_speed();
            here.memory = speed;
            report.add(finding)?;
        }
        crowded
            .into_iter()
            .flatten()
            .chain(machine::limits(&limits))
            .try_for_each(|finding| report.add(finding))?;
        report.add(machine::gpu())?;
        let drive = here.roomy && !self.quick;
        drive::models(drive).into_iter().try_for_each(|finding| report.add(finding))?;
        environment::variables(&command).into_iter().try_for_each(|finding| report.add(finding))?;
        if !self.quick {
            report.add(exact::check(&here))?;
        }
        if self.run.model.is_named() {
            model::check(&self, &here).into_iter().try_for_each(|finding| report.add(finding))?;
        }
        if stopped() {
            return Ok(());
        }
        match report.finish()? {
            0 => Ok(()),
            1 => bail!("one thing is wrong: see above"),
            n => bail!("{n} things are wrong: see above"),
        }
    }
}

impl Machine {
    fn memory_speed(&self) -> (Finding, Option<f64>) {
        let _busy = busy("measuring the memory");
        match read_bandwidth(self.threads, (self.budget.bytes / 2).min(MEASURED)) {
            Ok(speed) => {
                let threads = self.threads;
                let says = format!(
                    "{speed:.1} GB/s read by {threads} threads; a token needs at least the time in which its weights are read"
                );
                (
                    Finding::ok("memory speed", says)
                        .with(json!({ "gb_per_second": speed, "threads": threads })),
                    Some(speed),
                )
            }
            Err(error) => {
                let remedy = "close other programs, or raise the limits of this one (`ulimit -a` shows them)";
                (Finding::wrong("memory speed", format!("not measured: {}", explain(&error)), remedy), None)
            }
        }
    }
}

/// Whether so many threads can be started beside this one.
fn startable(threads: usize, limits: &Limits) -> Option<Finding> {
    let started = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|_| Builder::new().spawn_scoped(scope, || std::thread::sleep(Duration::from_millis(5))))
            .collect();
        all.into_iter().filter_map(Result::err).next()
    });
    let error = started?;
    let limit = limits
        .processes
        .map_or_else(String::new, |n| format!(" (this user may have {n} processes and threads)"));
    Some(
        Finding::wrong(
            "threads",
            format!("cannot start {threads} threads: {error}{limit}"),
            "raise the limit (`ulimit -u`, `ulimit -v`, in a container --pids-limit), or ask for fewer threads (--threads 1)",
        )
        .with(json!({ "threads": threads, "limit": limits.processes })),
    )
}
