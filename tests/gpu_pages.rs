//! Keys and values on a GPU: pages out of one pool, which never is more than the budget, whatever sessions there are. A session that finds no room runs on the CPU.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use gpu::{COPY, base, bits, demo, fake, on_gpu, tokens};
use yuan::{
    container::Container,
    gpu::{
        Choice,
        fake::{Call, Fake, Schedule},
    },
    machine::budget::Limit,
    model::{KvType, Model, Options, Output, Placement, Sequence, State, Want},
    quantize::DType,
};

/// The model on the CPU and on a GPU with so many pages, and the GPU's budget.
fn models(container: &Container, fake: &Fake, pages: u64, experts: u64, kv: KvType) -> (Model, Model, u64) {
    let mut options = on_gpu(container, fake, experts, COPY, kv);
    options.context = 512 * pages as usize;
    let room = |options: &Options| {
        let mut options = options.clone();
        options.gpu.memory = Some(Limit::Bytes(gpu::MEMORY));
        *Placement::new(container, &options).unwrap().gpu.room().unwrap()
    };
    let needs = room(&options).needs;
    assert_eq!(needs.kv, pages * needs.page);
    let budget = needs.trunk + needs.kv + needs.scratch + experts * needs.expert;
    options.gpu.memory = Some(Limit::Bytes(budget));
    (Model::load(container, &base(kv)).unwrap(), Model::load(container, &options).unwrap(), budget)
}

fn ahead(cpu: &Model, tokens: &[u32], kv: KvType) -> State {
    let mut state = State::new(cpu.config(), 1200, kv).unwrap();
    if !tokens.is_empty() {
        cpu.forward_one(tokens, &mut state, Want::Nothing).unwrap();
    }
    state
}

fn was_there(calls: &[Call]) -> bool {
    calls.iter().any(|c| {
        matches!(c, Call::Launch { kernel } if kernel.starts_with("heads_"))
            || matches!(c, Call::QueuePrepared(_))
    })
}

#[test]
fn sessions_that_do_not_fit_together_take_turns_and_keep_to_the_budget() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    for (kv, experts) in [(KvType::F16, 64), (KvType::Q8_0, 6)] {
        let fake = fake(Schedule::Late);
        let (cpu, model, budget) = models(&container, &fake, 2, experts, kv);
        let all = tokens(620);
        // Two pages for the first, one for each of the others: three do not go together.
        let mut there =
            [ahead(&cpu, &all[..515], kv), ahead(&cpu, &all[..20], kv), ahead(&cpu, &all[..7], kv)];
        let mut here = there.clone();
        for (round, token) in all[600..603].iter().enumerate() {
            for (i, (there, here)) in there.iter_mut().zip(&mut here).enumerate() {
                fake.take_calls();
                let [found, expected] = [(&model, &mut *there), (&cpu, &mut *here)]
                    .map(|(model, state)| bits(&model.forward_one(&[*token], state, Want::Last).unwrap()));
                assert!(found == expected, "session {i}, round {round}, {kv:?}");
                assert!(was_there(&fake.take_calls()), "session {i}, round {round}");
                assert!(fake.held().0 <= budget, "{} of {budget} bytes", fake.held().0);
            }
        }
        // Back, on with other tokens on the CPU, and once more on the GPU, which has a page of what was there.
        let (state, other) = (&mut there[0], &mut here[0]);
        for state in [&mut *state, &mut *other] {
            let place = state.rewind(500);
            cpu.forward_one(&all[100..100 + 510 - place], state, Want::Nothing).unwrap();
            assert_eq!(state.position(), 510);
        }
        let [found, expected] = [(&model, state), (&cpu, other)]
            .map(|(model, state)| bits(&model.forward_one(&all[200..205], state, Want::All).unwrap()));
        assert!(found == expected, "rewound, {kv:?}");
        drop(model);
        drop(there);
        assert_eq!(fake.held(), (0, 0, 0));
    }
}

