//! Graphs of products, made once and run any number of times.

use std::{marker::PhantomData, ptr::NonNull};

use ggml_sys::*;

use super::{Context, Memory, Rival, Weights};

/// A graph with its memory, and the one input that it begins with.
#[derive(Debug)]
struct Graph<'w> {
    graph: NonNull<ggml_cgraph>,
    outputs: Vec<NonNull<ggml_tensor>>,
    // Memory goes before the context that describes it.
    _memory: Memory,
    _context: Context,
    rival: &'w Rival,
    weights: PhantomData<&'w Weights>,
}

impl<'w> Graph<'w> {
    /// `describe` makes the tensors in a context with room for `tensors`, and returns the outputs.
    fn new(
        rival: &'w Rival,
        tensors: usize,
        describe: impl FnOnce(*mut ggml_context) -> Vec<*mut ggml_tensor>,
    ) -> Self {
        let context = Context::new(tensors);
        let outputs: Vec<_> =
            describe(context.0.as_ptr()).into_iter().map(|t| NonNull::new(t).expect("a tensor")).collect();
        // SAFETY: the context has room for a graph of so many tensors.
        let graph = unsafe { ggml_new_graph_custom(context.0.as_ptr(), tensors, false) };
        let graph = NonNull::new(graph).expect("a graph");
        for output in &outputs {
            // SAFETY: graph and output live in `context`.
            unsafe { ggml_build_forward_expand(graph.as_ptr(), output.as_ptr()) }
        }
        // SAFETY: a plain function.
        let memory = Memory::of(&context, unsafe { ggml_backend_cpu_buffer_type() });
        Self { graph, outputs, _memory: memory, _context: context, rival, weights: PhantomData }
    }

    fn run(&mut self) {
        // SAFETY: graph, weights and backend are alive: this value borrows what it does not own.
        let status = unsafe { ggml_backend_graph_compute(self.rival.backend.as_ptr(), self.graph.as_ptr()) };
        assert_eq!(status, GGML_STATUS_SUCCESS, "ggml's status");
    }

    fn output(&self, i: usize, len: usize) -> Vec<f32> {
        let mut out = vec![0f32; len];
        read(self.outputs[i], &mut out);
        out
    }
}

/// All of a tensor's floats.
fn read(tensor: NonNull<ggml_tensor>, out: &mut [f32]) {
    // SAFETY: the tensor's context and memory are alive; its size is asserted before it is read.
    unsafe {
        assert_eq!(ggml_nbytes(tensor.as_ptr()), size_of_val(out), "bytes of the tensor");
        ggml_backend_tensor_get(tensor.as_ptr(), out.as_mut_ptr().cast(), 0, size_of_val(out));
    }
}

/// Fills a tensor.
fn write<T: bytemuck::Pod>(tensor: NonNull<ggml_tensor>, data: &[T]) {
    // SAFETY: the tensor's context and memory are alive; its size is asserted before it is written.
    unsafe {
        assert_eq!(ggml_nbytes(tensor.as_ptr()), size_of_val(data), "bytes of the tensor");
        ggml_backend_tensor_set(tensor.as_ptr(), data.as_ptr().cast(), 0, size_of_val(data));
    }
}

/// The products of matrices with the same activations: one graph with one `ggml_mul_mat` for each.
#[derive(Debug)]
pub struct Products<'w> {
    graph: Graph<'w>,
    x: NonNull<ggml_tensor>,
    rows: usize,
    tokens: usize,
}

impl<'w> Products<'w> {
    /// The products of the first `count` matrices with `tokens` rows of activations, which are zero at first.
    ///
    /// # Panics
    /// Where there are not so many matrices, or memory does not suffice.
    pub fn new(rival: &'w Rival, weights: &'w Weights, count: usize, tokens: usize) -> Self {
        assert_eq!(weights.depth, 1, "matrices in one tensor");
        let mut x = None;
        let graph = Graph::new(rival, count + 1, |context| {
            // SAFETY: the context has room for the input and `count` products, whose shapes fit.
            unsafe {
                let input = ggml_new_tensor_2d(context, GGML_TYPE_F32, weights.columns as i64, tokens as i64);
                x = NonNull::new(input);
                weights.tensors[..count].iter().map(|w| ggml_mul_mat(context, w.as_ptr(), input)).collect()
            }
        });
        Self { graph, x: x.expect("a tensor"), rows: weights.rows, tokens }
    }

