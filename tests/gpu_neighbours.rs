//! Sequences in common passes on an emulated GPU, beside others whose keys and values only the CPU knows.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use std::sync::atomic::Ordering::Relaxed;

use common::{
    paging::{container, resident},
    schedule::{Alone, Schedules, seeds},
};
use gpu::{BOTH, COPY, NEVER, fake, on_gpu};
use yuan::{
    gpu::fake::Schedule,
    model::{KvType, Model},
};

#[test]
fn a_sequence_does_not_notice_its_neighbours_on_a_gpu() {
    let folder = common::folder();
    let container = container(&folder);
    let alone = Alone::new(&resident(&container), &KvType::SAMPLES);
    for (i, (experts, costs)) in [(24, COPY), (5, BOTH), (0, NEVER)].into_iter().enumerate() {
        let fake = fake(Schedule::Late);
        let model = Model::load(&container, &on_gpu(&container, &fake, experts, costs, KvType::F16)).unwrap();
        let schedules = Schedules::new(&[1, 2, 7], false);
        seeds(3).for_each(|seed| alone.check(&model, 3 * seed + i as u64, &schedules));
        schedules.tell(&format!("{experts} experts on the GPU"));
        assert!(schedules.done.load(Relaxed) > 6, "{experts} experts");
        assert!(model.gpu_use().is_some_and(|used| used.there + used.copied + used.on_cpu > 0));
    }
}
