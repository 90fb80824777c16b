//! The rules of the sources, and that every kernel can be launched.

use std::{collections::BTreeSet, fs, path::Path};

use yuan_cuda::{KERNELS, Launch, launch};
use yuan_kernels::DType;

fn sources() -> Vec<(String, String)> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the folder of the crate");
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).expect("UTF-8")))
        .collect()
}

#[test]
fn sources_stand_alone_and_have_one_idea() {
    let sources = sources();
    assert!(sources.len() > 15);
    for (path, text) in sources {
        for include in text.lines().filter(|l| l.starts_with("#include")) {
            assert!(include.contains('"'), "{path}: {include}: NVRTC has no headers of a system");
        }
        assert!(text.lines().count() <= 300, "{path} has more than 300 lines");
        assert!(text.starts_with("//"), "{path} does not say what it is");
    }
}

#[test]
fn float_atomics_are_nowhere() {
    for (path, text) in sources() {
        assert!(!text.contains("atomicAdd"), "{path}: sums have an order");
    }
}

#[test]
fn every_kernel_has_a_launch_and_every_launch_a_kernel() {
    let mut launched = BTreeSet::new();
    let mut add = |launch: Option<Launch>| launched.extend(launch.map(|l| l.kernel));
    for dtype in DType::ALL {
        add(launch::embed(dtype, 3));
        (1..=9).for_each(|tokens| add(launch::product(dtype, 32, 512, tokens)));
        add(launch::heads(dtype, 2, 64, 3));
        add(launch::attend_spans(dtype, 2, 64, 2, 3));
        add(launch::attend_many(dtype, 2, 64, 30));
        add(launch::expert_gate_up(dtype, 4, 3));
        add(launch::expert_down(dtype, 4, 512));
        add(launch::expert_gate_up_many(dtype, 40, 8, 3));
        add(launch::expert_down_many(dtype, 40, 8, 512));
    }
    add(launch::rms_norm(2048, 3));
    add(launch::quantize(2048, 3));
    add(launch::filter_pairs(2048, 3));
    add(launch::attend_join(2, 3));
    add(launch::route(32, 2, 3));
    add(launch::sort_slots(32));
    add(launch::combine(2048, 3));
    add(launch::top_k(135_040, 40));
    assert_eq!(launched, KERNELS.iter().map(|k| k.name).collect());
}

#[test]
fn grids_cover_the_true_geometry() {
    let q = launch::product(DType::Q8_0, 4096, 2048, 1).expect("a launch");
    assert_eq!((q.kernel, q.grid), ("product_q8_0_1", [256, 1, 1]));
    let head = launch::product(DType::Q8_0, 135_040, 2048, 8).expect("a launch");
    assert_eq!((head.kernel, head.grid), ("product_q8_0_8", [8440, 1, 1]));
    let gate_up = launch::expert_gate_up(DType::Q4_K, 2, 32).expect("a launch");
    assert_eq!(gate_up.grid, [2, 512, 1]);
    // 1024 slots are 32 tiles at least, and each of 32 experts can begin one more.
    let down = launch::expert_down_many(DType::Q4_K, 1024, 32, 2048).expect("a launch");
    assert_eq!((down.grid, down.block), ([32, 64, 1], [128, 1, 1]));
    assert_eq!(
        launch::attend_spans(DType::F16, 16, 256, launch::spans(4097), 1).map(|l| l.grid),
        Some([16, 9, 1])
    );
}
