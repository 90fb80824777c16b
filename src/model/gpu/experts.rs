//! The routed experts of a layer: those in the GPU's slots are computed there, others are copied to it or computed on the CPU, as the
//! tier says; all outputs meet on the GPU and are added in the order of the experts' numbers.

use std::sync::Arc;

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
    model::{
        GpuUse, Model, activations::Activations, buffer::Buffer as HostBuffer, feed_forward::Experts,
        router::Routing,
    },
    pager::{Pass, Request},
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
    routing: Pinned,
    /// [T, H] and [S, H]: inputs and outputs of the CPU's experts.
    inputs: Pinned,
    outputs: Pinned,
    tokens: usize,
    pub usage: GpuUse,
}

/// One layer of a call.
#[derive(Clone, Copy)]
pub struct Step<'s, 'p> {
    pub model: &'s Model,
    pub pass: &'s Pass<'p>,
    pub layer: usize,
    pub experts: &'s Experts,
    pub scratch: &'s Scratch,
    pub tokens: usize,
}

impl Slots {
    pub fn new(device: &Arc<Device>, shape: &Shape, room: &Room, costs: Costs) -> Result<Self> {
        let Shape { layers, experts, tiles, tile_bytes, .. } = *shape;
        let table = 8 * (experts + 1) * experts;
        let pinned = |bytes| Pinned::new(device, bytes, Stream::Compute);
        Ok(Self {
            device: device.clone(),
            shape: *shape,
            tier: Tier::new(layers, experts, room.slots, room.transient > 0),
            costs,
            arena: Buffer::new(device, (room.slots + room.transient) * tiles * tile_bytes)?,
            slots: room.slots,
            transient: room.transient,
            ring: Ring::new(device, tiles, tile_bytes)?,
            copied: device.event()?,
            computed: (0..room.transient).map(|_| device.event()).collect::<Result<_>>()?,
            tables: Buffer::new(device, table)?,
            tables_host: pinned(table)?,
            routing: pinned(1)?,
            inputs: pinned(1)?,
            outputs: pinned(1)?,
            tokens: 0,
            usage: GpuUse::default(),
        })
    }

