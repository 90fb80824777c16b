//! Routed experts: the bits of the CPU's tile pass, for few tokens and for batches.

mod common;

use bytemuck::Zeroable;
use common::{ARCHITECTURES, Arg, Buffer, Random, assert_same, run, run_on, scalar};
use yuan_cuda::{Launch, launch};
use yuan_cuda_shim::Architecture;
use yuan_kernels::{
    DType, PanelQ4_0,
    panel::Panel,
    tile::{tile_panels, tile_pass},
};

/// Experts of a layer, of which the device has those that `present` names.
struct Layer<P> {
    hidden: usize,
    tiles: usize,
    experts: Vec<Vec<P>>,
    on_device: Vec<Option<Buffer<P>>>,
}

impl<P: Panel> Layer<P> {
    fn new(
        random: &mut Random,
        panel: impl Fn(&mut Random) -> P,
        [hidden, tiles, experts]: [usize; 3],
        present: impl Fn(usize) -> bool,
    ) -> Self {
        let panels = tiles * tile_panels(hidden);
        let experts: Vec<Vec<P>> =
            (0..experts).map(|_| (0..panels).map(|_| panel(random)).collect()).collect();
        let on_device = experts.iter().enumerate().map(|(e, p)| present(e).then(|| Buffer::of(p))).collect();
        Self { hidden, tiles, experts, on_device }
    }

    fn table(&self) -> Buffer<u64> {
        Buffer::of(&self.on_device.iter().map(|b| b.as_ref().map_or(0, Buffer::address)).collect::<Vec<_>>())
    }

    /// The output of one slot on the CPU.
    fn wanted(&self, expert: usize, x: &[P::X]) -> Vec<f32> {
        let mut out = vec![0f32; self.hidden];
        for tile in self.experts[expert].chunks_exact(tile_panels(self.hidden)) {
            let mut y = vec![[0.0; 16]; self.hidden / 16];
            tile_pass(scalar(), tile, self.hidden, x, &mut y);
            out.iter_mut().zip(y.as_flattened()).for_each(|(o, y)| *o += y);
        }
        out
    }

    /// The outputs of all slots on the device, where absent experts leave what was there.
    fn found(
        &self,
        architecture: Architecture,
        chosen: &[usize],
        used: usize,
        x: &[P::X],
        many: bool,
    ) -> Vec<f32> {
        let (slots, experts) = (chosen.len(), self.experts.len());
        let (hidden, tiles, neurons) = (self.hidden, self.tiles, 256 * self.tiles);
        let (table, x) = (self.table(), Buffer::of(x));
        let chosen = Buffer::of(&chosen.iter().map(|&e| e as i32).collect::<Vec<_>>());
        let (h, hq) = (Buffer::<f32>::zeroed(slots * neurons), Buffer::<P::X>::zeroed(slots * tiles));
        let out = Buffer::<f32>::of(&vec![7.0; slots * hidden]);
        let run = |launch: Option<Launch>, args: &[&dyn Arg]| {
            run_on(architecture, launch, args).unwrap_or_else(|e| panic!("{e}"));
        };
        let scale = if P::DTYPE == DType::Q8_0 { 32usize } else { 256 };
        let quantize = || run(launch::quantize(neurons, slots), &[&h, &hq, &scale, &neurons, &slots]);
        if many {
            let (starts, order) = (Buffer::<i32>::fresh(experts + 1), Buffer::<i32>::fresh(slots));
            run(launch::sort_slots(experts), &[&chosen, &starts, &order, &slots, &experts]);
            let gate_up = launch::expert_gate_up_many(P::DTYPE, slots, experts, tiles);
            run(gate_up, &[&table, &starts, &order, &x, &h, &used, &hidden, &tiles, &experts]);
            quantize();
            let down = launch::expert_down_many(P::DTYPE, slots, experts, hidden);
            run(down, &[&table, &starts, &order, &hq, &out, &hidden, &tiles, &experts]);
        } else {
            let gate_up = launch::expert_gate_up(P::DTYPE, slots, tiles);
            run(gate_up, &[&table, &chosen, &x, &h, &used, &hidden, &tiles]);
            quantize();
            run(launch::expert_down(P::DTYPE, slots, hidden), &[&table, &chosen, &hq, &out, &hidden, &tiles]);
        }
        out.get().to_vec()
    }

    fn check(&self, random: &mut Random, tokens: usize, used: usize, architectures: &[Architecture]) {
        let width = self.hidden / 256;
        let x = random.activations(tokens, width);
        let chosen: Vec<usize> = (0..tokens)
            .flat_map(|_| {
                let first = random.below(self.experts.len());
                (0..used).map(move |j| (first + 3 * j) % self.experts.len())
            })
            .collect();
        let wanted: Vec<f32> = chosen
            .iter()
            .enumerate()
            .flat_map(|(slot, &e)| match self.on_device[e] {
                Some(_) => self.wanted(e, &x[slot / used * width..][..width]),
                None => vec![7.0; self.hidden],
            })
            .collect();
        for &architecture in architectures {
            for many in [false, true] {
                let what = format!("{} {tokens} tokens, many: {many}, {architecture:?}", P::DTYPE.name());
                assert_same(&self.found(architecture, &chosen, used, &x, many), &wanted, &what);
            }
        }
    }
}

