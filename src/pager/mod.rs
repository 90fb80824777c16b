//! Bringing experts into memory. One interface: *give me tile t of expert (layer, e)*.
//!
//! A [`Pass`] is one call of the model; each of its layers makes a [`Request`] for all experts that its tokens want, and takes
//! their tiles in any order. Behind that, experts are mapped and the page cache is the cache, or they are streamed: read
//! past the page cache into slots, of which a [`Policy`] keeps the most valuable.

mod arriving;
mod calibrate;
mod expert;
#[cfg(all(test, loom))]
mod models;
mod pass;
mod policy;
mod pool;
mod request;
mod settings;
mod slot;
pub(crate) mod sync;
pub mod trace;
mod usage;
mod views;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    container::Bytes,
    error::{Error, Result},
    machine::source::Source,
};
pub(crate) use arriving::ArrivingExperts;
pub use calibrate::calibrate;
pub use expert::Expert;
use expert::unread;
pub use pass::Pass;
pub use policy::{Decision, Eviction, Policy};
use pool::Pool;
pub use request::Request;
pub use settings::{Paging, Settings};
use slot::{Arena, Arrivals, Slot};
use sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
    lock,
};
pub use usage::{Hits, Mode, Usage};
use views::{BringingIn, Views};

/// Slots beside those that a policy fills, for `used` experts a token: what is read is not cached yet. One more, so that the drive
/// works on while the last one is computed, and those of the next layer where the pager looks ahead.
pub const fn transient_slots(used: usize, look_ahead: bool) -> usize {
    if look_ahead { 2 * used + 1 } else { used + 1 }
}

/// The experts of a model, wherever they are, and the counters of their use.
pub struct Pager {
    backing: Backing,
    /// Held by the pass that there is.
    passing: Mutex<()>,
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
    Views(Views),
    Streamed(Box<Streamed>),
}

struct Streamed {
    /// Before the arena: reads end first.
    pool: Pool,
    arena: Arc<Arena>,
    residency: Mutex<Residency>,
    offsets: Vec<u64>,
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
        Self::views(blobs, experts, tile_bytes, None, Path::new(""))
    }

    /// A pager over `blobs` as in [`Pager::plain`], which the reading threads of `settings` bring in from the file at `path` when they are
    /// asked for. `cool` when the page cache cannot hold them all.
    ///
    /// # Errors
    /// As [`Pager::plain`]; [`Error::Argument`] when threads cannot be started.
    pub fn mapped(
        blobs: Vec<Bytes>,
        experts: usize,
        tile_bytes: usize,
        path: &Path,
        settings: &Settings,
        cool: bool,
    ) -> Result<Self> {
        let (pool, major_faults) = (Pool::new(settings.readers, None)?, settings.major_faults);
        Self::views(blobs, experts, tile_bytes, Some(BringingIn { pool, cool, major_faults }), path)
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
            passing: Mutex::default(),
            backing: Backing::Streamed(Box::new(Streamed {
                pool: Pool::new(readers, Some(source))?,
                arena,
                residency: Mutex::new(Residency { policy, slots }),
                offsets,
                guesses: Mutex::default(),
            })),
        })
    }

    fn views(
        blobs: Vec<Bytes>,
        experts: usize,
        tile_bytes: usize,
        bringing_in: Option<BringingIn>,
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
        Ok(Self {
            path: path.into(),
            experts,
            tile_bytes,
            tiles,
            prefill: Requests::default(),
            decode: Requests::default(),
            uses: blobs.iter().map(|_| AtomicU64::new(0)).collect(),
            record: Record::default(),
            passing: Mutex::default(),
            backing: Backing::Views(Views::new(blobs, tile_bytes, &arrivals, bringing_in)),
            arrivals,
        })
    }

    /// How experts come into memory.
    pub fn mode(&self) -> Mode {
        match &self.backing {
            Backing::Views(views) if views.pool().is_none() => Mode::Plain,
            Backing::Views(_) => Mode::Mapped,
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

    /// Enters the pages of mapped experts that the system has in memory, in the background (`views.rs`).
    pub fn enter_pages(&self) {
        if let Backing::Views(views) = &self.backing {
            views.enter_pages();
        }
    }

    /// One pass of the model begins, once no other is there: passes wait for each other here, before they enter a thread pool, whose threads
    /// may take up another pass's work while they wait. A thread that has a pass must not begin another: it would wait for itself.
    pub fn begin(&self) -> Pass<'_> {
        let alone = lock(&self.passing);
        let generation = match &self.backing {
            Backing::Streamed(_) => 0,
            Backing::Views(views) => views.generation(),
        };
        Pass { pager: self, generation, _alone: alone }
    }

    /// The counters so far.
    pub fn usage(&self) -> Usage {
        let hits = |r: &Requests| Hits { hits: r.hits.load(Relaxed), misses: r.misses.load(Relaxed) };
        let pool = match &self.backing {
            Backing::Views(views) => views.pool(),
            Backing::Streamed(streamed) => Some(&streamed.pool),
        };
        let reads = pool.map(Pool::reads).unwrap_or_default();
        let guesses = match &self.backing {
            Backing::Views(_) => Hits::default(),
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
            retries: reads.retries,
            guesses,
            drive_time: reads.busy,
            waited: Duration::from_nanos(self.arrivals.waited.load(Relaxed)),
        }
    }

    /// Which experts are in memory, by `layer * experts + expert`: those that are kept, where they are streamed; those that were brought in, where they
    /// are mapped, though the system may have dropped their pages since; all of them otherwise. Calls are held up by no more than a look at each.
    pub fn in_memory(&self) -> Vec<bool> {
        match &self.backing {
            Backing::Views(views) => views.in_memory(),
            Backing::Streamed(streamed) => {
                // Within the lock: whoever shares a slot delays its reuse.
                let residency = lock(&streamed.residency);
                residency.slots.iter().map(|slot| slot.as_ref().is_some_and(|slot| slot.is_whole())).collect()
            }
        }
    }

    /// Tokens used experts of a layer that were not asked for here, because a GPU has them.
    #[cfg(feature = "gpu")]
    pub(crate) fn used_elsewhere(&self, layer: usize, experts: impl Iterator<Item = usize>) {
        experts.filter_map(|e| self.index(layer, e).ok()).for_each(|i| {
            self.uses[i].fetch_add(1, Relaxed);
        });
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
            Backing::Views(_) => Vec::new(),
            Backing::Streamed(streamed) => lock(&streamed.residency).policy.hot(),
        }
    }

    /// Reads experts into free slots, as many of the first ones of `wanted` as there is room for, and returns how many.
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be read; [`Error::Argument`] for an expert that there is not.
    pub fn warm(&self, wanted: &[(usize, usize)]) -> Result<usize> {
        let Backing::Streamed(streamed) = &self.backing else { return Ok(0) };
        let _pass = self.begin();
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
