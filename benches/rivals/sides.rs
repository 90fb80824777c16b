//! The same work for ours and for ggml, plain and repacked, at the shapes of Yuan2.0-M32.

use std::{hint::black_box, iter::repeat_n};

use yuan::{
    container::TileLayout,
    model::bench::{self, Bench, Trunk},
    quantize::encode,
};
use yuan_ggml::rival::{self, Buffer, Rival};
use yuan_kernels::{DType, panel::panel_bytes};

/// Rows and columns of one expert's `w1` and `w2`, of the attention's projections, and of the head.
pub const SHAPES: [(usize, usize); 5] =
    [(16384, 2048), (2048, 8192), (4096, 2048), (2048, 4096), (135_040, 2048)];
pub const TYPES: [DType; 5] = [DType::Q3_K, DType::Q4_K, DType::Q4_0, DType::Q8_0, DType::Q6_K];
pub const HIDDEN: usize = 2048;
pub const FFN: usize = 8192;
pub const EXPERTS: usize = 32;
pub const USED: usize = 2;

/// Weights that a side walks through before it comes back to the first: more than any cache holds.
const OUT_OF_CACHE: usize = 256 << 20;

/// Tokens of a batch for a matrix of so many rows. The head sees small batches only.
pub fn batches(rows: usize) -> impl Iterator<Item = usize> + Clone {
    [1, 8, 32, 512].into_iter().filter(move |&tokens| rows < 100_000 || tokens < 32)
}

/// A program that does the work once.
pub struct Side<'a> {
    pub name: &'static str,
    pub run: Box<dyn FnMut() + 'a>,
}

/// Threads of both programs.
pub struct Threads {
    pub ours: Bench,
    pub ggml: Rival,
}

impl Threads {
    pub fn new(threads: usize) -> Self {
        Self { ours: Bench::new(threads).expect("threads"), ggml: Rival::new(threads) }
    }
}

/// Copies of one matrix.
pub struct Matrices {
    dtype: DType,
    rows: usize,
    cols: usize,
    ours: Vec<Trunk>,
    plain: rival::Weights,
    repacked: Option<rival::Weights>,
}

impl Matrices {
    pub fn new(dtype: DType, rows: usize, cols: usize) -> Self {
        let bytes = matrix(dtype, rows, cols);
        let copies = OUT_OF_CACHE.div_ceil(bytes.len()).max(2);
        let filled = |buffer| {
            let mut weights = rival::Weights::new(buffer, dtype, [1, rows, cols], copies)?;
            (0..copies).for_each(|i| weights.set(i, &bytes));
            Some(weights)
        };
        // As containers have them.
        let panels = panel_bytes(dtype).is_some();
        let ours = (0..copies).map(|_| Trunk::new(dtype, rows, cols, panels, &bytes).expect("a matrix"));
        Self {
            dtype,
            rows,
            cols,
            ours: ours.collect(),
            plain: filled(Buffer::Plain).expect("ggml has every type"),
            repacked: filled(Buffer::Repacked),
        }
    }

    /// Products that one run computes, so that it reads [`OUT_OF_CACHE`] bytes for few tokens and one matrix for many.
    pub fn products(&self, tokens: usize) -> usize {
        self.ours.len().div_ceil(tokens)
    }

    /// Bytes of one matrix.
    pub fn bytes(&self) -> usize {
        self.rows * self.dtype.row_bytes(self.cols).expect("whole blocks")
    }

    /// Multiplications and additions of one product, counted apart.
    pub fn operations(&self, tokens: usize) -> usize {
        2 * self.rows * self.cols * tokens
    }

    pub fn sides<'a>(&'a self, threads: &'a Threads, tokens: usize) -> Vec<Side<'a>> {
        let x = activations(tokens * self.cols);
        let products = self.products(tokens);
        let ggml = [("ggml plain", Some(&self.plain)), ("ggml repacked", self.repacked.as_ref())];
        let ggml = ggml.into_iter().filter_map(|(name, weights)| {
            let mut graph = rival::Products::new(&threads.ggml, weights?, products, tokens);
            graph.set_input(&x);
            Some(Side { name, run: Box::new(move || graph.run()) })
        });
        let mut sides: Vec<Side<'a>> = ggml.collect();
        let (bench, ours) = (&threads.ours, &self.ours[..products]);
        let run = move || bench.run(|| ours.iter().for_each(|w| drop(black_box(bench.product(w, &x)))));
        sides.insert(0, Side { name: "yuan", run: Box::new(run) });
        sides
    }
}

