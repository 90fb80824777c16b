//! Bringing experts into memory. One interface: *give me tile t of expert (layer, e)*.
//!
//! A [`Pass`] is one call of the model; each of its layers makes a [`Request`] for all experts that its tokens want, and takes
//! their tiles in any order. Behind that, experts are mapped and the page cache is the cache, or they are streamed: read
//! past the page cache into slots, of which a [`Policy`] keeps the most valuable.

pub mod budget;
pub mod drive;
mod pass;
mod policy;
mod pool;
mod request;
mod settings;
mod slot;
pub mod source;
pub mod system;
pub mod trace;
mod usage;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    container::Bytes,
    error::{Error, Result},
};
pub use pass::Pass;
use pass::Turn;
pub use policy::{Eviction, Plan, Policy};
use pool::Pool;
use request::unread;
pub use request::{Expert, Request};
pub use settings::{Paging, Settings};
pub(crate) use slot::lock;
use slot::{Arena, Arrivals, Slot};
use source::Source;
pub use usage::{Hits, Mode, Usage};

/// Slots beside those that a policy fills, for `used` experts a token: what is read is not cached yet. One more, so that the drive
/// works on while the last one is computed, and those of the next layer where the pager looks ahead.
pub const fn transient_slots(used: usize, look_ahead: bool) -> usize {
    if look_ahead { 2 * used + 1 } else { used + 1 }
}

/// The experts of a model, wherever they are, and the counters of their use.
pub struct Pager {
    backing: Backing,
    path: PathBuf,
    experts: usize,
    tile_bytes: usize,
    tiles: usize,
    arrivals: Arc<Arrivals>,
    prefill: Requests,
    decode: Requests,
    /// By `layer * experts + expert`.
    uses: Vec<AtomicU64>,
    record: Record,
}

/// The requests since the recording began, if one did.
type Record = Mutex<Option<Vec<(usize, Vec<usize>)>>>;

/// The experts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Experts of a layer.
    pub experts: usize,
    /// Tiles of an expert.
    pub tiles: usize,
    /// Bytes of a tile.
    pub tile_bytes: usize,
}

enum Backing {
    /// Every expert lies in the bytes of the container.
    Views {
        slots: Vec<Arc<Slot>>,
        /// Brings mapped pages in; none where that is left to the system.
        pool: Option<Pool>,
        /// Whether the page cache cannot hold everything: experts that were brought in for a single use leave first.
        cool: bool,
        /// Major faults when the pages were last known to be there.
        faults: AtomicU64,
    },
    Streamed(Box<Streamed>),
}

struct Streamed {
    /// Before the arena: reads end first.
    pool: Pool,
    arena: Arc<Arena>,
    residency: Mutex<Residency>,
    offsets: Vec<u64>,
    turn: Turn,
    guesses: Mutex<Guesses>,
}

/// Experts that are read before they are asked for.
#[derive(Default)]
struct Guesses {
    /// `(layer, expert)` with its place.
    slots: Vec<((usize, usize), Arc<Slot>)>,
    made: u64,
    right: u64,
}

struct Residency {
    policy: Policy,
    /// By `layer * experts + expert`.
    slots: Vec<Option<Arc<Slot>>>,
}

#[derive(Default)]
struct Requests {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Pager {
    /// A pager over `blobs` (layer-major, `experts` a layer), each a whole number of tiles of `tile_bytes`, that lie in memory or are
    /// left to the system. A model without tiled experts has none.
    ///
    /// # Errors
    /// [`Error::Argument`] when a blob has another size than the others or is no whole number of tiles.
    pub fn plain(blobs: Vec<Bytes>, experts: usize, tile_bytes: usize) -> Result<Self> {
        Self::views(blobs, experts, tile_bytes, true, None, false, Path::new(""))
    }

    /// A pager over `blobs` as in [`Pager::plain`], which `readers` threads (0: the usual number) bring in from the file at `path` when they
    /// are asked for. `cool` when the page cache cannot hold them all.
    ///
    /// # Errors
    /// As [`Pager::plain`]; [`Error::Argument`] when threads cannot be started.
    pub fn mapped(
        blobs: Vec<Bytes>,
        experts: usize,
        tile_bytes: usize,
        path: &Path,
        readers: usize,
        cool: bool,
    ) -> Result<Self> {
        let pool = Pool::new(readers, None)?;
        Self::views(blobs, experts, tile_bytes, false, Some(pool), cool, path)
    }

