//! The exactness check: the demo model's logits on all kernels and several threads, against digests that come with the program.

use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use yuan::{
    container::Container,
    gpu,
    machine::facts,
    model::{Model, Options},
    session::exactness::{DEMO, digest},
    tokenizer::Tokenizer,
};
use yuan_tools::console::{busy, explain, stopped};

use super::{Machine, finding::Finding};
use crate::demo;

/// Where to tell of it.
const TELL: &str = "please report it with the output of `yuan doctor --json`";

/// What one set of kernels has made of the prompts, on so many threads.
#[derive(Clone, Debug)]
struct Outcome {
    kernels: &'static str,
    threads: usize,
    /// By prompt.
    digests: Vec<String>,
}

impl Outcome {
    fn is_right(&self) -> bool {
        self.digests.iter().zip(DEMO).all(|(found, known)| found == known.digest)
    }
}

/// Runs the check.
pub(super) fn check(here: &Machine) -> Finding {
    if !here.roomy {
        return Finding::note(
            "exactness",
            "not checked: there are too few threads or addresses",
            "raise the limits that are named above, and run `yuan doctor` again",
        );
    }
    let begun = Instant::now();
    match run(here.threads) {
        Ok(outcomes) if stopped() || outcomes.is_empty() => Finding::ok("exactness", "not checked: stopped"),
        Ok(outcomes) => judge(&outcomes, begun.elapsed().as_secs_f64()),
        Err(error) => Finding::note(
            "exactness",
            format!("not checked: {}", explain(&error)),
            "run it where the demo model is: in a folder of a published archive, or in a checkout of the source; it needs 20 MB of space for temporary files (TMPDIR)",
        ),
    }
}

fn run(threads: usize) -> anyhow::Result<Vec<Outcome>> {
    let folder = tempfile::tempdir().context("there is no room for temporary files")?;
    let container = {
        let _busy = busy("converting the demo model");
        Container::open(&demo::container_in(folder.path())?)?
    };
    // What was written is what is read: a drive that is at fault is no fault of the kernels.
    container.verify(&|_| true)?;
    let tokenizer = Tokenizer::new(container.vocab()?)?;
    let mut outcomes = Vec::new();
    // On one thread and on several, though there be one core only.
    for (kernels, threads) in
        yuan::kernel_names().into_iter().flat_map(|name| [(name, 1), (name, threads.max(2))])
    {
        if stopped() {
            break;
        }
        let _busy = busy(format!("checking the kernels {kernels}"));
        let options = Options {
            threads,
            kernels: Some(kernels.into()),
            gpu: gpu::Settings { choice: gpu::Choice::Off, ..Default::default() },
            context: 512,
            ..Default::default()
        };
        let model = Model::load(&container, &options)?;
        let digests = DEMO.iter().map(|known| digest(&model, &tokenizer, known.prompt));
        outcomes.push(Outcome { kernels, threads, digests: digests.collect::<yuan::Result<_>>()? });
    }
    Ok(outcomes)
}

/// What the outcomes mean: there are some.
fn judge(outcomes: &[Outcome], seconds: f64) -> Finding {
    let runs: Vec<_> = outcomes
        .iter()
        .map(|o| json!({ "kernels": o.kernels, "threads": o.threads, "right": o.is_right(), "digests": o.digests }))
        .collect();
    let expected: Vec<_> =
        DEMO.iter().map(|known| json!({ "prompt": known.prompt, "digest": known.digest })).collect();
    let facts = json!({ "runs": runs, "expected": expected, "seconds": seconds });
    verdict(outcomes, seconds).with(facts)
}

