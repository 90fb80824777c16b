//! Models on an emulated GPU.
#![allow(dead_code)]

use std::{ops::ControlFlow, sync::Arc};

use yuan::{
    config::RopePrecision,
    container::Container,
    gpu::{
        Choice, Costs, Settings,
        fake::{Fake, Schedule},
    },
    machine::budget::Limit,
    model::{KvType, Model, Options, Placement, State, Want},
    quantize::{self, DType},
};

use super::common;

/// Copies are free: everything is computed on the GPU.
pub const COPY: Costs = Costs { copy: 0.0, cpu_first: 1.0, cpu_more: 1.0 };
/// Nothing is ever copied.
pub const NEVER: Costs = Costs { copy: f64::INFINITY, cpu_first: 1.0, cpu_more: 1.0 };
/// Batches are copied, single tokens when their expert was used before.
pub const BOTH: Costs = Costs { copy: 2.0, cpu_first: 1.0, cpu_more: 0.5 };

/// Memory of the emulated GPU.
pub const MEMORY: u64 = 1 << 30;

/// Options of a GPU whose memory holds `experts` experts beside the trunk.
pub fn options(container: &Container, fake: &Fake, experts: u64, costs: Costs, base: Options) -> Options {
    let mut options = base;
    options.gpu = Settings {
        choice: Choice::Device(0),
        memory: Some(Limit::Bytes(MEMORY)),
        driver: Some(Arc::new(fake.clone())),
        costs: Some(costs),
    };
    let placement = Placement::new(container, &options).expect("everything fits");
    let room = placement.gpu.room().expect("the GPU takes part");
    let fixed = room.needs.trunk + room.needs.kv + room.needs.scratch;
    options.gpu.memory = Some(Limit::Bytes(fixed + experts * room.needs.expert));
    options
}

pub fn fake(schedule: Schedule) -> Fake {
    Fake::new(MEMORY, schedule)
}

pub fn go(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub fn demo(folder: &tempfile::TempDir, experts: DType) -> Container {
    with_trunk(folder, experts, DType::Q8_0)
}

pub fn with_trunk(folder: &tempfile::TempDir, experts: DType, dense: DType) -> Container {
    let options = quantize::Options { experts, dense, rope: Some(RopePrecision::F32), rope_base: None };
    common::convert(&common::demo(), &options, &folder.path().join("demo.gguf"))
}

pub fn base(kv: KvType) -> Options {
    Options { threads: 2, context: 256, kv, ..Options::default() }
}

/// On a GPU with room for `experts` of 64.
pub fn on_gpu(container: &Container, fake: &Fake, experts: u64, costs: Costs, kv: KvType) -> Options {
    options(container, fake, experts, costs, base(kv))
}

pub fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 7 + 300) % 4000).collect()
}

/// Bits of all logits: a prompt of `prompt` tokens, then one by one.
pub fn logits(model: &Model, tokens: &[u32], prompt: usize, kv: KvType) -> Vec<u32> {
    let mut state = State::new(model.config(), 256, kv).unwrap();
    let mut out = model.forward_one(&tokens[..prompt], &mut state, Want::All).unwrap();
    for token in &tokens[prompt..] {
        out.extend(model.forward_one(&[*token], &mut state, Want::All).unwrap());
    }
    bits(&out)
}

pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}