    /// A pager that reads the experts at `offsets` of `source` (layer-major) into as many
    /// slots as `policy` keeps and `transient` more. `path` names the source in errors.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no memory for the slots or no threads can be started.
    pub fn streamed(
        source: Box<dyn Source>,
        offsets: Vec<u64>,
        shape: Shape,
        policy: Policy,
        transient: usize,
        readers: usize,
        path: &Path,
    ) -> Result<Self> {
        let Shape { experts, tiles, tile_bytes } = shape;
        let arena = Arena::new(policy.capacity() + transient.max(1), tiles * tile_bytes)?;
        let slots = vec![None; offsets.len()];
        Ok(Self {
            path: path.into(),
            experts,
            tile_bytes,
            tiles,
            arrivals: Arc::default(),
            prefill: Requests::default(),
            decode: Requests::default(),
            uses: offsets.iter().map(|_| AtomicU64::new(0)).collect(),
            record: Record::default(),
            backing: Backing::Streamed(Box::new(Streamed {
                pool: Pool::new(readers, Some(source))?,
                arena,
                residency: Mutex::new(Residency { policy, slots }),
                offsets,
                turn: Turn::default(),
                guesses: Mutex::default(),
            })),
        })
    }

    fn views(
        blobs: Vec<Bytes>,
        experts: usize,
        tile_bytes: usize,
        there: bool,
        pool: Option<Pool>,
        cool: bool,
        path: &Path,
    ) -> Result<Self> {
        let tiles = blobs.first().map_or(0, |b| b.len() / tile_bytes.max(1));
        if let Some(i) = blobs.iter().position(|b| b.len() != tiles * tile_bytes) {
            let (layer, expert) = (i / experts.max(1), i % experts.max(1));
            return Err(Error::Argument(format!(
                "expert {expert} of layer {layer} is no row of {tiles} tiles of {tile_bytes} bytes"
            )));
        }
        let arrivals = Arc::default();
        let slot = |bytes| Arc::new(Slot::of_bytes(bytes, tile_bytes, there, &arrivals));
        let slots: Vec<_> = blobs.into_iter().map(slot).collect();
        Ok(Self {
            path: path.into(),
            experts,
            tile_bytes,
            tiles,
            prefill: Requests::default(),
            decode: Requests::default(),
            uses: slots.iter().map(|_| AtomicU64::new(0)).collect(),
            record: Record::default(),
            backing: Backing::Views { slots, pool, cool, faults: AtomicU64::new(0) },
            arrivals,
        })
    }

    /// How experts come into memory.
    pub fn mode(&self) -> Mode {
        match &self.backing {
            Backing::Views { pool: None, .. } => Mode::Plain,
            Backing::Views { .. } => Mode::Mapped,
            Backing::Streamed(_) => Mode::Streamed,
        }
    }

    /// Tiles of one expert.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// Bytes of one expert.
    pub fn expert_bytes(&self) -> usize {
        self.tiles * self.tile_bytes
    }

    /// One call of the model begins. Where experts are streamed, calls of several threads wait for each other here: not inside a
    /// thread pool, whose threads may take up another call's work while they wait.
    ///
    /// # Errors
    /// [`Error::Argument`] when this thread is within a call already.
    pub fn begin(&self) -> Result<Pass<'_>> {
        let turn = match &self.backing {
            Backing::Streamed(streamed) => Some(streamed.turn.take()?),
            Backing::Views { slots, pool: Some(_), faults, .. } => {
                // The system has dropped pages: which ones, only the next requests will find out.
                let now = system::major_faults();
                if faults.swap(now, Relaxed) != now {
                    slots.iter().for_each(|s| s.reset());
                }
                None
            }
            Backing::Views { .. } => None,
        };
        Ok(Pass { pager: self, _turn: turn })
    }