    /// Makes room for calls of so many tokens.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.tokens {
            let (hidden, slots) = (self.shape.hidden, tokens * self.shape.used);
            let pinned = |bytes| Pinned::new(&self.device, bytes, Stream::Compute);
            let (routing, inputs) = (pinned(4 * slots)?, pinned(f32s(tokens * hidden))?);
            self.outputs = pinned(f32s(slots * hidden))?;
            (self.routing, self.inputs, self.tokens) = (routing, inputs, tokens);
        }
        Ok(())
    }

    /// `x += sum of weight * expert(m)` for the experts and weights of the scratch memory, whose `a` is m.
    pub fn apply(&mut self, step: Step<'_, '_>, x: View<'_>) -> Result<()> {
        let Step { layer, scratch, tokens, .. } = step;
        let chosen = self.chosen(scratch, tokens)?;
        let ways = self.tier.request(layer, &chosen, self.shape.used, &self.costs);
        let result = self.compute(step, &chosen, &ways);
        if result.is_err() {
            // Whether it is whole is not known.
            let copies = ways.iter().filter(|(_, way)| matches!(way, Way::Copy(_)));
            copies.for_each(|&(expert, _)| self.tier.forget(layer, expert));
        }
        result?;
        Ops(&self.device).combine(self.batch(scratch, 0)?, scratch.weights.view(), x, tokens)
    }

    /// The experts that the router has chosen, [T, used]: the one wait of a layer.
    fn chosen(&mut self, scratch: &Scratch, tokens: usize) -> Result<Vec<usize>> {
        let slots = tokens * self.shape.used;
        self.routing.download(0, scratch.chosen.part(0..4 * slots)?)?;
        let chosen: &[i32] = cast_slice(&self.routing.host()?[..4 * slots]);
        let known = |&e: &i32| usize::try_from(e).ok().filter(|&e| e < self.shape.experts);
        chosen.iter().map(known).collect::<Option<_>>().ok_or_else(|| Error::Gpu {
            device: self.device.info().name.clone(),
            problem: "its router chose an expert that there is not".into(),
        })
    }

    fn compute(&mut self, step: Step<'_, '_>, chosen: &[usize], ways: &[(usize, Way)]) -> Result<()> {
        let Step { model, pass, layer, scratch, tokens, .. } = step;
        let way = |e: usize| ways[ways.partition_point(|w| w.0 < e)].1;
        let choices = |which: fn(Way) -> bool| -> Vec<usize> {
            chosen.iter().copied().filter(|&e| which(way(e))).collect()
        };
        let here = choices(|w| matches!(w, Way::Here(_)));
        let moving = choices(|w| matches!(w, Way::Copy(_) | Way::Pass));
        let staying = choices(|w| w == Way::Cpu);
        model.pager.used_elsewhere(layer, here.iter().copied());
        self.usage.there += ways.iter().filter(|w| matches!(w.1, Way::Here(_))).count() as u64;

        // What is not on the GPU is asked for before anything is computed; copies come first, and may wait for places.
        let request = |chosen: &[usize]| -> Result<Option<Request<'_>>> {
            let used = if tokens == 1 { chosen.len() } else { 1 };
            (!chosen.is_empty()).then(|| pass.request(layer, chosen, used)).transpose()
        };
        let (moving, staying) = (request(&moving)?, request(&staying)?);
        let order: Vec<usize> = moving.iter().flat_map(|r| r.order()).copied().collect();

        // All turns' tables: those that are there, then each of the others.
        let mut places = Vec::with_capacity(order.len());
        let mut passing = 0;
        for &expert in &order {
            places.push(match way(expert) {
                Way::Copy(slot) => (slot, None),
                _ => {
                    passing += 1;
                    let lane = passing % self.transient.max(1);
                    (self.slots + lane, Some(lane))
                }
            });
        }
        self.write_tables(ways, &order, &places)?;

        let ops = Ops(&self.device);
        let q8 = scratch.a.q8.view();
        if tokens > FEW {
            ops.sort(self.batch(scratch, 0)?, tokens * self.shape.used)?;
        }
        if !here.is_empty() {
            ops.experts(self.batch(scratch, 0)?, q8, tokens)?;
        }
        if let Some(request) = &moving {
            let mut used = vec![false; self.transient];
            for (rank, &(place, lane)) in places.iter().enumerate() {
                if let Some(lane) = lane.filter(|&lane| used[lane]) {
                    // Whoever passed through here before has been computed.
                    self.device.call(|c| c.wait(Stream::Copy, self.computed[lane]))?;
                }
                self.copy_expert(model, request, rank, place)?;
                request.finish(rank);
                self.device.order(Stream::Copy, Stream::Compute, self.copied)?;
                Ops(&self.device).experts(self.batch(scratch, rank + 1)?, q8, tokens)?;
                if let Some(lane) = lane {
                    used[lane] = true;
                    self.device.call(|c| c.record(self.computed[lane], Stream::Compute))?;
                }
            }
            self.usage.copied += places.len() as u64;
            self.usage.bytes += (places.len() * self.shape.tiles * self.shape.tile_bytes) as u64;
        }
        drop(moving);
        if let Some(request) = &staying {
            self.usage.on_cpu += request.order().len() as u64;
            self.on_cpu(step, request, chosen)?;
        }
        // The next layer overwrites slots that this one has used: what is still queued must be done, which its wait for the router says.
        Ok(())
    }

    /// What the kernels want to know of a call, with the table of a turn.
    fn batch<'b>(&'b self, scratch: &'b Scratch, turn: usize) -> Result<ops::Experts<'b>> {
        let Shape { experts, used, hidden, tiles, dtype, .. } = self.shape;
        Ok(ops::Experts {
            dtype,
            experts,
            used,
            hidden,
            tiles,
            table: self.tables.part(8 * turn * experts..8 * (turn + 1) * experts)?,
            chosen: scratch.chosen.view(),
            order: (scratch.starts.view(), scratch.order.view()),
            h: scratch.h.views(),
            out: scratch.out.view(),
        })
    }

    fn write_tables(
        &mut self,
        ways: &[(usize, Way)],
        order: &[usize],
        places: &[(usize, Option<usize>)],
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
        for (turn, (expert, (place, _))) in order.iter().zip(places).enumerate() {
            tables[(turn + 1) * experts + expert] = address(*place);
        }
        self.tables_host.upload(0..8 * n, self.tables.view())
    }

    /// Sends an expert, as its tiles arrive.
    fn copy_expert(&mut self, model: &Model, request: &Request<'_>, rank: usize, place: usize) -> Result<()> {
        let (tiles, bytes) = (self.shape.tiles, self.shape.tiles * self.shape.tile_bytes);
        let expert = request.expert(rank)?;
        let to = self.arena.part(place * bytes..(place + 1) * bytes)?;
        self.ring.send(&model.compute, tiles, |t| expert.tile(t), to)
    }

    /// Computes the experts of `request` on the CPU, and sends their outputs to their slots.
    fn on_cpu(&mut self, step: Step<'_, '_>, request: &Request<'_>, chosen: &[usize]) -> Result<()> {
        let Step { model, experts, scratch, tokens, .. } = step;
        let Shape { hidden, used, .. } = self.shape;
        self.inputs.download(0, scratch.a.data.part(0..f32s(tokens * hidden))?)?;
        let mut m = HostBuffer::with_capacity(tokens * hidden);
        m.extend_from_slice(cast_slice(&self.inputs.host()?[..f32s(tokens * hidden)]));
        let m = Activations::new(m, hidden);
        let mine = |e: &usize| request.order().contains(e);
        let routing = Routing {
            logits: Vec::new(),
            chosen: chosen
                .chunks(used)
                .map(|c| c.iter().filter(|e| mine(e)).map(|&e| (e, 1.0)).collect())
                .collect(),
        };
        let outputs: &mut [f32] = cast_slice_mut(self.outputs.host()?);
        let slot = |t: usize, e: usize| {
            t * used + chosen[t * used..][..used].iter().position(|&c| c == e).unwrap_or(0)
        };
        experts.each(&model.compute, request, &m, &routing, |t, expert, column, piece| {
            outputs[slot(t, expert) * hidden + column..][..piece.len()].copy_from_slice(piece);
        })?;
        // Slots that lie side by side go together.
        let slots: Vec<usize> = (0..chosen.len()).filter(|&s| mine(&chosen[s])).collect();
        for run in slots.chunk_by(|a, b| a + 1 == *b) {
            let range = f32s(run[0] * hidden)..f32s((run[run.len() - 1] + 1) * hidden);
            self.outputs.upload(range.clone(), scratch.out.part(range)?)?;
        }
        Ok(())
    }
}
