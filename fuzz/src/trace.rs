//! What a run asked of its pager: files of `yuan trace`, replayed.

use std::fs;

use yuan::pager::{Eviction, trace::Trace};

use crate::{Seed, model};

/// A file of these bytes.
pub fn run(data: &[u8]) {
    let path = model::folder().join("trace");
    fs::write(&path, data).expect("room for a small file");
    let Ok(trace) = Trace::read(&path) else { return };
    let all = trace.model.layers * trace.model.experts;
    let uses: u64 = trace.uses().iter().sum();
    assert_eq!(uses, trace.requests.iter().map(|(_, chosen)| chosen.len() as u64).sum::<u64>());
    for eviction in [Eviction::Lfu, Eviction::Lru] {
        for resident in [0, all / 2, all] {
            let replayed = trace.replay(eviction, resident);
            if resident == all {
                let found = replayed.prefill.misses + replayed.decode.misses;
                assert!(found <= all as u64, "nothing is read twice where all of it stays");
            }
        }
    }
    trace.write(&path).expect("room for a small file");
    assert_eq!(Trace::read(&path).expect("what was written is read"), trace);
}

/// A short run.
pub fn seeds() -> Vec<Seed> {
    let head = r#"{"yuan_trace":1,"layers":2,"experts":4,"used":2,"expert_bytes":10,"fixed_bytes":100}"#;
    vec![format!("{head}\n0 0 1 2 1\n1 3 0 3 1\n0 1 2\n1 2 3\n").into_bytes()]
}
