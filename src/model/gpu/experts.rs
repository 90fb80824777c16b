//! The routed experts of a layer. Where the GPU has all of them nothing is decided; else those in its slots are computed there, others are copied to it or computed on the CPU, as the
//! tier says; all outputs meet on the GPU and are added in the order of the experts' numbers.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytemuck::{cast_slice, cast_slice_mut};
use yuan_cuda::launch::FEW;

use super::{
    ring::Ring,
    scratch::{Scratch, Shape},
};
use crate::{
    error::{Error, Result},
    gpu::{
        Costs, Device, Room, Tier, Way,
        driver::{Event, Stream},
        memory::{Buffer, Pinned, View},
        ops::{self, Ops, f32s},
    },
    model::{GpuUse, Model, activations::Activations, feed_forward::Experts, router::Routing},
    pager::{
        Pass, Request,
        sync::{Mutex, lock},
    },
};

/// The GPU's places of experts, and what is needed to fill them.
#[derive(Debug)]
pub struct Slots {
    device: Arc<Device>,
    shape: Shape,
    tier: Tier,
    pub costs: Costs,
    /// The slots, and then the places of experts that pass through.
    arena: Buffer,
    slots: usize,
    transient: usize,
    ring: Ring,
    /// Behind the copy of an expert, and behind its computation, for each place where experts pass through.
    copied: Event,
    computed: Vec<Event>,
    /// By turn [E + 1][E]: the addresses of the experts that are computed together.
    tables: Buffer,
    tables_host: Pinned,
    /// Where all experts are there: [layers][E], and no call waits for a router.
    all: Option<Buffer>,
    /// By layer: what the routers chose, i32 [S].
    routing: Pinned,
    /// [T, H] and [S, H]: inputs and outputs of the CPU's experts.
    inputs: Pinned,
    outputs: Pinned,
    tokens: usize,
    /// Counted for readers that do not wait for a call.
    pub usage: Arc<Mutex<GpuUse>>,
    /// Which experts are there, for the same readers.
    pub there: Arc<[AtomicBool]>,
}

/// One layer of a call.
#[derive(Clone, Copy)]
pub struct Step<'s, 'p> {
    pub ops: Ops<'s>,
    pub model: &'s Model,
    pub pass: &'s Pass<'p>,
    pub layer: usize,
    pub experts: &'s Experts,
    pub scratch: &'s Scratch,
    pub tokens: usize,
}

/// Where an expert is copied to: a slot, or a lane for those that pass through.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    lane: Option<usize>,
}

impl Slots {
    pub fn new(device: &Arc<Device>, shape: &Shape, room: &Room, costs: Costs) -> Result<Self> {
        let Shape { layers, experts, tiles, tile_bytes, .. } = *shape;
        let table = 8 * (experts + 1) * experts;
        let pinned = |bytes| Pinned::new(device, bytes, Stream::Compute);
        let tier = Tier::new(layers, experts, room.slots, room.transient > 0);
        Ok(Self {
            device: device.clone(),
            shape: *shape,
            there: tier.there(),
            tier,
            costs,
            arena: Buffer::new(device, (room.slots + room.transient) * tiles * tile_bytes)?,
            slots: room.slots,
            transient: room.transient,
            ring: Ring::new(device, tiles, tile_bytes)?,
            copied: device.event()?,
            computed: (0..room.transient).map(|_| device.event()).collect::<Result<_>>()?,
            tables: Buffer::new(device, table)?,
            tables_host: pinned(table)?,
            all: None,
            routing: pinned(1)?,
            inputs: pinned(1)?,
            outputs: pinned(1)?,
            tokens: 0,
            usage: Arc::default(),
        })
    }