    /// The counters so far.
    pub fn usage(&self) -> Usage {
        let hits = |r: &Requests| Hits { hits: r.hits.load(Relaxed), misses: r.misses.load(Relaxed) };
        let pool = match &self.backing {
            Backing::Views { pool, .. } => pool.as_ref(),
            Backing::Streamed(streamed) => Some(&streamed.pool),
        };
        let work = pool.map(Pool::work).unwrap_or_default();
        let guesses = match &self.backing {
            Backing::Views { .. } => Hits::default(),
            Backing::Streamed(streamed) => {
                let guesses = lock(&streamed.guesses);
                Hits { hits: guesses.right, misses: guesses.made - guesses.right }
            }
        };
        Usage {
            uses: self.uses.iter().map(|u| u.load(Relaxed)).collect(),
            prefill: hits(&self.prefill),
            decode: hits(&self.decode),
            bytes_read: self.arrivals.bytes.load(Relaxed),
            retries: work.retries,
            guesses,
            drive_time: work.busy,
            waited: Duration::from_nanos(self.arrivals.waited.load(Relaxed)),
        }
    }

    /// Writes down every request from now on.
    pub fn record(&self) {
        *lock(&self.record) = Some(Vec::new());
    }

    /// The requests since [`Pager::record`]: of each the layer, and the experts chosen by its tokens. Ends the recording.
    pub fn recorded(&self) -> Vec<(usize, Vec<usize>)> {
        lock(&self.record).take().unwrap_or_default()
    }

    /// The experts `(layer, expert)` that are kept in memory, the most valuable first; none where the system decides.
    pub fn hot(&self) -> Vec<(usize, usize)> {
        match &self.backing {
            Backing::Views { .. } => Vec::new(),
            Backing::Streamed(streamed) => lock(&streamed.residency).policy.hot(),
        }
    }

    /// Reads experts into free slots, as many of the first ones of `wanted` as there is room for, and returns how many.
    ///
    /// # Errors
    /// As [`Pager::begin`]; [`Error::Io`] when one cannot be read; [`Error::Argument`] for an expert that there is not.
    pub fn warm(&self, wanted: &[(usize, usize)]) -> Result<usize> {
        let Backing::Streamed(streamed) = &self.backing else { return Ok(0) };
        let _pass = self.begin()?;
        let mut read = Vec::new();
        for &(layer, expert) in wanted {
            let index = self.index(layer, expert)?;
            let mut residency = lock(&streamed.residency);
            if !residency.policy.insert(layer, expert) {
                continue;
            }
            let Some(slot) = self.place(streamed, index) else {
                residency.policy.forget(layer, expert);
                break;
            };
            residency.slots[index] = Some(slot.clone());
            streamed.pool.ask(&slot);
            read.push((layer, expert, slot));
        }
        let mut failure = None;
        for (layer, expert, slot) in &read {
            if let Some(problem) = (0..self.tiles).find_map(|t| slot.tile(t).err()) {
                let mut residency = lock(&streamed.residency);
                residency.policy.forget(*layer, *expert);
                residency.slots[layer * self.experts + expert] = None;
                failure = Some(problem);
            }
        }
        match failure {
            None => Ok(read.len()),
            Some(problem) => Err(unread(&self.path, &problem)),
        }
    }

    /// A free place for an expert, if there is one.
    fn place(&self, streamed: &Streamed, index: usize) -> Option<Arc<Slot>> {
        let (place, offset) = (streamed.arena.take()?, streamed.offsets[index]);
        let (tile_bytes, tiles) = (self.tile_bytes, self.tiles);
        Some(Arc::new(Slot::in_arena(&streamed.arena, place, offset, tile_bytes, tiles, &self.arrivals)))
    }

    /// Reads an expert that is not there when nothing is asked for. Says whether there was room.
    fn guess(&self, streamed: &Streamed, layer: usize, expert: usize) -> bool {
        if lock(&streamed.residency).policy.is_resident(layer, expert) {
            return true;
        }
        let Some(slot) = self.place(streamed, layer * self.experts + expert) else { return false };
        streamed.pool.guess(&slot);
        let mut guesses = lock(&streamed.guesses);
        guesses.made += 1;
        guesses.slots.push(((layer, expert), slot));
        true
    }

    fn index(&self, layer: usize, expert: usize) -> Result<usize> {
        let index = layer.checked_mul(self.experts).and_then(|i| i.checked_add(expert));
        match index {
            Some(index) if expert < self.experts && index < self.uses.len() => Ok(index),
            _ => Err(Error::Argument(format!("there is no expert {expert} of layer {layer}"))),
        }
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pager({}, {} experts of {} tiles)", self.mode().name(), self.uses.len(), self.tiles)
    }
}