#[test]
fn experts_give_the_bits_of_the_tile_pass() {
    let mut random = Random(11);
    let q4_k = Layer::new(&mut random, Random::q4_k, [256, 2, 5], |_| true);
    let q4_0 = Layer::new(&mut random, Random::q4_0, [512, 1, 4], |_| true);
    let q3_k = Layer::new(&mut random, Random::q3_k, [256, 2, 3], |_| true);
    let q6_k = Layer::new(&mut random, Random::q6_k, [256, 2, 3], |_| true);
    let q8_0 = Layer::new(&mut random, Random::q8_0, [256, 2, 3], |_| true);
    for tokens in [1, 3, 8] {
        q4_k.check(&mut random, tokens, 2, &ARCHITECTURES);
        q4_0.check(&mut random, tokens, 2, &ARCHITECTURES);
        q3_k.check(&mut random, tokens, 2, &ARCHITECTURES);
        q6_k.check(&mut random, tokens, 2, &ARCHITECTURES);
        q8_0.check(&mut random, tokens, 2, &ARCHITECTURES);
    }
    q4_k.check(&mut random, 90, 1, &[Architecture::Ampere]);
}

#[test]
fn absent_experts_are_left_to_the_host() {
    let mut random = Random(12);
    let layer = Layer::new(&mut random, Random::q4_k, [256, 1, 6], |e| e % 2 == 0);
    layer.check(&mut random, 8, 3, &[Architecture::Ampere]);
    let none = Layer::new(&mut random, Random::q4_k, [256, 1, 4], |_| false);
    none.check(&mut random, 2, 2, &[Architecture::Ampere]);
}

/// Two tiles of an expert of M32, with its hidden size.
#[test]
fn the_true_geometry_gives_the_bits_of_the_tile_pass() {
    let mut random = Random(13);
    let layer = Layer::new(&mut random, Random::q4_k, [2048, 2, 2], |_| true);
    layer.check(&mut random, 2, 1, &[Architecture::Ampere]);
}

#[test]
fn outputs_are_added_in_the_order_of_the_experts() {
    let mut random = Random(14);
    let (tokens, hidden, used) = (3, 300, 4);
    let (out, x) = (random.floats(tokens * used * hidden), random.floats(tokens * hidden));
    let weights = random.floats(tokens * used);
    let experts = [5, 0, 31, 7, 3, 2, 1, 0, 9, 11, 10, 12];
    let mut wanted = x.clone();
    for t in 0..tokens {
        let mut order: Vec<usize> = (t * used..(t + 1) * used).collect();
        order.sort_by_key(|&s| experts[s]);
        for c in 0..hidden {
            let y = order.iter().fold(0.0, |y, &s| y + weights[s] * out[s * hidden + c]);
            wanted[t * hidden + c] += y;
        }
    }
    let device = Buffer::of(&x);
    run(
        launch::combine(hidden, tokens),
        &[&Buffer::of(&out), &Buffer::of(&experts), &Buffer::of(&weights), &device, &hidden, &used],
    );
    assert_same(device.get(), &wanted, "the residual");
}

#[test]
fn slots_are_sorted_by_expert_and_stay_in_order() {
    let mut random = Random(15);
    for (slots, experts) in [(1, 1), (31, 4), (64, 32), (1000, 32), (77, 256)] {
        let chosen: Vec<i32> = (0..slots).map(|_| random.below(experts) as i32).collect();
        let (starts, order) = (Buffer::<i32>::fresh(experts + 1), Buffer::<i32>::fresh(slots));
        run(launch::sort_slots(experts), &[&Buffer::of(&chosen), &starts, &order, &slots, &experts]);
        let mut wanted: Vec<i32> = (0..slots as i32).collect();
        wanted.sort_by_key(|&s| chosen[s as usize]);
        assert_eq!(order.get(), wanted);
        let begins: Vec<i32> =
            (0..=experts).map(|e| chosen.iter().filter(|&&c| c < e as i32).count() as i32).collect();
        assert_eq!(starts.get(), begins);
    }
}

#[test]
fn a_padded_tile_gives_zeros() {
    // A tile's padding: neurons without weights give 0, and not NaN.
    let zero = vec![PanelQ4_0::zeroed(); tile_panels(256)];
    let layer =
        Layer { hidden: 256, tiles: 1, on_device: vec![Some(Buffer::of(&zero))], experts: vec![zero] };
    layer.check(&mut Random(16), 1, 1, &ARCHITECTURES);
}
