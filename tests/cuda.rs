//! The model on a GPU of this machine: the CPU's bits. Where there is none, the tests say that they are skipped; `.ci/run cuda` shows them the
//! driver of `tests/cuda_driver`.

mod common;

use yuan::{
    config::RopePrecision,
    gpu::{Choice, Settings},
    machine::budget::Limit,
    model::{GpuPlacement, KvType, Model, Options, Output, Placement, Sequence, State, Want},
    quantize,
};

/// Bits of all logits: a prompt of `prompt` tokens, then one by one.
fn logits(model: &Model, tokens: &[u32], prompt: usize, kv: KvType) -> Vec<u32> {
    let mut state = State::new(model.config(), 1024, kv).unwrap();
    let mut out = model.forward_one(&tokens[..prompt], &mut state, Want::All).unwrap();
    for token in &tokens[prompt..] {
        out.extend(model.forward_one(&[*token], &mut state, Want::All).unwrap());
    }
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn logits_are_those_of_the_cpu_wherever_experts_are() {
    let folder = common::folder();
    let options = quantize::Options { rope: Some(RopePrecision::F32), ..Default::default() };
    let container = common::convert(&common::demo(), &options, &folder.path().join("demo.gguf"));
    for kv in [KvType::F16, KvType::Q8_0] {
        let off = Settings { choice: Choice::Off, ..Settings::default() };
        let base = Options { context: 1024, kv, gpu: off, ..Options::default() };
        let gpu = |memory| Options {
            gpu: Settings { choice: Choice::Device(0), memory: Some(memory), ..Settings::default() },
            ..base.clone()
        };
        let placement = match Placement::new(&container, &gpu(Limit::Bytes(2 << 30))) {
            Ok(placement) => placement,
            Err(problem) => return eprintln!("skipped: {problem}"),
        };
        let GpuPlacement::On { device, room, .. } = placement.gpu else { panic!("the GPU takes part") };
        let shapes = [(9, 1), (20, 8), (60, 40), (620, 600)];
        // An emulated one takes minutes for a long prompt.
        let shapes = if device.contains("emulated") { &shapes[..2] } else { &shapes };
        let fixed = room.needs.trunk + room.needs.kv + room.needs.scratch;
        let cpu = Model::load(&container, &base).unwrap();
        for experts in [64, 12, 0] {
            // With all experts the embedding too.
            let embedding = if experts == 64 { room.needs.embedding } else { 0 };
            let memory = Limit::Bytes(fixed + experts * room.needs.expert + embedding);
            let model = Model::load(&container, &gpu(memory)).unwrap();
            for &(n, prompt) in shapes {
                let tokens: Vec<u32> = (0..n).map(|i| (i * i * 31 + i * 7 + 300) % 4000).collect();
                let (found, expected) =
                    (logits(&model, &tokens, prompt, kv), logits(&cpu, &tokens, prompt, kv));
                assert!(found == expected, "{experts} experts, {kv:?}, prompt of {prompt}");
            }
            let best = |model: &Model| {
                let mut state = State::new(model.config(), 1024, kv).unwrap();
                let best =
                    Sequence { tokens: &[300, 338], drafted: 0, state: &mut state, want: Want::Best(40) };
                model.forward(&mut [best]).remove(0).unwrap()
            };
            let (Output::Best(best), Output::Rows(all)) = (best(&model), best(&cpu)) else {
                panic!("a GPU ranks them, and the CPU does not");
            };
            let mut ranked: Vec<(u32, f32)> = (0..).zip(all).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(best, ranked[..40]);
            eprintln!("{device}, {experts} experts, {kv:?}: the same bits; {:?}", model.gpu_use().unwrap());
        }
    }
}
