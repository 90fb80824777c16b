//! What the pager itself costs, apart from drive and computation: a layer's request of two experts of Yuan2.0-M32.
//!
//! `cargo bench --bench paging`; whole models under a cap of memory are the matter of `tools/bench-paging`.

use std::{hint::black_box, io, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use yuan::{
    machine::source::Source,
    pager::{Eviction, Pager, Policy, Shape, transient_slots},
};

/// Those of M32, two experts a token; the layers are fewer, so that all slots have memory.
const SHAPE: Shape = Shape { experts: 32, tiles: 32, tile_bytes: 884_736 };
const LAYERS: usize = 2;
const USED: usize = 2;
const KEPT: usize = 16;

/// A drive that takes no time.
struct Instant;

impl Source for Instant {
    fn read_at(&self, buffer: &mut [u8], _: u64) -> io::Result<usize> {
        // One byte of every page, as a drive's direct access leaves them to the caches.
        buffer.iter_mut().step_by(4096).for_each(|b| *b = 1);
        Ok(buffer.len())
    }
}

fn pager() -> Pager {
    let offsets = (0..LAYERS * SHAPE.experts).map(|i| (i * SHAPE.tiles * SHAPE.tile_bytes) as u64).collect();
    let policy = Policy::new(Eviction::Lfu, LAYERS, SHAPE.experts, KEPT);
    let transient = transient_slots(USED, false);
    Pager::streamed(Box::new(Instant), offsets, SHAPE, policy, transient, 0, Path::new("memory"))
        .expect("memory for 19 experts")
}

/// A token of one layer: ask, take every tile, give back.
fn token(pager: &Pager, layer: usize, experts: &[usize]) {
    let pass = pager.begin();
    let request = pass.request(layer, experts, USED).expect("experts that there are");
    for rank in 0..request.order().len() {
        let expert = request.expert(rank).expect("a slot");
        for t in 0..request.tiles() {
            black_box(expert.tile(t).expect("a tile"));
        }
        drop(expert);
        request.finish(rank);
    }
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("paging");
    let pager = pager();
    token(&pager, 0, &[3, 5]);
    group.bench_function("two experts that are there", |b| b.iter(|| token(&pager, 0, &[3, 5])));

    let mut at = 0;
    group.throughput(Throughput::Bytes((USED * SHAPE.tiles * SHAPE.tile_bytes) as u64));
    group.bench_function("two experts that are read", |b| {
        b.iter(|| {
            at = (at + USED) % SHAPE.experts;
            token(&pager, 1, &[at, at + 1]);
        });
    });
    group.finish();
}

fn policy(c: &mut Criterion) {
    let mut policy = Policy::new(Eviction::Lfu, 24, 32, 192);
    let mut n = 0u64;
    c.bench_function("policy/a request of one token, a quarter of M32", |b| {
        b.iter(|| {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (layer, a) = ((n >> 33) as usize % 24, (n >> 40) as usize % 32);
            black_box(policy.request(layer, &[a, (a + 1 + (n >> 50) as usize % 31) % 32], 2))
        });
    });
}

criterion_group!(benches, requests, policy);
criterion_main!(benches);
