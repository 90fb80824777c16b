//! Models on an emulated GPU.

use std::sync::Arc;

use yuan::{
    container::Container,
    gpu::{
        Choice, Costs, Settings,
        fake::{Fake, Schedule},
    },
    model::{Options, Placement},
    pager::budget::Limit,
};

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
