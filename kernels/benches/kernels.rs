//! Speed of every operation on weights in cache, for each instruction set of this machine, in bytes of weights a second.
//!
//! `cargo bench -p yuan-kernels -- --quick`

use std::hint::black_box;

use bytemuck::{Pod, Zeroable, cast_slice_mut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use yuan_kernels::{
    BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8, BlockQ8_0, BlockQ8x8, PanelQ3K, PanelQ4_0, PanelQ4K,
    PanelQ6K, PanelQ8_0, available, panel::Panel,
};

const COLUMNS: usize = 2048;

/// `n` of anything with all bytes 0x2d: scales and floats are then ordinary numbers.
fn filled<T: Pod>(n: usize) -> Vec<T> {
    let mut items = vec![T::zeroed(); n];
    cast_slice_mut::<T, u8>(&mut items).fill(0x2d);
    items
}

fn bench(c: &mut Criterion) {
    let floats = vec![0.5_f32; COLUMNS];
    let mut blocks = vec![BlockQ8::zeroed(); COLUMNS / 256];
    let mut eights = vec![BlockQ8x8::zeroed(); COLUMNS / 256];
    for k in available() {
        macro_rules! op {
            ($name:ident, $weights:ty, $n:expr, |$w:ident| $call:expr) => {{
                #[allow(unused_mut)]
                let mut $w = filled::<$weights>($n);
                let mut group = c.benchmark_group(stringify!($name));
                group.throughput(Throughput::Bytes(size_of_val(&$w[..]) as u64));
                group.bench_function(k.name, |b| b.iter(|| $call));
                group.finish();
            }};
        }
        op!(quantize, f32, COLUMNS, |x| (k.quantize)(black_box(&x), &mut blocks));
        op!(quantize_x8, f32, COLUMNS, |x| (k.quantize_x8)(black_box(&x), &mut eights));
        op!(dot_f32, f32, COLUMNS, |w| (k.dot_f32)(black_box(&w), &floats));
        op!(dot_f16, f16, COLUMNS, |w| (k.dot_f16)(black_box(&w), &floats));
        op!(dot_bf16, bf16, COLUMNS, |w| (k.dot_bf16)(black_box(&w), &floats));
        op!(dot_q8_0, BlockQ8_0, COLUMNS / 32, |w| (k.dot_q8_0)(black_box(&w), &eights));
        op!(dot_q4_0, BlockQ4_0, COLUMNS / 32, |w| (k.dot_q4_0)(black_box(&w), &blocks));
        op!(dot_q3_k, BlockQ3K, COLUMNS / 256, |w| (k.dot_q3_k)(black_box(&w), &blocks));
        op!(dot_q4_k, BlockQ4K, COLUMNS / 256, |w| (k.dot_q4_k)(black_box(&w), &blocks));
        op!(dot_q6_k, BlockQ6K, COLUMNS / 256, |w| (k.dot_q6_k)(black_box(&w), &blocks));
        let mut acc = [[0.0; 16]];
        op!(panels_q8_0, PanelQ8_0, COLUMNS / 256, |w| PanelQ8_0::product(
            k,
            black_box(&w),
            &eights,
            &mut acc
        ));
        op!(panels_q4_0, PanelQ4_0, COLUMNS / 256, |w| PanelQ4_0::product(
            k,
            black_box(&w),
            &blocks,
            &mut acc
        ));
        op!(panels_q3_k, PanelQ3K, COLUMNS / 256, |w| PanelQ3K::product(k, black_box(&w), &blocks, &mut acc));
        op!(panels_q4_k, PanelQ4K, COLUMNS / 256, |w| PanelQ4K::product(k, black_box(&w), &blocks, &mut acc));
        op!(panels_q6_k, PanelQ6K, COLUMNS / 256, |w| PanelQ6K::product(k, black_box(&w), &blocks, &mut acc));
        // Four queries against 64 positions of a head of 256, and against those of a page.
        let (q, mut scores, mut y) = (vec![0.5; 4 * 256], vec![0.5; 4 * 512], vec![0.0; 4 * 256]);
        op!(scores_f16_page, f16, 512 * 256, |keys| (k.scores_f16)(black_box(&q), 256, &keys, &mut scores));
        op!(mix_f16_page, f16, 512 * 256, |values| (k.mix_f16)(black_box(&scores), 256, &values, &mut y));
        op!(scores_f32_page, f32, 512 * 256, |keys| (k.scores_f32)(black_box(&q), 256, &keys, &mut scores));
        op!(mix_f32_page, f32, 512 * 256, |values| (k.mix_f32)(black_box(&scores), 256, &values, &mut y));
        op!(mix_q8_0_page, BlockQ8_0, 512 * 8, |values| (k.mix_q8_0)(
            black_box(&scores),
            256,
            &values,
            &mut y
        ));
        // One, as in an answer.
        let (qa, mut scores, mut ya) = (vec![0.5; 256], vec![0.5; 512], vec![0.0; 256]);
        op!(scores_f16_alone, f16, 512 * 256, |keys| (k.scores_f16)(black_box(&qa), 256, &keys, &mut scores));
        op!(scores_q8_0_alone, BlockQ8_0, 512 * 8, |keys| {
            let of_each = keys.chunks_exact(8).zip(&mut scores);
            of_each.for_each(|(key, score)| *score = (k.dot_q8_0)(key, black_box(&eights[..1])));
        });
        op!(mix_f16_alone, f16, 512 * 256, |values| (k.mix_f16)(black_box(&scores), 256, &values, &mut ya));
        op!(mix_q8_0_alone, BlockQ8_0, 512 * 8, |values| (k.mix_q8_0)(
            black_box(&scores),
            256,
            &values,
            &mut ya
        ));
        // Sixteen, as in a prompt.
        let (qs, mut scores, mut ys) = (vec![0.5; 16 * 256], vec![0.5; 16 * 512], vec![0.0; 16 * 256]);
        op!(scores_f16_many, f16, 512 * 256, |keys| (k.scores_f16)(black_box(&qs), 256, &keys, &mut scores));
        op!(mix_f16_many, f16, 512 * 256, |values| (k.mix_f16)(black_box(&scores), 256, &values, &mut ys));
        op!(mix_q8_0_many, BlockQ8_0, 512 * 8, |values| (k.mix_q8_0)(
            black_box(&scores),
            256,
            &values,
            &mut ys
        ));
        let mut scores = vec![0.5; 4 * 64];
        op!(scores_f16, f16, 64 * 256, |keys| (k.scores_f16)(black_box(&q), 256, &keys, &mut scores));
        op!(mix_f16, f16, 64 * 256, |values| (k.mix_f16)(black_box(&scores), 256, &values, &mut y));
        op!(mix_q8_0, BlockQ8_0, 64 * 8, |values| (k.mix_q8_0)(black_box(&scores), 256, &values, &mut y));
        let up = vec![0.5; 256];
        op!(swiglu, f32, 256, |gate| (k.swiglu)(&mut gate, black_box(&up)));
        op!(exps, f32, 256, |x| (k.exps)(black_box(&mut x)));
        op!(exp_sum, f32, 256, |x| (k.exp_sum)(&mut x, black_box(1.0)));
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