/// A layer of experts, of which all have the same weights in memory of their own.
pub struct Layer {
    dtype: DType,
    ours: bench::Layer,
    plain: [rival::Weights; 3],
    repacked: Option<[rival::Weights; 3]>,
}

impl Layer {
    /// # Panics
    /// For types that have no tiles.
    pub fn new(dtype: DType) -> Self {
        let (gate, down) = (matrix(dtype, FFN, HIDDEN), matrix(dtype, HIDDEN, FFN));
        let layout = TileLayout::new(HIDDEN, FFN, dtype).expect("tiles");
        let blob = layout.pack(&gate.repeat(2), &down);
        let ours = bench::Layer::new(layout, &repeat_n(blob, EXPERTS).collect::<Vec<_>>()).expect("a layer");
        let stacked = |buffer, rows, cols, bytes: &[u8]| {
            let mut weights = rival::Weights::new(buffer, dtype, [EXPERTS, rows, cols], 1)?;
            weights.set(0, &bytes.repeat(EXPERTS));
            Some(weights)
        };
        let all = |buffer| {
            let gate_up = || stacked(buffer, FFN, HIDDEN, &gate);
            Some([gate_up()?, gate_up()?, stacked(buffer, HIDDEN, FFN, &down)?])
        };
        Self {
            dtype,
            ours,
            plain: all(Buffer::Plain).expect("ggml has every type"),
            repacked: all(Buffer::Repacked),
        }
    }

    /// Passes that one run does: for few tokens enough for all experts to have their turn.
    pub fn passes(&self, tokens: usize) -> usize {
        (EXPERTS / USED).div_ceil(tokens)
    }

    /// Bytes of the experts that one pass reads.
    pub fn bytes(&self, tokens: usize) -> usize {
        let expert = 3 * FFN * self.dtype.row_bytes(HIDDEN).expect("whole blocks");
        (USED * tokens).min(EXPERTS) * expert
    }

    /// Multiplications and additions of one pass, counted apart.
    pub fn operations(&self, tokens: usize) -> usize {
        2 * 3 * HIDDEN * FFN * USED * tokens
    }

    pub fn sides<'a>(&'a self, threads: &'a Threads, tokens: usize) -> Vec<Side<'a>> {
        let x = activations(tokens * HIDDEN);
        let passes: Vec<_> = (0..self.passes(tokens)).map(|pass| routing(pass, tokens)).collect();
        let ggml = [("ggml plain", Some(&self.plain)), ("ggml repacked", self.repacked.as_ref())];
        let ggml = ggml.into_iter().filter_map(|(name, weights)| {
            let [gate, up, down] = weights?;
            let of = |routing: &Vec<Vec<(usize, f32)>>| {
                let mut graph = rival::Layer::new(&threads.ggml, [gate, up, down], tokens, USED);
                let chosen: Vec<i32> = routing.iter().flatten().map(|c| c.0 as i32).collect();
                let shares: Vec<f32> = routing.iter().flatten().map(|c| c.1).collect();
                graph.set_input(&x, &chosen, &shares);
                graph
            };
            let mut graphs: Vec<_> = passes.iter().map(of).collect();
            Some(Side { name, run: Box::new(move || graphs.iter_mut().for_each(rival::Layer::run)) })
        });
        let mut sides: Vec<Side<'a>> = ggml.collect();
        let (bench, ours) = (&threads.ours, &self.ours);
        let pass =
            move |routing: &Vec<_>| drop(black_box(bench.experts(ours, &x, routing).expect("an output")));
        let run = move || bench.run(|| passes.iter().for_each(&pass));
        sides.insert(0, Side { name: "yuan", run: Box::new(run) });
        sides
    }
}

/// Two experts for each token, in an order without a pattern, all of them equally often.
fn routing(pass: usize, tokens: usize) -> Vec<Vec<(usize, f32)>> {
    let token = |t: usize| {
        let i = (pass + t) * USED;
        // Odd factors permute the experts, another way each time around.
        let expert = |i: usize| (i * (2 * (i / EXPERTS) + 5)) % EXPERTS;
        (i..i + USED).map(|i| (expert(i), 1.0 / USED as f32)).collect()
    };
    (0..tokens).map(token).collect()
}

/// A few rows of random weights over and over.
fn matrix(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    const ROWS: usize = 32;
    let weights: Vec<f32> = activations(ROWS * cols).iter().map(|x| 0.02 * x).collect();
    let mut bytes = vec![0; ROWS * dtype.row_bytes(cols).expect("whole blocks")];
    encode(dtype, &weights, &mut bytes);
    bytes.repeat(rows / ROWS)
}

/// Numbers in -1..1.
fn activations(n: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut number = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| number()).collect()
}