#[test]
fn a_session_that_never_fits_runs_on_the_cpu_and_others_on_the_gpu() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let kv = KvType::F16;
    let fake = fake(Schedule::Early);
    let (cpu, model, budget) = models(&container, &fake, 1, 6, kv);
    let all = tokens(620);
    let (mut large, mut small) = (ahead(&cpu, &all[..510], kv), ahead(&cpu, &all[..3], kv));
    let (mut large_alone, mut small_alone) = (large.clone(), small.clone());
    // Positions 510 and 511 are the last of its page.
    for (i, token) in all[510..514].iter().enumerate() {
        let both = [(&mut large, &mut large_alone, i < 2), (&mut small, &mut small_alone, true)];
        for (state, expected, fits) in both {
            fake.take_calls();
            let run = |model: &Model, state| bits(&model.forward_one(&[*token], state, Want::Last).unwrap());
            assert!(run(&model, state) == run(&cpu, expected), "token {i}");
            assert_eq!(was_there(&fake.take_calls()), fits, "token {i}");
            assert!(fake.held().0 <= budget);
        }
    }
    // What is shorter again fits again.
    let place = [&mut large, &mut large_alone].map(|state| state.rewind(450));
    fake.take_calls();
    let [found, wanted] = [(&model, &mut large), (&cpu, &mut large_alone)].map(|(model, state)| {
        bits(&model.forward_one(&all[place[0]..place[0] + 3], state, Want::All).unwrap())
    });
    assert!(found == wanted && was_there(&fake.take_calls()));
}

/// A GPU that others use, too: memory is refused at any point, and no call fails for it.
#[test]
fn refused_memory_is_no_error() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let kv = KvType::F16;
    let all = tokens(600);
    let fake = fake(Schedule::Late);
    let (cpu, model, _) = models(&container, &fake, 2, 64, kv);
    let start = [3, 509, 40].map(|n| ahead(&cpu, &all[..n], kv));
    let (mut there, mut on_cpu) = (0, 0);
    for seed in 0..6 {
        let mut sessions = start.clone();
        let mut expected = start.clone();
        // Memory by chance, and any call at all that says that there is none.
        fake.refuse_memory(seed, 2);
        for (i, token) in all[550..556].iter().enumerate() {
            fake.fail_in((7 * seed as usize + 13 * i) % 60, true);
            let (state, expected) = (&mut sessions[i % 3], &mut expected[i % 3]);
            fake.take_calls();
            let found = bits(&model.forward_one(&[*token], state, Want::Last).unwrap());
            if was_there(&fake.take_calls()) {
                there += 1
            } else {
                on_cpu += 1
            }
            assert!(found == bits(&cpu.forward_one(&[*token], expected, Want::Last).unwrap()), "{seed}, {i}");
        }
        fake.heal();
    }
    assert!(there > 0 && on_cpu > 0, "{there}, {on_cpu}");
}

/// What nothing else wants are pages: sessions that fit stay where they are.
#[test]
fn what_is_left_of_a_large_gpu_holds_more_sessions() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let kv = KvType::F16;
    let fake = fake(Schedule::Late);
    let mut options = on_gpu(&container, &fake, 64, COPY, kv);
    options.gpu.memory = Some(Limit::Bytes(gpu::MEMORY));
    let room = *Placement::new(&container, &options).unwrap().gpu.room().unwrap();
    assert!(room.kv >= room.needs.kv + 4 * room.needs.page && room.taken() <= gpu::MEMORY, "{room:?}");
    assert!(options.gpu.choice == Choice::Device(0));
    let (cpu, model) =
        (Model::load(&container, &base(kv)).unwrap(), Model::load(&container, &options).unwrap());
    let all = tokens(60);
    let mut sessions = [5, 9, 17].map(|n| ahead(&cpu, &all[..n], kv));
    for round in 0..3 {
        for state in &mut sessions {
            fake.take_calls();
            model.forward_one(&[7], state, Want::Nothing).unwrap();
            let (position, one) = (state.position() - 1, State::kv_bytes(model.config(), kv));
            let sent = |positions: usize, calls: &[Call]| {
                calls.iter().any(|c| matches!(c, Call::Upload { bytes, .. } if *bytes == positions * one))
            };
            let calls = fake.take_calls();
            // Keys and values are sent once, and not those that the GPU has computed.
            assert_eq!(sent(position, &calls), round == 0, "round {round}");
            assert!(!sent(1, &calls), "round {round}");
        }
    }
}

