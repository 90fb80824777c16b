//! The same choices from the same logits, on every machine: `.ci/run` has an emulated Arm CPU and a Windows make them too.

use yuan::sampler::{Sampler, Settings};

/// Logits as a vocabulary of that size has them, the same on every machine.
fn logits(n: u32) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 12) as f32 / 65_536.0).collect()
}

/// Other choices than these are another chain, and belong into the change log.
#[test]
fn a_seed_gives_these_choices() {
    let settings = Settings {
        seed: Some(42),
        top_k: 50,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.1,
        frequency_penalty: 0.1,
        temperature: 0.8,
        ..Settings::default()
    };
    let mut sampler = Sampler::new(settings).unwrap();
    let logits = logits(4096);
    let drawn: Vec<u32> = (0..8).map(|_| sampler.sample(&logits)).collect();
    assert_eq!(drawn, [432, 1131, 3770, 55, 1419, 1275, 2961, 665]);
}

/// So many that an exponential which differs in its last bits would be found out.
#[test]
fn many_choices_from_all_logits_are_these() {
    let logits = logits(3000);
    let mut digest = 0u64;
    for (seed, temperature) in [(1, 0.3), (2, 1.0), (3, 7.0), (4, 100.0)] {
        let settings = Settings { seed: Some(seed), temperature, ..Settings::default() };
        let mut sampler = Sampler::new(settings).unwrap();
        for _ in 0..400 {
            digest = digest.rotate_left(5).wrapping_mul(0x2545_F491_4F6C_DD1D)
                ^ u64::from(sampler.sample(&logits));
        }
    }
    assert_eq!(digest, 6_128_708_354_912_790_607);
}
