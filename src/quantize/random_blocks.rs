//! Random tensors made as blocks, without weights that would have to be encoded: 22 GB in a minute or two.
//!
//! Every word of a tensor is a function of the seed, the tensor's name and the word's place. The blocks' scales are then
//! put right, so that quants are evenly distributed and weights have mean 0 and the deviation that their role asks for.

use bytemuck::{Pod, bytes_of, pod_read_unaligned};
use half::{bf16, f16};
use rayon::prelude::*;
use yuan_kernels::{
    BlockQ3K, BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8_0, DType, PanelQ3K, PanelQ4_0, PanelQ4K, PanelQ6K,
    PanelQ8_0,
};

use super::{
    plan::{Item, SourceOf},
    synth::{Scale, mix, stream},
};

/// Blocks, or eights of weights, of the piece that one worker makes at a time; any multiple of 8 gives the same tensor.
const PIECE: usize = 1024;

/// The stored bytes of a random tensor in place of `item`: row-major blocks, or the panels of matrices and neuron tiles. They depend on
/// the seed and on the item's name, shape and type, not on the number of threads.
///
/// Experts have one deviation for both of their matrices, that of their input; padding neurons are random too.
pub fn random_tensor(item: &Item, seed: u64) -> Vec<u8> {
    let stream = stream(seed, &item.name);
    let scale = match (item.rows, item.name.ends_with(".bias")) {
        (1, true) => Scale::BIAS,
        (1, false) => Scale::NORM,
        _ => Scale::matrix(item.cols),
    };
    let mut out = vec![0; usize::try_from(item.bytes()).expect("a tensor that fits memory")];
    let d = scale.deviation;
    match (item.dtype, item.panels || matches!(item.source, SourceOf::Tiles { .. })) {
        (DType::F32, _) => floats(&mut out, |i| scale.weight(stream, i).to_le_bytes()),
        (DType::F16, _) => floats(&mut out, |i| f16::from_f32(scale.weight(stream, i)).to_le_bytes()),
        (DType::Bf16, _) => floats(&mut out, |i| bf16::from_f32(scale.weight(stream, i)).to_le_bytes()),
        (DType::Q4_0, false) => blocks(&mut out, stream, |block| q4_0(block, d)),
        (DType::Q8_0, false) => blocks(&mut out, stream, |block| q8_0(block, d)),
        (DType::Q8_0, true) => blocks(&mut out, stream, |panel| panel_q8_0(panel, d)),
        (DType::Q3_K, false) => blocks(&mut out, stream, |block| q3_k(block, d)),
        (DType::Q3_K, true) => blocks(&mut out, stream, |panel| panel_q3_k(panel, d)),
        (DType::Q4_K, false) => blocks(&mut out, stream, |block| q4_k(block, d)),
        (DType::Q6_K, false) => blocks(&mut out, stream, |block| q6_k(block, d)),
        (DType::Q6_K, true) => blocks(&mut out, stream, |panel| panel_q6_k(panel, d)),
        (DType::Q4_0, true) => blocks(&mut out, stream, |panel| panel_q4_0(panel, d)),
        (DType::Q4_K, true) => blocks(&mut out, stream, |panel| panel_q4_k(panel, d)),
    }
    out
}

fn floats<const N: usize>(out: &mut [u8], weight: impl Fn(usize) -> [u8; N] + Sync) {
    out.as_chunks_mut().0.par_chunks_mut(8 * PIECE).enumerate().for_each(|(piece, out)| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = weight(8 * PIECE * piece + i);
        }
    });
}

/// Fills `out` with random words, then lets `put_right` have each block.
fn blocks<B: Pod>(out: &mut [u8], stream: u64, put_right: impl Fn(&mut B) + Sync) {
    let piece_bytes = PIECE * size_of::<B>();
    out.par_chunks_mut(piece_bytes).enumerate().for_each(|(piece, out)| {
        for (i, out) in out.chunks_mut(8).enumerate() {
            let word = mix(stream ^ (piece * (piece_bytes / 8) + i) as u64);
            out.copy_from_slice(&word.to_le_bytes()[..out.len()]);
        }
        for out in out.chunks_exact_mut(size_of::<B>()) {
            let mut block = pod_read_unaligned(out);
            put_right(&mut block);
            out.copy_from_slice(bytes_of(&block));
        }
    });
}

/// Where quants are centred half a step below 0, scales are as often negative as positive.
fn with_sign_of(random: f16, size: f32) -> f16 {
    f16::from_f32(size.copysign(if random.is_sign_negative() { -1.0 } else { 1.0 }))
}

// The mean squares of quants and scales, each evenly distributed.

