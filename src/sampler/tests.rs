use super::*;

const LOGITS: [f32; 5] = [1.0, 3.0, f32::NAN, 2.0, -1.0];

fn warm() -> Settings {
    Settings { temperature: 1.0, ..Settings::default() }
}

fn draw(settings: Settings, n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(settings).unwrap();
    (0..n).map(|_| sampler.sample(&LOGITS)).collect()
}

/// Logits as a vocabulary of that size has them, the same on every machine.
fn many(n: u32) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 12) as f32 / 65_536.0).collect()
}

#[test]
fn no_temperature_takes_the_best() {
    assert_eq!(draw(Settings::default(), 3), [1, 1, 1]);
}

#[test]
fn the_same_seed_gives_the_same_stream() {
    let settings = Settings { seed: Some(7), ..warm() };
    assert_eq!(draw(settings.clone(), 100), draw(settings.clone(), 100));
    assert_ne!(draw(settings.clone(), 100), draw(Settings { seed: Some(8), ..settings }, 100));
}

#[test]
fn without_a_seed_the_choices_are_others_each_time_and_can_be_had_again() {
    let first = Sampler::new(warm()).unwrap();
    let streams: Vec<_> = (0..8).map(|_| draw(warm(), 50)).collect();
    assert!(streams.iter().any(|s| *s != streams[0]));
    let seed = first.seed().expect("it was chosen");
    assert_eq!(first, Sampler::new(Settings { seed: Some(seed), ..warm() }).unwrap());
    // Other settings go on with it, unless they name another one.
    let mut other = first.clone();
    other.set(Settings { temperature: 0.5, ..warm() }).unwrap();
    assert_eq!((other.seed(), &other.random), (Some(seed), &first.random));
    assert_eq!(Sampler::new(Settings::default()).unwrap().seed(), None);
}

#[test]
fn top_k_top_p_and_min_p_cut_the_tail() {
    assert!(draw(Settings { top_k: 2, ..warm() }, 500).iter().all(|id| [1, 3].contains(id)));
    assert!(draw(Settings { top_p: 0.5, ..warm() }, 500).iter().all(|&id| id == 1));
    // The probabilities are as e^-2, 1, e^-1 and e^-4.
    assert!(draw(Settings { min_p: 0.3, ..warm() }, 500).iter().all(|id| [1, 3].contains(id)));
    let all = draw(Settings { min_p: 0.01, ..warm() }, 2000);
    assert!([0, 1, 3, 4].iter().all(|id| all.contains(id)));
}

#[test]
fn frequencies_follow_the_softmax() {
    for temperature in [1.0, 0.5] {
        let drawn = draw(Settings { temperature, ..Settings::default() }, 20_000);
        let weight = |l: f32| (l / temperature).exp();
        let sum: f32 = [1f32, 3.0, 2.0, -1.0].into_iter().map(weight).sum();
        for (id, logit) in [(0, 1f32), (1, 3.0), (3, 2.0), (4, -1.0)] {
            let share = drawn.iter().filter(|&&d| d == id).count() as f32 / 20_000.0;
            assert!((share - weight(logit) / sum).abs() < 0.015, "{id}: {share}");
        }
    }
}

/// Top-p comes before the temperature: heat does not widen the choice.
#[test]
fn the_cuts_do_not_depend_on_the_temperature() {
    let settings = Settings { top_p: 0.6, temperature: 100.0, ..Settings::default() };
    assert!(draw(settings, 500).iter().all(|&id| id == 1));
}

#[test]
fn partial_sorting_gives_the_order_of_a_full_sort() {
    let logits = many(5000);
    let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut ranking = Ranking::new(&logits);
    for i in [0, 3, 63, 64, 700, 64, 4999] {
        assert_eq!(ranking.get(i), sorted[i]);
    }
}

#[test]
fn repetition_is_punished_in_the_window_only() {
    let punished = Settings { repeat_penalty: 100.0, repeat_last_n: 1, ..Settings::default() };
    assert_eq!(draw(punished.clone(), 4), [1, 3, 1, 3]);
    assert_eq!(draw(Settings { repeat_last_n: 2, ..punished.clone() }, 4), [1, 3, 0, 1]);
    assert_eq!(draw(Settings { repeat_last_n: 0, ..punished.clone() }, 3), [1, 1, 1]);
    let mut sampler = Sampler::new(punished).unwrap();
    sampler.follow(&[4, 1]);
    assert_eq!(sampler.sample(&LOGITS), 3, "the prompt counts");
}

