//! What is recorded of a pass: all of its time, on every thread, and nothing that changes its bits.

mod common;

use std::time::Duration;

use common::paging::{container, keeping, logits, options, tokens};
use yuan::{
    model::{
        Model, Options,
        phases::{Phase, RecordedPass},
    },
    pager::Paging,
};

fn time(of: impl IntoIterator<Item = yuan::model::phases::Span>) -> Duration {
    of.into_iter().map(|span| span.time()).sum()
}

/// The phases of a pass have no gaps between them, what is shared out lies in its phase, and threads work within it and one thing at a time.
fn check(pass: &RecordedPass, threads: usize) {
    assert_eq!(pass.work.len(), threads);
    assert!(pass.thread < threads);
    for pair in pass.phases.windows(2) {
        assert!(pair[0].end == pair[1].begin && pair[0].phase != pair[1].phase);
    }
    for shared in &pass.shared {
        let span = shared.span;
        let inside = |s: &&yuan::model::phases::Span| s.begin <= span.begin && span.end <= s.end;
        assert_eq!(pass.phases.iter().find(inside).unwrap().phase, span.phase);
    }
    assert!(pass.shared.windows(2).all(|pair| pair[0].span.end <= pair[1].span.begin));
    for work in &pass.work {
        assert!(work.windows(2).all(|pair| pair[0].end <= pair[1].begin));
        for span in work {
            let (first, last) = (pass.phases[0].begin, pass.phases.last().unwrap().end);
            assert!(first <= span.begin && span.begin <= span.end && span.end <= last);
        }
    }
    // Nobody works longer than there is work.
    let shared = time(pass.shared.iter().map(|shared| shared.span));
    pass.work.iter().for_each(|work| assert!(time(work.iter().copied()) <= shared));
}

#[test]
fn phases_are_recorded_and_change_no_bit() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(70);
    for threads in [1, 2, 3] {
        let mapped = Model::load(&container, &Options { threads, ..options(Paging::Mapped) }).unwrap();
        let streamed = Model::load(&container, &Options { threads, ..keeping(&container, 3) }).unwrap();
        for model in [mapped, streamed] {
            let plain = logits(&model, &tokens, 64);
            assert!(model.recorded_phases().is_empty(), "nothing is recorded that was not asked for");
            model.record_phases(0);
            assert!(logits(&model, &tokens, 64) == plain);
            let passes = model.recorded_phases();
            assert_eq!(passes.iter().map(|pass| pass.rows).collect::<Vec<_>>(), [64, 1, 1, 1, 1, 1, 1]);
            for pass in &passes {
                check(pass, threads);
                let has = |phase: Phase| pass.phases.iter().any(|span| span.phase == phase);
                // Experts with a prompt are walked whole.
                let missing: Vec<_> = Phase::ALL.into_iter().filter(|&phase| !has(phase)).collect();
                assert!(missing.is_empty() || pass.rows > 1 && missing == [Phase::Down], "{missing:?}");
                for (worked, phase) in [(true, Phase::Qkv), (true, Phase::Experts), (false, Phase::Begin)] {
                    let found = pass.work.iter().flatten().any(|span| span.phase == phase);
                    assert_eq!(found, worked, "{phase:?}");
                }
            }
            assert!(logits(&model, &tokens, 64) == plain);
            assert!(model.recorded_phases().is_empty(), "the recording has ended");
        }
    }
}

/// One thread has the pieces that more would share, where a recording is for so many.
#[test]
fn one_thread_has_the_pieces_of_more() {
    let folder = common::folder();
    let container = container(&folder);
    let tokens = tokens(70);
    let pieces = |threads: usize, cut_for: usize| -> Vec<Vec<(Phase, usize, bool)>> {
        let model = Model::load(&container, &Options { threads, ..options(Paging::Mapped) }).unwrap();
        model.record_phases(cut_for);
        logits(&model, &tokens, 64);
        let passes = model.recorded_phases();
        for pass in &passes {
            let shared: usize = pass.shared.iter().map(|shared| shared.pieces).sum();
            assert_eq!(pass.work.iter().map(Vec::len).sum::<usize>(), shared, "a span for each piece");
        }
        let of = |pass: &RecordedPass| {
            pass.shared.iter().map(|shared| (shared.span.phase, shared.pieces, shared.in_turn)).collect()
        };
        passes.iter().map(of).collect()
    };
    let (one, seven) = (pieces(1, 0), pieces(7, 0));
    assert!(one != seven, "seven threads cut finer");
    assert!(pieces(1, 7) == seven);
    assert!(pieces(3, 1) == pieces(3, 0), "never coarser than for those that run");
}
