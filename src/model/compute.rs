//! Matrix products on the thread pool: the one place that knows kernels and threads.

use rayon::prelude::*;
use yuan_kernels::{
    BlockQ8, BlockQ8x8, Columns, DType, Kernels,
    blocks::QK,
    panel::{PANEL_ROWS, Panel, panels_float},
    with_panel,
};

use super::{
    activations::{Activations, Blocks},
    ahead,
    matrix::Matrix,
    phases::Phases,
    scratch::{Buffer, Scratch},
    threads::Threads,
};
use crate::error::{Error, Result};

/// How quantized weights meet activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Activations in 8 bits, integer sums: fast.
    #[default]
    Integer,
    /// Weights widened to f32 row by row: slow, for comparison with other implementations.
    Float,
}

/// The kernel table, the threads and the arithmetic of a model.
#[derive(Debug)]
pub struct Compute {
    /// The functions of this machine's instruction set, and how far ahead one token asks for weights.
    pub kernels: Kernels,
    /// Integer or float products.
    pub arithmetic: Arithmetic,
    /// Where intermediate results lie.
    pub scratch: Scratch,
    /// What passes do when.
    pub(super) phases: Phases,
    pools: Threads,
}

/// Weights of a piece of work where there is enough for all threads, in bytes.
const TASK_BYTES: usize = 128 << 10;
/// Weights that a thread multiplies sooner than it finds the next piece: these are seldom in a cache.
const LEAST_BYTES: usize = 16 << 10;
/// Numbers that one thread adds sooner than two.
const ADDED_TOGETHER: usize = 1 << 14;
/// Tokens that pass through a piece of a matrix in panels together.
const TOKENS: usize = 64;
/// Tokens for which rows are worth packing into panels.
const PACKED: usize = 16;

impl Compute {
    /// The kernels are those that `kernels` names, or else those of the environment variable `YUAN_KERNELS`, or else the best of this machine; `YUAN_PREFETCH` says how
    /// many bytes ahead one token asks for weights.
    ///
    /// # Errors
    /// [`Error::Argument`] for kernels that do not exist or do not run here, or a distance that is none.
    pub fn new(pools: Threads, arithmetic: Arithmetic, kernels: Option<&str>) -> Result<Self> {
        let named = |name: &str, how: &str| {
            yuan_kernels::by_name(name).ok_or_else(|| {
                let names: Vec<_> = yuan_kernels::available().map(|k| k.name).collect();
                let names = names.join(", ");
                Error::Argument(format!("{how}{name} does not run on this machine; choose from {names}"))
            })
        };
        let kernels = match (kernels, std::env::var("YUAN_KERNELS")) {
            (Some(name), _) => named(name, "the kernels ")?,
            (None, Ok(name)) => named(&name, "YUAN_KERNELS=")?,
            (None, Err(_)) => yuan_kernels::best(),
        };
        let ahead = ahead::named()?.unwrap_or(kernels.ahead);
        Ok(Self {
            kernels: Kernels { ahead, ..*kernels },
            arithmetic,
            scratch: Scratch::default(),
            phases: Phases::default(),
            pools,
        })
    }

    /// Chooses how far ahead one token asks for weights, by trial where need be (`ahead.rs`): for a model that reads so many bytes a token, in so much `memory`.
    pub fn tune(&mut self, bytes_per_token: usize, memory: u64) {
        self.kernels.ahead = ahead::best(&self.kernels, &self.pools, bytes_per_token, memory);
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.pools.count()
    }

    /// Threads that share the work of several tokens.
    pub fn batch_threads(&self) -> usize {
        self.pools.batch_count()
    }

    /// Whether this thread is one of those that compute.
    pub fn inside(&self) -> bool {
        self.pools.inside()
    }

    /// Runs a pass of this many tokens, whose rayon iterators and calls of [`Compute::run`] then stay in its pool.
    pub fn enter<R: Send>(&self, tokens: usize, pass: impl FnOnce() -> R + Send) -> R {
        self.pools.enter(tokens, pass)
    }