/// Sequences in one pass: their bits are those of each alone, whatever is wanted of them, and whatever happens to their neighbours.
#[test]
fn sequences_do_not_notice_their_neighbours() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let all = tokens(700);
    for (experts, schedule) in [(64, Schedule::Late), (6, Schedule::Early)] {
        let fake = fake(schedule);
        let (cpu, model, budget) = models(&container, &fake, 4, experts, KvType::F16);
        let q8 = |n: usize| ahead(&cpu, &all[..n], KvType::Q8_0);
        let f16 = |n: usize| ahead(&cpu, &all[..n], KvType::F16);
        let f32 = |n: usize| ahead(&cpu, &all[..n], KvType::F32);
        // Starts, tokens, and what is wanted; the pages of the first eight are nine: not all of them go at once.
        let cases: Vec<(State, &[u32], Want)> = vec![
            (f16(3), &all[300..301], Want::Last),
            (f16(511), &all[301..303], Want::All),
            (f16(0), &all[310..341], Want::Hidden),
            (f16(20), &all[302..303], Want::Nothing),
            (q8(7), &all[303..304], Want::Last),
            (f16(40), &all[304..305], Want::Best(5)),
            (f32(5), &all[305..307], Want::Last),
            (f16(2), &[], Want::Last),
            (f16(9), &[1 << 30], Want::Last),
            (f16(11), &all[306..307], Want::Last),
            (f16(513), &all[320..333], Want::Last),
        ];
        let cancelled = 9;
        let mut states: Vec<State> = cases.iter().map(|case| case.0.clone()).collect();
        states[cancelled].cancel = yuan::model::Cancel::new();
        let _running = states[cancelled].cancel.begin();
        states[cancelled].cancel.cancel();
        let mut sequences: Vec<Sequence<'_>> = states
            .iter_mut()
            .zip(&cases)
            .map(|(state, (_, tokens, want))| Sequence { tokens, drafted: 0, state, want: *want })
            .collect();
        fake.take_calls();
        let found = model.forward(&mut sequences);
        let calls = fake.take_calls();
        assert!(was_there(&calls) && fake.held().0 <= budget, "{} of {budget}", fake.held().0);
        for (i, (found, (before, tokens, want))) in found.into_iter().zip(&cases).enumerate() {
            let mut alone = before.clone();
            match cpu
                .forward(&mut [Sequence { tokens, drafted: 0, state: &mut alone, want: *want }])
                .remove(0)
            {
                Ok(_) if i == cancelled => {
                    assert!(matches!(found, Err(yuan::Error::Cancelled)), "{found:?}");
                    assert_eq!(states[i].position(), before.position());
                }
                Ok(expected) => {
                    same(&found.unwrap(), &expected, &format!("sequence {i}, {experts} experts"));
                    assert_eq!(states[i].position(), alone.position());
                    // And on, from what the pass has left.
                    let [there, here] =
                        [(&model, &mut states[i]), (&cpu, &mut alone)].map(|(model, state)| {
                            bits(&model.forward_one(&all[600..601], state, Want::Last).unwrap())
                        });
                    assert!(there == here, "behind sequence {i}, {experts} experts");
                }
                Err(expected) => {
                    assert_eq!(found.unwrap_err().to_string(), expected.to_string());
                    assert_eq!(states[i].position(), before.position());
                }
            }
        }
    }
}

fn same(found: &Output, all: &Output, what: &str) {
    match (found, all) {
        (Output::Best(best), Output::Rows(all)) => {
            let mut ranked: Vec<(u32, f32)> = (0..).zip(all.iter().copied()).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(best[..], ranked[..best.len()], "{what}");
        }
        (Output::Rows(found), Output::Rows(all)) => assert!(bits(found) == bits(all), "{what}"),
        _ => assert_eq!(found, all, "{what}"),
    }
}

/// Single tokens of several sequences are one graph, of their number.
#[test]
fn tokens_of_several_sequences_are_one_graph() {
    let folder = common::folder();
    let container = demo(&folder, DType::Q4_K);
    let kv = KvType::F16;
    let fake = fake(Schedule::Late);
    let (cpu, model, _) = models(&container, &fake, 12, 64, kv);
    let all = tokens(100);
    let mut states: Vec<State> = (0..10).map(|i| ahead(&cpu, &all[..3 * i + 2], kv)).collect();
    let mut expected = states.clone();
    for (round, count) in [10, 3, 10, 3, 1].into_iter().enumerate() {
        let tokens: Vec<[u32; 1]> = (0..count).map(|i| [all[50 + i + round]]).collect();
        let mut sequences: Vec<Sequence<'_>> = states[..count]
            .iter_mut()
            .zip(&tokens)
            .map(|(state, tokens)| Sequence { tokens, drafted: 0, state, want: Want::Last })
            .collect();
        fake.take_calls();
        let found = model.forward(&mut sequences);
        let calls = fake.take_calls();
        let prepared = calls.iter().filter(|c| matches!(c, Call::Prepare(_))).count();
        assert_eq!(prepared, usize::from([0, 1, 4].contains(&round)), "{count} sequences");
        assert_eq!(calls.iter().filter(|c| matches!(c, Call::QueuePrepared(_))).count(), 1);
        for (i, (found, state)) in found.into_iter().zip(&mut expected).enumerate() {
            let wanted = cpu.forward_one(&tokens[i], state, Want::Last).unwrap();
            assert!(bits(&found.unwrap().into_rows()) == bits(&wanted), "sequence {i} of {count}");
        }
    }
}
