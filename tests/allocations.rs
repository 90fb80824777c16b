//! What a token of an answer allocates, counted by an allocator that counts.

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{
        AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
};

use common::paging::{config, options, tokens};
use yuan::{
    config::ModelConfig,
    container::Container,
    convert::Conversion,
    model::{KvType, Model, Options, Sequence, Want},
    pager::Paging,
    quantize::{self, Plan},
};

/// The system's allocator, which counts.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on as it is to the system's allocator, which keeps the promises of the trait.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of a token in the median, behind others, of a model of so many layers.
fn of_a_token(layers: usize, threads: usize) -> usize {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let config = ModelConfig { layers, ..config() };
    let plan = Plan::new(config, &quantize::Options::default()).unwrap();
    Conversion::synth(plan, 5, &common::letters(512)).unwrap().write(&path, &|_| true).unwrap();
    let container = Container::open(&path).unwrap();
    let model = Model::load(&container, &Options { threads, ..options(Paging::Mapped) }).unwrap();
    let mut state = model.state(200, KvType::F16).unwrap();
    model.forward_one(&tokens(100), &mut state, Want::Nothing).unwrap();
    let mut counts: Vec<usize> = tokens(41)
        .into_iter()
        .map(|token| {
            let before = COUNT.load(SeqCst);
            let sequence = Sequence { tokens: &[token], drafted: 0, state: &mut state, want: Want::Best(1) };
            let output = model.forward(&mut [sequence]).remove(0).unwrap();
            // As a session does.
            state.reuse(output.into_rows());
            COUNT.load(SeqCst) - before
        })
        .collect();
    counts.sort_unstable();
    counts[counts.len() / 2]
}

/// Lists are short (`src/list.rs`), and intermediate results lie in memory that is used again (`src/model/scratch.rs`), whatever stands before the token. Where others are to stay awake,
/// they are told so, once a token, in two pieces of memory (`src/model/threads.rs`).
#[test]
fn a_token_allocates_nothing() {
    for (threads, most) in [(1, 0), (2, 2)] {
        for layers in [2, 6] {
            let allocations = of_a_token(layers, threads);
            assert!(allocations <= most, "{threads} threads, {layers} layers: {allocations} allocations");
        }
    }
}
