//! The model on an emulated GPU: the CPU's numbers wherever experts are, the same sessions, and errors that leave a usable state.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use gpu::{BOTH, COPY, NEVER, fake, options, state};
use yuan::{
    container::Container,
    gpu::{
        Costs,
        fake::{Fake, Schedule},
    },
    model::{KvType, Model, Options, Want},
    quantize,
};

fn demo(folder: &tempfile::TempDir) -> Container {
    let options = quantize::Options { rope: Some(yuan::config::RopePrecision::F32), ..Default::default() };
    common::convert(&common::demo(), &options, &folder.path().join("demo.gguf"))
}

fn base(kv: KvType) -> Options {
    Options { threads: 2, context: 256, kv, ..Options::default() }
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 7 + 300) % 4000).collect()
}

/// All logits: a prompt of `prompt` tokens, then one by one.
fn logits(model: &Model, tokens: &[u32], prompt: usize, kv: KvType) -> Vec<f32> {
    let mut state = state(model, kv);
    let mut out = model.forward(&tokens[..prompt], &mut state, Want::All).unwrap();
    for token in &tokens[prompt..] {
        out.extend(model.forward(&[*token], &mut state, Want::All).unwrap());
    }
    out
}

/// The largest difference between the GPU's logits and the CPU's.
fn worst(found: &[f32], expected: &[f32]) -> f32 {
    common::error(found, expected)
}

#[test]
fn logits_are_those_of_the_cpu_wherever_experts_are() {
    let folder = common::folder();
    let container = demo(&folder);
    let cpu = Model::load(&container, &base(KvType::F16)).unwrap();
    let placements: [(u64, Costs, Schedule); 4] = [
        (64, COPY, Schedule::Early),
        (9, COPY, Schedule::Late),
        (9, BOTH, Schedule::Early),
        (0, NEVER, Schedule::Late),
    ];
    for (experts, costs, schedule) in placements {
        let fake = fake(schedule);
        let model =
            Model::load(&container, &options(&container, &fake, experts, costs, base(KvType::F16))).unwrap();
        for (n, prompt) in [(3, 1), (10, 8), (14, 12)] {
            let (tokens, kv) = (tokens(n), KvType::F16);
            let error = worst(&logits(&model, &tokens, prompt, kv), &logits(&cpu, &tokens, prompt, kv));
            eprintln!("{experts} experts, {schedule:?}, {prompt} tokens: {error}");
            assert!(error < 1e-3, "{experts} experts, prompt of {prompt}: {error}");
        }
    }
    drop(cpu);
    let _: Option<Fake> = None;
}