#[test]
fn presence_counts_once_and_frequency_every_time() {
    let long = Settings { repeat_last_n: usize::MAX, ..Settings::default() };
    // 3, 2 and 1 are the logits of 1, 3 and 0.
    assert_eq!(draw(Settings { presence_penalty: 1.5, ..long.clone() }, 4), [1, 3, 1, 1]);
    assert_eq!(draw(Settings { frequency_penalty: 0.75, ..long }, 5), [1, 1, 3, 1, 3]);
}

#[test]
fn bias_lifts_and_forbids() {
    let bias = |logit_bias| Settings { logit_bias, ..Settings::default() };
    assert_eq!(draw(bias(vec![(4, 10.0)]), 1), [4]);
    assert_eq!(draw(bias(vec![(1, f32::NEG_INFINITY), (900, 5.0)]), 1), [3]);
    let forbidden = Settings { temperature: 5.0, ..bias(vec![(1, f32::NEG_INFINITY)]) };
    assert!(!draw(forbidden, 500).contains(&1));
}

#[test]
fn nonsense_settings_are_errors() {
    for settings in [
        Settings { temperature: -1.0, ..Settings::default() },
        Settings { temperature: f32::NAN, ..Settings::default() },
        Settings { top_p: 0.0, ..Settings::default() },
        Settings { min_p: 1.5, ..Settings::default() },
        Settings { repeat_penalty: 0.0, ..Settings::default() },
        Settings { repeat_penalty: 1e-30, ..Settings::default() },
        Settings { frequency_penalty: -1e30, ..Settings::default() },
        Settings { logit_bias: vec![(3, 1e30)], ..Settings::default() },
        Settings { presence_penalty: f32::INFINITY, ..Settings::default() },
        Settings { frequency_penalty: f32::NAN, ..Settings::default() },
        Settings { logit_bias: vec![(3, f32::NAN)], ..Settings::default() },
    ] {
        assert!(Sampler::new(settings.clone()).is_err(), "{settings:?}");
    }
}

#[test]
fn logits_without_a_number_give_token_0() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(Settings { temperature, ..Settings::default() }).unwrap();
        assert_eq!(sampler.sample(&[f32::NAN, f32::NEG_INFINITY]), 0);
        assert_eq!(sampler.sample(&[]), 0);
    }
}

#[test]
fn a_saved_sampler_goes_on_as_if_it_had_not_been_saved() {
    let settings = Settings {
        frequency_penalty: 0.3,
        logit_bias: vec![(4, 1.5), (0, f32::NEG_INFINITY)],
        repeat_last_n: 7,
        ..warm()
    };
    let mut sampler = Sampler::new(settings).unwrap();
    for _ in 0..50 {
        let mut restored = Sampler::from_bytes(&sampler.to_bytes()).unwrap();
        assert_eq!(restored, sampler);
        assert_eq!(restored.sample(&LOGITS), sampler.sample(&LOGITS));
    }
    let bytes = sampler.to_bytes();
    for end in 0..bytes.len() {
        assert!(Sampler::from_bytes(&bytes[..end]).is_err());
    }
    assert!(Sampler::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
}

/// However a text is cut, it is shown up to the first stop string, and nothing of that is shown too early.
#[test]
fn stop_strings_are_found_across_pieces() {
    let text = "ababac 春眠不覺曉 abac";
    let pieces = |mask: u32| {
        let mut out = vec![String::new()];
        for (i, c) in text.chars().enumerate() {
            if mask >> i & 1 == 1 {
                out.push(String::new());
            }
            out.last_mut().unwrap().push(c);
        }
        out
    };
    for stops in [&["abac"][..], &["眠不", "覺"], &["acx", "曉 abad"], &["b", "a"], &["x", ""], &[]] {
        let stops: Vec<String> = stops.iter().map(|&s| s.to_owned()).collect();
        let all = stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let end = all.filter_map(|(place, s)| Some((text.find(s.as_str())?, place))).min();
        // Every 61st way to cut seventeen characters.
        for mask in (0..1 << 17).step_by(61) {
            let (mut stop, mut shown, mut found) = (StopText::new(&stops), String::new(), None);
            for piece in pieces(mask) {
                let (text, stopped) = stop.push(&piece);
                shown.push_str(&text);
                found = stopped;
                if found.is_some() {
                    break;
                }
            }
            if found.is_none() {
                shown.push_str(&stop.finish());
            }
            let wanted = end.map_or(text.len(), |(at, _)| at);
            assert_eq!((shown.as_str(), found), (&text[..wanted], end.map(|(_, place)| place)));
        }
    }
}

/// Whatever the settings are: from as many of the best as a choice looks at, and from more, comes what comes from all.
#[test]
fn the_best_are_enough() {
    let mut logits = many(3000);
    let best = logits.iter().copied().fold(0.0, f32::max);
    logits[17..40].fill(best);
    logits[50] = f32::NAN;
    logits[51] = f32::NEG_INFINITY;
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|t| t.1.is_finite()).collect();
    ranked.sort_unstable_by(by_rank);
    let warm = |top_k| Settings { top_k, ..warm() };
    let settings = [
        Settings::default(),
        warm(1),
        warm(40),
        Settings { top_p: 0.9, ..warm(30) },
        Settings { min_p: 0.999, temperature: 0.3, ..warm(100) },
        Settings { top_p: 0.5, min_p: 0.2, temperature: 8.0, seed: Some(5), ..warm(200) },
    ];
    for settings in settings {
        let first = Sampler::new(settings.clone()).unwrap();
        let mut samplers = [first.clone(), first.clone(), first];
        let n = samplers[0].looks_at().unwrap();
        for i in 0..60 {
            let wanted = samplers[0].sample(&logits);
            assert_eq!(samplers[1].sample_best(&ranked[..n]), wanted, "{i}, {settings:?}");
            assert_eq!(samplers[2].sample_best(&ranked[..2 * n]), wanted, "{i}, {settings:?}");
        }
        assert_eq!(samplers[0], samplers[1]);
    }
}