    /// Runs `work` with the pool of the pass behind rayon's parallel iterators.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pools.run(work)
    }

    /// `x += y`.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        let parts = x.par_chunks_mut(ADDED_TOGETHER).zip(y.par_chunks(ADDED_TOGETHER));
        self.each(parts, |(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
    }

    /// `x wᵀ`: [T, w.cols] activations to [T, w.rows]. Every output is one dot product computed by one thread, so
    /// the result does not depend on the number of threads or of rows of `x`.
    pub fn product(&self, w: &Matrix, x: &Activations) -> Buffer {
        let mut out = self.scratch.buffer(x.rows() * w.rows);
        self.product_into(w, x, &mut out);
        out
    }

    /// [`Compute::product`] into memory of the caller, [T, w.rows].
    pub fn product_into(&self, w: &Matrix, x: &Activations, out: &mut [f32]) {
        self.meet(w, x);
        // Each piece by itself: a thread that comes late finds some left.
        self.each_columns(out, w.rows, self.chunk(w, x), 1, |columns| self.product_rows(w, x, columns));
    }

    /// [`Compute::product`] of each of `all`. Of one row all of them are shared out together, so that threads wait for each other once.
    pub fn products<const N: usize>(&self, all: [&Matrix; N], x: &Activations) -> [Buffer; N] {
        if x.rows() != 1 {
            return all.map(|w| self.product(w, x));
        }
        let mut outs = all.map(|w| self.scratch.buffer(w.rows));
        all.iter().for_each(|w| self.meet(w, x));
        let pieces = all.iter().zip(&mut outs).flat_map(|(w, out)| {
            let chunk = self.chunk(w, x);
            out.chunks_mut(chunk).enumerate().map(move |(i, piece)| (w, i * chunk, piece))
        });
        self.in_turn(pieces, |(w, first, piece)| {
            self.product_rows(w, x, &mut Columns::of_row(piece, first));
        });
        outs
    }

    /// Makes `x` such that rows of `w` can be multiplied with it.
    fn meet(&self, w: &Matrix, x: &Activations) {
        debug_assert_eq!(w.cols, x.cols());
        if self.quantizes(w.dtype) {
            with_panel!(w.dtype, P => x.quantize::<<P as Panel>::X>(self), _ => {});
        }
    }

    /// Rows of `w` that are a piece of work: of a size that stays in cache while a batch passes, but enough pieces for all threads.
    fn chunk(&self, w: &Matrix, x: &Activations) -> usize {
        let pieces = (w.len_bytes() / TASK_BYTES).max(4 * self.cut_for());
        let pieces = pieces.min(w.len_bytes().saturating_mul(x.rows()) / LEAST_BYTES).max(1);
        let grain = if w.cuts_into_panels() { PANEL_ROWS } else { 1 };
        w.rows.div_ceil(pieces).next_multiple_of(grain)
    }

    /// Shares out a matrix of rows `width` long in pieces of `chunk` columns, so many `together`.
    pub fn each_columns(
        &self,
        matrix: &mut [f32],
        width: usize,
        chunk: usize,
        together: usize,
        work: impl Fn(&mut Columns<'_>) + Send + Sync,
    ) {
        if matrix.len() == width && chunk >= width {
            work(&mut Columns::of_row(matrix, 0));
        } else if matrix.len() == width {
            let pieces = matrix.par_chunks_mut(chunk).enumerate();
            let pieces = pieces.with_min_len(together).with_max_len(together);
            self.each(pieces, |(i, piece)| work(&mut Columns::of_row(piece, i * chunk)));
        } else {
            let mut pieces = Columns::split(matrix, width, chunk);
            self.each(pieces.par_iter_mut().with_min_len(together).with_max_len(together), work);
        }
    }

    fn quantizes(&self, dtype: DType) -> bool {
        dtype.is_quantized() && self.arithmetic == Arithmetic::Integer
    }

    /// The rows of `w` that `out` has columns for.
    fn product_rows(&self, w: &Matrix, x: &Activations, out: &mut Columns<'_>) {
        let packed = w.cuts_into_panels() && x.rows() >= PACKED && self.quantizes(w.dtype);
        if w.panels || packed {
            with_panel!(w.dtype, P => return self.product_panels::<P>(w, x, out), _ => {});
        }
        let mut widened = Vec::new();
        let range = out.range();
        for r in range.clone() {
            let weights = w.row(r);
            if w.dtype.is_quantized() && !self.quantizes(w.dtype) {
                widened.resize(w.cols, 0.0);
                w.dequantize_row(r, &mut widened);
            }
            for t in 0..x.rows() {
                out.row(t)[r - range.start] = match widened.as_slice() {
                    [] => self.dot(w.dtype, weights, x, t),
                    widened => (self.kernels.dot_f32)(widened, x.row(t)),
                };
            }
        }
    }

    /// [`Compute::product_rows`] by panels, which rows become first. `out` has whole panel rows. A block of tokens passes through all of
    /// them before the next: its activations stay in cache, and so do the panels.
    fn product_panels<P: Panel<X: Blocks>>(&self, w: &Matrix, x: &Activations, out: &mut Columns<'_>) {
        let groups = out.range().start / PANEL_ROWS..out.range().end / PANEL_ROWS;
        let packed = if w.panels { Vec::new() } else { w.pack::<P>(groups.clone()) };
        let width = w.cols / QK;
        let (mut one, mut many) = ([[0f32; PANEL_ROWS]], Vec::new());
        let acc = match x.rows() {
            1 => &mut one[..],
            rows => {
                many.resize(TOKENS.min(rows), [0f32; PANEL_ROWS]);
                &mut many[..]
            }
        };
        for first in (0..x.rows()).step_by(TOKENS) {
            let tokens = TOKENS.min(x.rows() - first);
            for (i, g) in groups.clone().enumerate() {
                let panels = if w.panels { w.panel_row(g) } else { &packed[i * width..][..width] };
                let acc = &mut acc[..tokens];
                acc.fill([0.0; PANEL_ROWS]);
                match self.arithmetic {
                    Arithmetic::Integer => {
                        let x = &x.q8()[first * x.blocks()..][..tokens * x.blocks()];
                        P::product(&self.kernels, panels, x, acc);
                    }
                    Arithmetic::Float => {
                        panels_float(
                            &self.kernels,
                            panels,
                            &x.data()[first * x.cols()..][..tokens * x.cols()],
                            acc,
                        );
                    }
                }
                for (t, acc) in acc.iter().enumerate() {
                    out.row(first + t)[i * PANEL_ROWS..][..PANEL_ROWS].copy_from_slice(acc);
                }
            }
        }
    }

    fn dot(&self, dtype: DType, weights: &[u8], x: &Activations, t: usize) -> f32 {
        use bytemuck::cast_slice;
        let k = &self.kernels;
        let q8 = || &x.q8::<BlockQ8>()[t * x.blocks()..][..x.blocks()];
        let q8x8 = || &x.q8::<BlockQ8x8>()[t * x.blocks()..][..x.blocks()];
        match dtype {
            DType::F32 => (k.dot_f32)(cast_slice(weights), x.row(t)),
            DType::F16 => (k.dot_f16)(cast_slice(weights), x.row(t)),
            DType::Bf16 => (k.dot_bf16)(cast_slice(weights), x.row(t)),
            DType::Q8_0 => (k.dot_q8_0)(cast_slice(weights), q8x8()),
            DType::Q4_0 => (k.dot_q4_0)(cast_slice(weights), q8()),
            DType::Q3_K => (k.dot_q3_k)(cast_slice(weights), q8()),
            DType::Q4_K => (k.dot_q4_k)(cast_slice(weights), q8()),
            DType::Q6_K => (k.dot_q6_k)(cast_slice(weights), q8()),
        }
    }
}