/// Of -8..=7.
const SQUARE_NIBBLE: f32 = 21.5;
/// Of -128..=127.
const SQUARE_BYTE: f32 = 5461.5;
/// Of -4..=3.
const SQUARE_3_BITS: f32 = 5.5;
/// Of -32..=31.
const SQUARE_6_BITS: f32 = 341.5;
/// Of -7.5, -6.5, ..., 7.5: nibbles from which the minimum takes 7.5.
const SQUARE_CENTRED: f32 = 21.25;
/// Of 32..=63.
const SQUARE_SCALE_6: f32 = 2341.5;
/// Of -32..=-17 and 16..=31.
const SQUARE_SIGNED_6: f32 = 597.5;
/// Of 64..=127.
const SQUARE_SCALE_8: f32 = 9461.5;

fn q4_0(block: &mut BlockQ4_0, deviation: f32) {
    block.d = with_sign_of(block.d, deviation / SQUARE_NIBBLE.sqrt());
}

fn q8_0(block: &mut BlockQ8_0, deviation: f32) {
    block.d = with_sign_of(block.d, deviation / SQUARE_BYTE.sqrt());
}

/// `d` and `dmin` for scales of 32..=63 and mins that equal them.
fn scales_q4_k(deviation: f32) -> (f16, f16) {
    let d = f16::from_f32(deviation / (SQUARE_CENTRED * SQUARE_SCALE_6).sqrt());
    (d, f16::from_f32(7.5 * d.to_f32()))
}

fn q4_k(block: &mut BlockQ4K, deviation: f32) {
    (block.d, block.dmin) = scales_q4_k(deviation);
    let scales = block.unpack_scales().0.map(|scale| scale | 32);
    block.scales = BlockQ4K::pack_scales(&scales, &scales);
}

fn q3_k(block: &mut BlockQ3K, deviation: f32) {
    block.d = d_q3_k(deviation);
    // The second half of the numbers, and the first: of 0..=15 and 48..=63, less 32, none is small.
    for byte in &mut block.scales[8..] {
        *byte = far_from_32(*byte);
    }
}

fn d_q3_k(deviation: f32) -> f16 {
    f16::from_f32(deviation / (SQUARE_3_BITS * SQUARE_SIGNED_6).sqrt())
}

/// Four numbers of 2 bits, the upper ones of 6: 1 and 2 become 0 and 3.
fn far_from_32(upper: u8) -> u8 {
    let top = upper & 0xaa;
    top | top >> 1
}

fn q6_k(block: &mut BlockQ6K, deviation: f32) {
    block.d = d_q6_k(deviation);
    block.scales = block.scales.map(scale_q6_k);
}

fn d_q6_k(deviation: f32) -> f16 {
    f16::from_f32(deviation / (SQUARE_6_BITS * SQUARE_SCALE_8).sqrt())
}

/// 64..=127, or the negative of it.
fn scale_q6_k(random: i8) -> i8 {
    if random < 0 { -(random & 63 | 64) } else { random | 64 }
}

fn panel_q3_k(panel: &mut PanelQ3K, deviation: f32) {
    panel.d = [d_q3_k(deviation); 16];
    for rows in &mut panel.scales[8..] {
        *rows = rows.map(far_from_32);
    }
}

fn panel_q8_0(panel: &mut PanelQ8_0, deviation: f32) {
    let d = deviation / SQUARE_BYTE.sqrt();
    panel.d = panel.d.map(|row| row.map(|random| with_sign_of(random, d)));
}

fn panel_q4_0(panel: &mut PanelQ4_0, deviation: f32) {
    let d = deviation / SQUARE_NIBBLE.sqrt();
    panel.d = panel.d.map(|row| row.map(|random| with_sign_of(random, d)));
}

fn panel_q4_k(panel: &mut PanelQ4K, deviation: f32) {
    let (d, dmin) = scales_q4_k(deviation);
    (panel.d, panel.dmin) = ([d; 16], [dmin; 16]);
    panel.mins_lo = panel.scales_lo;
    // Two bits each: the upper one of a scale is set, the lower one random; the mins have the same.
    panel.hi = panel.hi.map(|random| {
        let scales = random & 0b0101 | 0b1010;
        scales | (scales << 4)
    });
}

fn panel_q6_k(panel: &mut PanelQ6K, deviation: f32) {
    panel.d = [d_q6_k(deviation); 16];
    panel.scales = panel.scales.map(|rows| rows.map(scale_q6_k));
}

#[cfg(test)]
mod tests {
    use yuan_kernels::{
        dequantize,
        panel::{Panel, panel_bytes},
        with_panel,
    };

