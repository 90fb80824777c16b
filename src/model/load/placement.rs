//! Where a model's weights will be, decided before any of them is read: mapped or streamed, with how many experts in memory.

use super::{super::State, GpuPlacement, Options};
use crate::{
    config::ModelConfig,
    container::{Container, ExpertView},
    error::{Error, Result},
    machine::budget::Budget,
    pager::{Mode, Paging, transient_slots},
};

/// Tokens that go through the model together where nothing asks for more.
pub const BATCH: usize = 512;
/// Tokens of the smallest batch, also where fewer are asked for.
const LEAST: usize = 32;
/// Rows of logits that a pass may bring: the memory's budget has room for them.
pub const LOGIT_ROWS: usize = 32;
/// The program itself: code, vocabulary, stacks of threads.
const PROGRAM: u64 = 96 << 20;
/// Streamed: an eighth of what trunk and cache leave may go to the intermediate results of a batch, since every expert is read once a batch.
const SCRATCH_SHARE: u64 = 8;

/// What the parts of a container take: all that has to be known of it, so that one can be planned for that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of all tensors.
    pub data: u64,
    /// Bytes of one expert; 0 where they are not in tiles.
    pub expert: u64,
    /// Bytes of the embedding, where it is not the head, too: streamed, its rows are read when they are needed, and not kept.
    pub embedding: u64,
    /// Bytes of the experts that a token does not use, where they are not in tiles: they count as trunk, and are not read with each token.
    pub unused: u64,
    /// Whether experts can be streamed.
    pub streams: bool,
}

impl Sizes {
    /// Those of a container.
    pub fn of(container: &Container) -> Self {
        let tiles = container.tile_layout();
        let embedding = match container.tensor("token_embd.weight") {
            Some(view) if !container.config().tied_embeddings => view.bytes.len() as u64,
            _ => 0,
        };
        let unused = if tiles.is_some() { 0 } else { unused_bytes(container) };
        Self {
            data: container.data_bytes(),
            expert: tiles.map_or(0, |t| t.expert_bytes() as u64),
            embedding,
            unused,
            streams: tiles.is_some() && is_mapped(container),
        }
    }
}

/// How a container would run.
#[derive(Clone, Debug)]
pub struct Placement {
    /// How experts come into memory.
    pub mode: Mode,
    /// Why this one, for people.
    pub why: String,
    /// The memory that the model may take.
    pub budget: Budget,
    /// Bytes of everything but the experts; where they are streamed, but for the embedding too.
    pub trunk: u64,
    /// Bytes of the keys and values of [`Options::context`] tokens.
    pub kv: u64,
    /// Bytes that all sequences may take together: at least those of one of [`Options::context`] tokens; where the container is mapped, all that
    /// it and scratch leave of the budget.
    pub pool: u64,
    /// Bytes of the intermediate results of a batch, and of twice [`LOGIT_ROWS`] rows of logits.
    pub scratch: u64,
    /// Bytes of one expert; 0 where they are not in tiles.
    pub expert_bytes: u64,
    /// Experts of all layers.
    pub experts: usize,
    /// Experts that are kept in memory; all of them unless streamed.
    pub resident: usize,
    /// Slots beside those for experts that pass through, where experts are streamed.
    pub transient: usize,
    /// Tokens of a prompt that go through the model together.
    pub batch: usize,
    /// The smallest budget that can be streamed with.
    pub smallest: u64,
    /// Whether a GPU takes part, and with what.
    pub gpu: GpuPlacement,
}

impl Placement {
    /// The rule: mapped when the container fits into three quarters of the budget, less cache and scratch; otherwise streamed.
    ///
    /// # Errors
    /// [`Error::Memory`] with the smallest budget that works, when this one is too small; [`Error::Argument`] when streaming or a GPU is asked for and cannot be.
    pub fn new(container: &Container, options: &Options) -> Result<Self> {
        let sizes = Sizes::of(container);
        let mut options = options.clone();
        if container.arriving().is_some() {
            if !matches!(options.paging.mode, Paging::Auto | Paging::Streamed) {
                return Err(Error::Argument(format!(
                    "{} is still coming, and can only be streamed: leave --paging out, or fetch all of it first (`yuan pull`)",
                    container.path().display()
                )));
            }
            options.paging.mode = Paging::Streamed;
        }
        let options = &options;
        if options.paging.mode == Paging::Streamed && !sizes.streams {
            let path = container.path().display();
            return Err(Error::Argument(format!(
                "the experts of {path} are not in tiles and cannot be streamed; convert it with yuan-quant"
            )));
        }
        let budget = Budget::of(options.paging.memory);
        let mut placement = Self::of(container.config(), &sizes, budget, options)?;
        if container.arriving().is_some() {
            placement.why = "its file is still coming".into();
        }
        placement.gpu = GpuPlacement::new(container, options, placement.batch.min(BATCH))?;
        if placement.gpu.room().is_some() {
            placement.batch = placement.batch.min(BATCH);
        }
        Ok(placement)
    }