    /// Makes room for calls of so many tokens.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.tokens {
            let (hidden, slots) = (self.shape.hidden, tokens * self.shape.used);
            let pinned = |bytes| Pinned::new(&self.device, bytes, Stream::Compute);
            let (routing, inputs) = (pinned(4 * self.shape.layers * slots)?, pinned(f32s(tokens * hidden))?);
            self.outputs = pinned(f32s(slots * hidden))?;
            (self.routing, self.inputs, self.tokens) = (routing, inputs, tokens);
        }
        Ok(())
    }

    /// Copies all experts, where there is room for all: calls then wait for nothing but their end.
    pub fn fill(&mut self, model: &Model) -> Result<()> {
        let Shape { layers, experts, tiles, tile_bytes, .. } = self.shape;
        if self.slots < layers * experts || model.pager.tiles() == 0 {
            return Ok(());
        }
        let (bytes, wanted) = (tiles * tile_bytes, (0..experts).collect::<Vec<_>>());
        let pass = model.pager.begin();
        for layer in 0..layers {
            let request = pass.request_beside(layer, &wanted, 1, |_| true)?;
            for (rank, &expert) in request.order().iter().enumerate() {
                let (slot, expert) = (layer * experts + expert, request.expert(rank)?);
                let to = self.arena.part(slot * bytes..(slot + 1) * bytes)?;
                self.ring.send(&model.compute, tiles, |t| expert.tile(t), to)?;
                drop(expert);
                request.finish(rank);
            }
        }
        let all = Buffer::new(&self.device, 8 * layers * experts)?;
        let mut host = Pinned::new(&self.device, all.size(), Stream::Compute)?;
        let first = self.arena.view().at();
        let tables: &mut [u64] = cast_slice_mut(host.host()?);
        tables.iter_mut().enumerate().for_each(|(slot, at)| *at = first + (slot * bytes) as u64);
        host.upload(0..all.size(), all.view())?;
        self.device.finish()?;
        lock(&self.usage).copied += (layers * experts) as u64;
        lock(&self.usage).bytes += (layers * experts * bytes) as u64;
        self.all = Some(all);
        self.there.iter().for_each(|there| there.store(true, Relaxed));
        Ok(())
    }

    /// Whether all experts are there, so that a layer decides nothing.
    pub fn has_all(&self) -> bool {
        self.all.is_some()
    }

    /// Brings what the routers have chosen, where no layer has waited for it.
    pub fn bring_choices(&mut self, scratch: &Scratch, tokens: usize) -> Result<()> {
        if self.has_all() {
            let bytes = 4 * self.shape.layers * tokens * self.shape.used;
            self.routing.download(0, scratch.choices.part(0..bytes)?)?;
        }
        Ok(())
    }

    /// What [`Self::bring_choices`] has brought, for [`Self::count`]: experts by layer, token and slot; none where it has not.
    pub fn choices(&mut self, tokens: usize) -> Result<Vec<i32>> {
        if !self.has_all() {
            return Ok(Vec::new());
        }
        let bytes = 4 * self.shape.layers * tokens * self.shape.used;
        Ok(cast_slice(&self.routing.host()?[..bytes]).to_vec())
    }

    /// Counts the experts of a call that has ended.
    pub fn count(&self, model: &Model, choices: &[i32], tokens: usize) {
        for (layer, chosen) in choices.chunks_exact(tokens * self.shape.used).enumerate() {
            let mut experts: Vec<usize> = chosen.iter().filter_map(|&e| e.try_into().ok()).collect();
            model.pager.used_elsewhere(layer, experts.iter().copied());
            experts.sort_unstable();
            experts.dedup();
            lock(&self.usage).there += experts.len() as u64;
        }
    }

    /// `x += sum of weight * expert(m)` for the experts and weights of the scratch memory, whose `a` is m.
    pub fn apply(&mut self, step: Step<'_, '_>, x: View<'_>) -> Result<()> {
        let Step { ops, layer, scratch, tokens, .. } = step;
        if let Some(all) = &self.all {
            let row = 8 * self.shape.experts;
            let batch = self.batch(step, all.part(row * layer..row * (layer + 1))?)?;
            if tokens > FEW {
                ops.sort(batch, tokens * self.shape.used)?;
            }
            ops.experts(batch, scratch.a.q8.view(), tokens)?;
            return ops.combine(batch, scratch.weights.view(), x, tokens);
        }
        let chosen = self.chosen(step)?;
        let ways = self.tier.request(layer, &chosen, self.shape.used, &self.costs);
        let result = self.compute(step, &chosen, &ways);
        if result.is_err() {
            // Whether it is whole is not known.
            let copies = ways.iter().filter(|(_, way)| matches!(way, Way::Copy(_)));
            copies.for_each(|&(expert, _)| self.tier.forget(layer, expert));
        }
        result?;
        let batch = self.batch(step, self.turn(0)?)?;
        ops.combine(batch, scratch.weights.view(), x, tokens)
    }

    /// The experts that the router has chosen, [T, used]: the one wait of a layer.
    fn chosen(&mut self, step: Step<'_, '_>) -> Result<Vec<usize>> {
        let slots = step.tokens * self.shape.used;
        self.routing.download(0, step.scratch.chosen(step.layer, slots)?)?;
        let chosen: &[i32] = cast_slice(&self.routing.host()?[..4 * slots]);
        let known = |&e: &i32| usize::try_from(e).ok().filter(|&e| e < self.shape.experts);
        chosen.iter().map(known).collect::<Option<_>>().ok_or_else(|| Error::Gpu {
            device: self.device.info().name.clone(),
            problem: "its router chose an expert that there is not".into(),
        })
    }

    fn compute(&mut self, step: Step<'_, '_>, chosen: &[usize], ways: &[(usize, Way)]) -> Result<()> {
        let Step { ops, model, pass, layer, scratch, tokens, .. } = step;
        let way = |e: usize| ways[ways.partition_point(|w| w.0 < e)].1;
        let choices = |which: fn(Way) -> bool| -> Vec<usize> {
            chosen.iter().copied().filter(|&e| which(way(e))).collect()
        };
        let here = choices(|w| matches!(w, Way::Here(_)));
        let others = choices(|w| !matches!(w, Way::Here(_)));
        model.pager.used_elsewhere(layer, here.iter().copied());
        lock(&self.usage).there += ways.iter().filter(|w| matches!(w.1, Way::Here(_))).count() as u64;

        // What is not on the GPU is asked for before anything is computed.
        let used = if tokens == 1 { others.len() } else { 1 };
        let ahead = |e: usize| self.tier.has(layer + 1, e);
        let request =
            (!others.is_empty()).then(|| pass.request_beside(layer, &others, used, ahead)).transpose()?;
        let order: Vec<(usize, Way)> = request.iter().flat_map(|r| r.order()).map(|&e| (e, way(e))).collect();

        // All turns' tables: those that are there, then each of those that move.
        let mut lanes = (0..self.transient).cycle();
        let places: Vec<Option<Place>> = order
            .iter()
            .map(|(_, way)| match way {
                Way::Copy(slot) => Some(Place { index: *slot, lane: None }),
                Way::Pass => lanes.next().map(|lane| Place { index: self.slots + lane, lane: Some(lane) }),
                Way::Here(_) | Way::Cpu => None,
            })
            .collect();
        self.write_tables(ways, &order, &places)?;

        if tokens > FEW {
            ops.sort(self.batch(step, self.turn(0)?)?, tokens * self.shape.used)?;
        }
        let on_cpu = order.iter().any(|(_, way)| *way == Way::Cpu);
        if on_cpu {
            // Before kernels that the CPU need not wait for.
            let bytes = f32s(tokens * self.shape.hidden);
            self.inputs.download(0, scratch.a.data.part(0..bytes)?)?;
        }
        if !here.is_empty() {
            ops.experts(self.batch(step, self.turn(0)?)?, scratch.a.q8.view(), tokens)?;
        }
        // In the order of the request: who waits for a place of the pager must have finished all before it.
        let mut used = vec![false; self.transient];
        let mut rank = 0;
        while let (Some(request), Some(place)) = (&request, places.get(rank)) {
            if let Some(place) = place {
                self.on_gpu(step, request, rank, *place, &mut used)?;
                rank += 1;
            } else {
                let end = (rank..places.len()).find(|&r| places[r].is_some()).unwrap_or(places.len());
                self.on_cpu(step, request, rank..end, chosen)?;
                rank = end;
            }
        }
        if on_cpu {
            self.send_outputs(scratch, chosen, |e| way(e) == Way::Cpu)?;
        }
        // The next layer overwrites places that this one uses: it waits for the router, and so for all of this.
        Ok(())
    }

    /// Copies an expert to its place, and has it computed there.
    fn on_gpu(
        &mut self,
        step: Step<'_, '_>,
        request: &Request<'_>,
        rank: usize,
        place: Place,
        used: &mut [bool],
    ) -> Result<()> {
        let Shape { tiles, tile_bytes, .. } = self.shape;
        let bytes = tiles * tile_bytes;
        if let Some(lane) = place.lane.filter(|&lane| used[lane]) {
            // Whoever passed through here before has been computed.
            self.device.call(|c| c.wait(Stream::Copy, self.computed[lane]))?;
        }
        let expert = request.expert(rank)?;
        let to = self.arena.part(place.index * bytes..(place.index + 1) * bytes)?;
        self.ring.send(&step.model.compute, tiles, |t| expert.tile(t), to)?;
        drop(expert);
        request.finish(rank);
        self.device.order(Stream::Copy, Stream::Compute, self.copied)?;
        let turn = self.batch(step, self.turn(rank + 1)?)?;
        step.ops.experts(turn, step.scratch.a.q8.view(), step.tokens)?;
        if let Some(lane) = place.lane {
            used[lane] = true;
            self.device.call(|c| c.record(self.computed[lane], Stream::Compute))?;
        }
        lock(&self.usage).copied += 1;
        lock(&self.usage).bytes += bytes as u64;
        Ok(())
    }

    /// The table of a turn.
    fn turn(&self, turn: usize) -> Result<View<'_>> {
        let row = 8 * self.shape.experts;
        self.tables.part(row * turn..row * (turn + 1))
    }

    /// What the kernels want to know of a call.
    fn batch<'b>(&'b self, step: Step<'b, '_>, table: View<'b>) -> Result<ops::Experts<'b>> {
        let Shape { experts, used, hidden, tiles, dtype, .. } = self.shape;
        let scratch = step.scratch;
        Ok(ops::Experts {
            dtype,
            experts,
            used,
            hidden,
            tiles,
            table,
            arena: self.arena.view(),
            chosen: scratch.chosen(step.layer, step.tokens * used)?,
            order: (scratch.starts.view(), scratch.order.view()),
            h: scratch.h.views(),
            out: scratch.out.view(),
        })
    }

    fn write_tables(
        &mut self,
        ways: &[(usize, Way)],
        order: &[(usize, Way)],
        places: &[Option<Place>],
    ) -> Result<()> {
        let experts = self.shape.experts;
        let bytes = self.shape.tiles * self.shape.tile_bytes;
        let address = |place: usize| self.arena.view().at() + (place * bytes) as u64;
        let n = (order.len() + 1) * experts;
        let tables: &mut [u64] = cast_slice_mut(&mut self.tables_host.host()?[..8 * n]);
        tables.fill(0);
        for (expert, way) in ways {
            if let Way::Here(slot) = way {
                tables[*expert] = address(*slot);
            }
        }
        for (turn, ((expert, _), place)) in order.iter().zip(places).enumerate() {
            if let Some(place) = place {
                tables[(turn + 1) * experts + expert] = address(place.index);
            }
        }
        self.tables_host.upload(0..8 * n, self.tables.view())
    }

    /// Computes the experts of some ranks of the request on the CPU.
    fn on_cpu(
        &mut self,
        step: Step<'_, '_>,
        request: &Request<'_>,
        ranks: Range<usize>,
        chosen: &[usize],
    ) -> Result<()> {
        let Step { model, experts, tokens, .. } = step;
        lock(&self.usage).on_cpu += ranks.len() as u64;
        let Shape { hidden, used, .. } = self.shape;
        let m: &[f32] = cast_slice(&self.inputs.host()?[..f32s(tokens * hidden)]);
        let m = Activations::new(model.compute.scratch.copy(m), hidden);
        let routing = Routing { logits: None, used, chosen: chosen.iter().map(|&e| (e, 1.0)).collect() };
        let outputs: &mut [f32] = cast_slice_mut(self.outputs.host()?);
        let slot = |t: usize, e: usize| {
            t * used + chosen[t * used..][..used].iter().position(|&c| c == e).unwrap_or(0)
        };
        experts.each(&model.compute, request, ranks.clone(), &m, &routing, |t, expert, column, piece| {
            outputs[slot(t, expert) * hidden + column..][..piece.len()].copy_from_slice(piece);
        })
    }

    /// Sends what the CPU has computed to the slots of its experts; those that lie side by side go together.
    fn send_outputs(
        &mut self,
        scratch: &Scratch,
        chosen: &[usize],
        on_cpu: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let hidden = self.shape.hidden;
        let slots: Vec<usize> = (0..chosen.len()).filter(|&s| on_cpu(chosen[s])).collect();
        for run in slots.chunk_by(|a, b| a + 1 == *b) {
            let range = f32s(run[0] * hidden)..f32s((run[run.len() - 1] + 1) * hidden);
            self.outputs.upload(range.clone(), scratch.out.part(range)?)?;
        }
        Ok(())
    }
}