    use super::*;

    fn item(name: &str, dtype: DType, rows: usize, cols: usize, tiles: bool) -> Item {
        let source = match tiles {
            true => SourceOf::Tiles { w1: "w1".into(), w2: "w2".into() },
            false => SourceOf::Matrix("w".into()),
        };
        Item { name: name.into(), source, dtype, rows, cols, panels: false }
    }

    /// The weights of a random tensor, in no order where it is tiles.
    fn weights(item: &Item, seed: u64) -> Vec<f32> {
        let bytes = random_tensor(item, seed);
        assert_eq!(bytes.len() as u64, item.bytes());
        let row_major: Vec<u8> = match item.source {
            SourceOf::Tiles { .. } => with_panel!(
                item.dtype,
                P => {
                    let panels = bytes.chunks_exact(size_of::<P>()).map(pod_read_unaligned::<P>);
                    panels.flat_map(|panel| bytes_of(&panel.to_rows()).to_vec()).collect()
                },
                _ => unreachable!("no tiles")
            ),
            _ => bytes,
        };
        let mut out = vec![0.0; item.rows * item.cols];
        dequantize(item.dtype, &row_major, &mut out);
        out
    }

    fn mean_and_variance(weights: &[f32]) -> (f64, f64) {
        let n = weights.len() as f64;
        let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / n;
        (mean, weights.iter().map(|&w| (f64::from(w) - mean).powi(2)).sum::<f64>() / n)
    }

    fn matrices() -> Vec<Item> {
        let matrices = DType::ALL.into_iter().map(|dtype| item("m", dtype, 256, 2048, false));
        let with_tiles = DType::ALL.into_iter().filter(|dtype| panel_bytes(*dtype).is_some());
        let tiles = with_tiles.map(|dtype| item("t", dtype, 768, 2048, true));
        matrices.chain(tiles).collect()
    }

    #[test]
    fn weights_have_the_variance_that_they_should() {
        for item in matrices() {
            let (mean, variance) = mean_and_variance(&weights(&item, 1));
            assert!((variance * 2048.0 - 1.0).abs() < 0.02, "{item:?}: {variance}");
            assert!(mean.abs() < 0.01 / 2048_f64.sqrt(), "{item:?}: {mean}");
        }
    }

    #[test]
    fn vectors_are_about_what_their_role_asks() {
        let norm = weights(&item("blk.0.attn_norm.weight", DType::F32, 1, 2048, false), 1);
        let bias = weights(&item("blk.0.conv1.bias", DType::F32, 1, 2048, false), 1);
        for (vector, about) in [(norm, 1.0), (bias, 0.0)] {
            let (mean, variance) = mean_and_variance(&vector);
            assert!(
                (mean - about).abs() < 0.01 && (variance.sqrt() - 0.05).abs() < 0.005,
                "{mean} {variance}"
            );
        }
    }

    #[test]
    fn quants_occur_evenly() {
        let bytes = random_tensor(&item("t", DType::Q4_K, 768, 2048, true), 5);
        let mut counts = [0_u32; 16];
        for panel in bytes.chunks_exact(2304) {
            for byte in &panel[256..] {
                counts[usize::from(byte & 15)] += 1;
                counts[usize::from(byte >> 4)] += 1;
            }
        }
        let even = 768.0 * 2048.0 / 16.0;
        assert!(counts.iter().all(|&count| (f64::from(count) / even - 1.0).abs() < 0.02), "{counts:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_tensor_on_any_threads() {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for item in matrices() {
            assert!(random_tensor(&item, 7) == one.install(|| random_tensor(&item, 7)), "{item:?}");
        }
    }

    #[test]
    fn no_two_tensors_are_equal() {
        let a = item("blk.0.ffn_expert.0", DType::Q4_K, 768, 256, true);
        let b = item("blk.0.ffn_expert.1", DType::Q4_K, 768, 256, true);
        assert!(random_tensor(&a, 0) != random_tensor(&b, 0));
        assert!(random_tensor(&a, 0) != random_tensor(&a, 1));
        // Nor two panels of one.
        let bytes = random_tensor(&a, 0);
        let panels: std::collections::HashSet<_> = bytes.chunks(2304).collect();
        assert_eq!(panels.len(), bytes.len() / 2304);
    }

    #[test]
    fn the_last_piece_may_be_short() {
        // 11 blocks of 18 bytes: 198, no multiple of 8.
        assert_eq!(random_tensor(&item("m", DType::Q4_0, 11, 32, false), 0).len(), 198);
        assert!(random_tensor(&item("m", DType::Q4_0, 0, 32, false), 0).is_empty());
    }
}