fn verdict(outcomes: &[Outcome], seconds: f64) -> Finding {
    let names = |wanted: &dyn Fn(&str) -> bool| {
        let mut names: Vec<_> = outcomes.iter().map(|o| o.kernels).filter(|name| wanted(name)).collect();
        names.dedup();
        names
    };
    let all_of = |name: &str, right: bool| {
        outcomes.iter().filter(|o| o.kernels == name).all(|o| o.is_right() == right)
    };
    let right = names(&|name| all_of(name, true));
    let wrong = names(&|name| all_of(name, false));
    let unsteady = names(&|name| !all_of(name, true) && !all_of(name, false));
    let cpu = facts::cpu_name().unwrap_or_else(|| "this CPU".into());
    let go_on = |right: &[&str]| format!("YUAN_KERNELS={} uses kernels that are right; {TELL}", right[0]);
    if wrong.is_empty() && unsteady.is_empty() {
        let threads: Vec<_> = outcomes.iter().map(|o| o.threads).take(2).map(|n| n.to_string()).collect();
        let says = format!(
            "the demo model's logits have the right bits, in English and Chinese, with {} on {} threads ({seconds:.1} s)",
            right.join(", "),
            threads.join(" and ")
        );
        return Finding::ok("exactness", says);
    }
    if !unsteady.is_empty() {
        let says = format!(
            "{} give the right bits on some numbers of threads and not on others",
            unsteady.join(", ")
        );
        let remedy = "run it again: if the lines differ, the memory or the CPU is at fault (test it with memtest86, undo overclocking); if they stay the same, --threads 1 is right where it says so; ";
        return Finding::wrong("exactness", says, format!("{remedy}{TELL}"));
    }
    if right.is_empty() {
        let alike = outcomes.iter().all(|o| o.digests == outcomes[0].digests);
        let says = if alike {
            "all kernels agree with each other, but on other bits than they should: the demo model is another one than this program knows"
        } else {
            "no kernels give the right bits"
        };
        let remedy = if alike {
            format!("install program and demo model anew, from one archive or checkout; {TELL}")
        } else {
            format!("do not trust answers of this machine; {TELL}")
        };
        return Finding::wrong("exactness", says, remedy);
    }
    let says = format!(
        "{} give other bits than they should on {cpu}, and so other answers; {} are right",
        wrong.join(", "),
        right.join(", ")
    );
    Finding::wrong("exactness", says, go_on(&right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;

    /// Outcomes of these kernels on 1 and 2 threads; an answer of 0 is the right one.
    fn outcomes(of: &[(&'static str, [u8; 2])]) -> Vec<Outcome> {
        let digests = |answer: u8| {
            let one = |known: yuan::session::exactness::Known| match answer {
                0 => known.digest.to_owned(),
                other => format!("{other:064}"),
            };
            DEMO.into_iter().map(one).collect()
        };
        let both = |(kernels, answers): &(&'static str, [u8; 2])| {
            [1, 2].map(|threads| Outcome { kernels, threads, digests: digests(answers[threads - 1]) })
        };
        of.iter().flat_map(both).collect()
    }

    #[test]
    fn kernels_that_are_to_blame_are_named_and_others_recommended() {
        let all_right = judge(&outcomes(&[("avx512", [0, 0]), ("scalar", [0, 0])]), 1.0);
        assert_eq!(all_right.mark, Mark::Ok);
        let one_wrong = judge(&outcomes(&[("avx512", [7, 7]), ("avx2", [0, 0]), ("scalar", [0, 0])]), 1.0);
        assert_eq!(one_wrong.mark, Mark::Wrong);
        assert!(one_wrong.says.starts_with("avx512 give other bits"), "{one_wrong:?}");
        assert!(one_wrong.remedy.as_deref().unwrap().starts_with("YUAN_KERNELS=avx2 "), "{one_wrong:?}");
        assert_eq!(one_wrong.facts["runs"][0]["right"], false);
        let unsteady = judge(&outcomes(&[("avx2", [0, 3]), ("scalar", [0, 0])]), 1.0);
        assert!(unsteady.mark == Mark::Wrong && unsteady.remedy.unwrap().contains("memtest86"));
        let other_model = judge(&outcomes(&[("avx2", [3, 3]), ("scalar", [3, 3])]), 1.0);
        assert!(other_model.mark == Mark::Wrong && other_model.says.contains("another one"));
        let hopeless = judge(&outcomes(&[("avx2", [3, 3]), ("scalar", [4, 4])]), 1.0);
        assert!(hopeless.mark == Mark::Wrong && hopeless.says.contains("no kernels"));
    }
}