    /// [`Placement::new`] of a model whose container need not be there, on the CPU.
    ///
    /// # Errors
    /// [`Error::Memory`] as there.
    pub fn of(config: &ModelConfig, sizes: &Sizes, budget: Budget, options: &Options) -> Result<Self> {
        let experts = config.layers * config.experts;
        let Sizes { data, expert: expert_bytes, embedding, streams: can_stream, .. } = *sizes;
        let trunk = data - expert_bytes * experts as u64;
        let kv = (State::kv_bytes(config, options.kv) as u64).saturating_mul(options.context as u64);
        let (transient, token) =
            (transient_slots(config.experts_used, options.paging.look_ahead), scratch_bytes(config));
        // Those of a pass, and those that its sequences have taken.
        let logits = (2 * 4 * LOGIT_ROWS * config.vocab) as u64;
        let sequence = State::bytes(config, options.kv, options.context);
        let fixed = (PROGRAM + trunk - embedding + logits).saturating_add(sequence);
        let smallest = fixed.saturating_add(token * LEAST as u64 + transient as u64 * expert_bytes);
        let batch = if options.batch == 0 { BATCH } else { options.batch.max(LEAST) };
        let mut placement = Self {
            mode: Mode::Mapped,
            why: String::new(),
            trunk,
            kv,
            pool: sequence,
            scratch: token.saturating_mul(batch as u64).saturating_add(logits),
            expert_bytes,
            experts,
            resident: experts,
            transient,
            batch,
            smallest,
            budget,
            gpu: GpuPlacement::Off(String::new()),
        };
        let room = placement.budget.bytes.saturating_sub(kv.saturating_add(placement.scratch));
        let fits = data <= room / 4 * 3;
        let container_is = format!("the container of {data} bytes");
        placement.mode = match options.paging.mode {
            Paging::Plain => Mode::Plain,
            Paging::Streamed => Mode::Streamed,
            Paging::Mapped | Paging::Auto if !can_stream => Mode::Plain,
            Paging::Mapped => Mode::Mapped,
            Paging::Auto if fits => Mode::Mapped,
            Paging::Auto => Mode::Streamed,
        };
        placement.why = match (options.paging.mode, placement.mode) {
            (Paging::Auto, Mode::Mapped) => format!("{container_is} fits into three quarters of the memory"),
            (Paging::Auto, Mode::Streamed) => {
                format!("{container_is} does not fit into three quarters of the memory")
            }
            (Paging::Auto | Paging::Mapped, Mode::Plain) => "no experts in tiles of a file".into(),
            _ => "as asked for".into(),
        };
        if placement.mode == Mode::Streamed {
            let mut most = if options.context == 0 { config.context } else { options.context };
            if options.batch > 0 {
                most = most.min(options.batch);
            }
            placement.trunk -= embedding;
            placement.divide(most, fixed, token)?;
            placement.scratch += logits;
        }
        if options.context == 0 {
            // Nobody has said how many tokens there will be: one sequence has its room in any case.
            placement.pool = State::bytes(config, options.kv, config.context);
        }
        if placement.mode != Mode::Streamed {
            let taken = PROGRAM + placement.scratch + data;
            placement.pool = placement.pool.max(placement.budget.bytes.saturating_sub(taken));
        }
        Ok(placement)
    }

    /// Shares what trunk and cache leave out between scratch, for batches of up to `context` tokens, and slots.
    fn divide(&mut self, context: usize, fixed: u64, token: u64) -> Result<()> {
        let budget = self.budget.bytes;
        if budget < self.smallest {
            return Err(Error::Memory(format!(
                "a memory of {budget} bytes ({}) is too small: the trunk takes {}, the cache of keys and values {}, and {} experts {} each. \
                 The smallest that works is --memory {}; a shorter --context or another --kv makes it smaller",
                self.budget.set_by, self.trunk, self.kv, self.transient, self.expert_bytes, self.smallest
            )));
        }
        let left = budget - fixed;
        let tokens = (left / SCRATCH_SHARE / token.max(1)) as usize / LEAST * LEAST;
        self.batch = tokens.clamp(LEAST, context.div_ceil(LEAST).max(1).saturating_mul(LEAST));
        self.scratch = token * self.batch as u64;
        let slots = (left.saturating_sub(self.scratch) / self.expert_bytes) as usize;
        self.resident = slots.saturating_sub(self.transient).min(self.experts);
        Ok(())
    }

    /// Whether all of it fits into the budget. (A container in rows, or one that is mapped as asked for, may be larger: the system then drops and reads
    /// again what it wants.)
    pub fn fits(&self, sizes: &Sizes) -> bool {
        let all = (PROGRAM + self.scratch + sizes.data).saturating_add(self.pool);
        self.mode == Mode::Streamed || all <= self.budget.bytes
    }

    /// Bytes of the slots of experts.
    pub fn arena(&self) -> u64 {
        match self.mode {
            Mode::Streamed => (self.resident + self.transient) as u64 * self.expert_bytes,
            Mode::Plain | Mode::Mapped => 0,
        }
    }
}

/// Bytes of intermediate results that one token of a batch takes, twice what is alive at once: a piece of memory may be used again for up to
/// half its size.
fn scratch_bytes(config: &ModelConfig) -> u64 {
    // The neurons of experts are kept in 8 bits.
    let neurons = if config.experts == 0 { 4 * config.ffn } else { config.experts_used * config.ffn / 3 };
    let values = 8 * config.projection + (10 + 2 * config.experts_used) * config.hidden + neurons;
    2 * 4 * values as u64
}

/// [`Sizes::unused`].
fn unused_bytes(container: &Container) -> u64 {
    let ModelConfig { layers, experts, experts_used, .. } = *container.config();
    let bytes = |layer: usize| match container.expert(layer, 0) {
        Ok(ExpertView::Rows { w1, w2 }) => (w1.bytes.len() + w2.bytes.len()) as u64,
        _ => 0,
    };
    // All experts of a layer are alike.
    (0..layers).map(bytes).sum::<u64>() * experts.saturating_sub(experts_used) as u64
}

fn is_mapped(container: &Container) -> bool {
    matches!(container.expert(0, 0), Ok(ExpertView::Tiles { bytes, .. }) if bytes.file_offset().is_some())
}