#[test]
fn what_changes_logits_or_sums_over_all_looks_at_all() {
    let looks_at = |settings| Sampler::new(settings).unwrap().looks_at();
    assert_eq!(looks_at(Settings { top_p: 0.9, ..warm() }), None);
    assert_eq!(looks_at(Settings { top_k: usize::MAX, ..warm() }), None);
    assert_eq!(looks_at(Settings { logit_bias: vec![(3, -1.0)], ..Settings::default() }), None);
    let mut sampler = Sampler::new(Settings { repeat_penalty: 1.1, top_k: 7, ..warm() }).unwrap();
    assert_eq!(sampler.looks_at(), Some(8));
    sampler.accept(1);
    assert_eq!(sampler.looks_at(), None);
}

#[test]
fn an_infinite_logit_is_chosen_neither_by_rank_nor_by_chance() {
    let logits = [f32::INFINITY, 1.0, 3.0, f32::NEG_INFINITY, -f32::NAN];
    for temperature in [0.0, 0.01] {
        let mut sampler = Sampler::new(Settings { temperature, ..Settings::default() }).unwrap();
        assert!((0..50).all(|_| sampler.sample(&logits) == 2), "{temperature}");
        assert_eq!(sampler.sample(&[f32::NAN, f32::INFINITY]), 0);
    }
}

#[test]
fn equals_are_ranked_as_the_draw_ranks_them() {
    assert_eq!(greedy(&[-1.0, -0.0, 0.0, 0.0]), 2);
    assert_eq!(greedy(&[f32::NEG_INFINITY, f32::NAN, -3.0, -3.0]), 2);
}

/// However the best are found: the same, with ties, with logits that are none, and of few tokens.
#[test]
fn the_best_are_those_of_all_in_order() {
    for len in [0, 1, 63, 64, 65, 1000, 5000] {
        let mut logits = many(len);
        logits.iter_mut().step_by(7).for_each(|l| *l = (*l * 4.0).round() / 4.0);
        logits.iter_mut().skip(3).step_by(11).for_each(|l| *l = f32::NAN);
        logits.iter_mut().skip(5).step_by(13).for_each(|l| *l = f32::NEG_INFINITY);
        logits.iter_mut().skip(6).step_by(17).for_each(|l| *l = f32::INFINITY);
        logits.iter_mut().skip(8).step_by(19).for_each(|l| *l = -0.0);
        let mut all: Vec<(u32, f32)> =
            (0..).zip(logits.iter().copied()).filter(|t| t.1.is_finite()).collect();
        all.sort_unstable_by(by_rank);
        for n in [0, 1, 2, 15, 16, 41, 78, 79, 500, 6000] {
            let found = super::best(&logits, n);
            assert!(found.len() == n.min(all.len()) && found == all[..found.len()], "{n} of {len}");
        }
    }
}
