//! Sequences of C calls, with handles that are live, freed, of another kind or none: none of them is a mistake of the library, and nothing is left.

use yuan::{capi::yuan_live_handles, config::Family};

use crate::{
    Seed,
    calls::{self, Caller, Slots},
    common::mutate::Random,
    model::{self, letters},
};

/// Calls that the bytes choose.
pub fn run(data: &[u8]) {
    static FILES: std::sync::Once = std::sync::Once::new();
    FILES.call_once(|| calls::files(model::folder(), |size| letters(Family::Yuan2, size)));
    let slots = Slots::default();
    // What callbacks choose is chosen by the first byte.
    let Some((first, data)) = data.split_first() else { return };
    let mut caller = Caller::new(&slots, model::folder(), Random::of(data), Random::new((*first).into()));
    for _ in 0..64 {
        if !caller.has_bytes() {
            break;
        }
        caller.call();
    }
    slots.free();
    assert_eq!(yuan_live_handles(), 0);
    for name in ["s0", "s1"] {
        let _ = std::fs::remove_file(model::folder().join(name));
    }
}

/// Bytes that are numbers of calls.
pub fn seeds() -> Vec<Seed> {
    (0..8_u64)
        .map(|seed| {
            let mut random = Random::new(seed);
            (0..160).map(|_| random.next() as u8).collect()
        })
        .collect()
}