    /// Sets the activations [tokens, columns].
    ///
    /// # Panics
    /// Where they are of another size.
    pub fn set_input(&mut self, x: &[f32]) {
        write(self.x, x);
    }

    /// Computes all products.
    ///
    /// # Panics
    /// Where ggml fails.
    pub fn run(&mut self) {
        self.graph.run();
    }

    /// Product `i`, [tokens, rows].
    pub fn output(&self, i: usize) -> Vec<f32> {
        self.graph.output(i, self.tokens * self.rows)
    }
}

/// A layer of experts as llama.cpp computes it: `ggml_mul_mat_id` with the gates, the ups and the downs of all experts, and
/// the weighted sum of the outputs of those that a token uses.
#[derive(Debug)]
pub struct Layer<'w> {
    graph: Graph<'w>,
    x: NonNull<ggml_tensor>,
    chosen: NonNull<ggml_tensor>,
    shares: NonNull<ggml_tensor>,
    hidden: usize,
    tokens: usize,
}

impl<'w> Layer<'w> {
    /// A layer for `tokens` tokens that each use `used` experts, of the first tensor of each: `gate` and `up` [E, F, H] and
    /// `down` [E, H, F].
    ///
    /// # Panics
    /// Where shapes do not fit, or memory does not suffice.
    pub fn new(rival: &'w Rival, [gate, up, down]: [&'w Weights; 3], tokens: usize, used: usize) -> Self {
        let hidden = gate.columns;
        assert_eq!(
            (up.columns, down.rows, down.columns),
            (hidden, hidden, gate.rows),
            "shapes of the experts"
        );
        let mut inputs = [None; 3];
        let graph = Graph::new(rival, 16 + 2 * used, |context| {
            let [gate, up, down] = [gate, up, down].map(|w| w.tensors[0].as_ptr());
            let [h, t, n] = [hidden, tokens, used].map(|n| n as i64);
            // SAFETY: the context has room for the tensors below (16 and two for each used expert), whose shapes fit.
            unsafe {
                let x = ggml_new_tensor_3d(context, GGML_TYPE_F32, h, 1, t);
                let chosen = ggml_new_tensor_2d(context, GGML_TYPE_I32, n, t);
                let shares = ggml_new_tensor_3d(context, GGML_TYPE_F32, 1, n, t);
                inputs = [x, chosen, shares].map(NonNull::new);
                let g = ggml_mul_mat_id(context, gate, x, chosen);
                let u = ggml_mul_mat_id(context, up, x, chosen);
                let swiglu = ggml_swiglu_split(context, g, u);
                let outputs = ggml_mul_mat_id(context, down, swiglu, chosen);
                let outputs = ggml_mul(context, outputs, shares);
                let of = |i: usize| {
                    let [_, row, token, _] = (*outputs).nb;
                    ggml_view_2d(context, outputs, h, t, token, i * row)
                };
                let sum = (1..used).fold(of(0), |sum, i| ggml_add(context, sum, of(i)));
                // A lone view is no result of its own.
                vec![if used == 1 { ggml_cont(context, sum) } else { sum }]
            }
        });
        let [x, chosen, shares] = inputs.map(|t| t.expect("a tensor"));
        Self { graph, x, chosen, shares, hidden, tokens }
    }

    /// Sets the activations [tokens, H], and the experts and their shares [tokens, used].
    ///
    /// # Panics
    /// Where they are of another size.
    pub fn set_input(&mut self, x: &[f32], chosen: &[i32], shares: &[f32]) {
        write(self.x, x);
        write(self.chosen, chosen);
        write(self.shares, shares);
    }

    /// Computes the layer.
    ///
    /// # Panics
    /// Where ggml fails.
    pub fn run(&mut self) {
        self.graph.run();
    }

    /// The layer's output, [tokens, H].
    pub fn output(&self) -> Vec<f32> {
        self.graph.output(0, self.tokens * self.hidden)
    }
}
