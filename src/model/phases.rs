//! What a pass does when, and on which thread. One thread goes from phase to phase and shares out the work of each; the others take part in what is shared out.
//!
//! Nothing is recorded unless it is asked for ([`Model::record_phases`]); a phase, and work that is shared out, then cost a branch each, and a piece of such work nothing.

use std::{
    mem::take,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use rayon::{current_thread_index, prelude::*};

use super::{Model, compute::Compute};
use crate::{
    limits::MOST_SIMULATED,
    pager::sync::{Mutex, lock},
};

/// A part of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The sequences are checked, get memory, wait for passes before this one, and are handed over to the threads.
    Begin,
    /// Rows of the embedding.
    Embedding,
    /// The norms of a layer.
    Norm,
    /// The localized filter.
    Filter,
    /// Queries, keys and values.
    Qkv,
    /// Queries and keys are rotated; keys and values are stored.
    Store,
    /// Attention over what is stored.
    Attention,
    /// The projection of what attention gives.
    Output,
    /// The choice of experts, and asking for them.
    Router,
    /// Gate and up of the experts; all of them, where a thread walks whole experts, as with a prompt; in a dense model the MLP.
    Experts,
    /// Down of the experts.
    Down,
    /// The experts' outputs are weighted and added up.
    Sum,
    /// The last norm and the head.
    Logits,
    /// What is wanted is handed out, and states go on.
    End,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 14] = [
        Self::Begin,
        Self::Embedding,
        Self::Norm,
        Self::Filter,
        Self::Qkv,
        Self::Store,
        Self::Attention,
        Self::Output,
        Self::Router,
        Self::Experts,
        Self::Down,
        Self::Sum,
        Self::Logits,
        Self::End,
    ];

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Embedding => "embedding",
            Self::Norm => "norm",
            Self::Filter => "filter",
            Self::Qkv => "q k v",
            Self::Store => "rotate, store",
            Self::Attention => "attention",
            Self::Output => "output",
            Self::Router => "router",
            Self::Experts => "experts",
            Self::Down => "experts, down",
            Self::Sum => "experts, sum",
            Self::Logits => "logits",
            Self::End => "end",
        }
    }
}

/// A stretch of a phase. Times are counted from the beginning of the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Of which phase.
    pub phase: Phase,
    /// When it began.
    pub begin: Duration,
    /// When it ended.
    pub end: Duration,
}

impl Span {
    /// How long it was.
    pub fn time(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }
}

/// Work that was shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// From when it was shared out until all of it was done.
    pub span: Span,
    /// Pieces of it: of one piece all but one thread has nothing.
    pub pieces: usize,
    /// Whether threads took the pieces in their order, each the next one, or a range of them was halved until every thread had some.
    pub in_turn: bool,
}

/// A pass on the CPU that was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedPass {
    /// Its rows.
    pub rows: usize,
    /// The thread that went through it, by its number in `work`.
    pub thread: usize,
    /// Its phases, one after another without a gap.
    pub phases: Vec<Span>,
    /// What was shared out in them, in order.
    pub shared: Vec<Shared>,
    /// Of every thread, when it worked on what was shared out: a span for each piece.
    pub work: Vec<Vec<Span>>,
}

/// Spans of a thread in a pass at most, 40 bytes each; later ones are left out.
const MOST: usize = 1 << 20;

/// Whether passes are recorded, and where.
#[derive(Debug, Default)]
pub(super) struct Phases {
    on: AtomicBool,
    /// For how many threads work is cut, where they are more than run.
    cut_for: AtomicUsize,
    recorder: Mutex<Option<Arc<Recorder>>>,
}

#[derive(Debug)]
struct Recorder {
    start: Instant,
    /// Those that have ended.
    passes: Mutex<Vec<RecordedPass>>,
    /// The one that runs, without the work of its threads.
    running: Mutex<Option<RecordedPass>>,
    /// By thread, what it has worked on in that pass.
    work: Vec<Mutex<Vec<Span>>>,
}

impl Phases {
    fn recorder(&self) -> Option<Arc<Recorder>> {
        if self.on.load(Relaxed) { lock(&self.recorder).clone() } else { None }
    }

    /// A pass of so many rows, which was called for at `start`, runs in this thread until the result is dropped. It is the only one.
    pub fn pass(&self, rows: usize, start: Instant) -> Option<impl Drop> {
        struct Ends(Arc<Recorder>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        self.recorder().map(|recorder| {
            let begin = start.saturating_duration_since(recorder.start);
            let phases = vec![Span { phase: Phase::Begin, begin, end: begin }];
            let thread = current_thread_index().unwrap_or(0);
            *lock(&recorder.running) = Some(RecordedPass { rows, thread, phases, ..RecordedPass::default() });
            Ends(recorder)
        })
    }
}

impl Recorder {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The pass goes on with `phase`.
    fn turn(&self, phase: Phase) {
        if let Some(pass) = lock(&self.running).as_mut()
            && let Some(last) = pass.phases.last_mut()
            && last.phase != phase
        {
            let now = self.now();
            last.end = now;
            pass.phases.push(Span { phase, begin: now, end: now });
        }
    }

    /// Work of the present phase is shared out until the result is dropped.
    fn share(&self, in_turn: bool) -> Sharing<'_> {
        let running = lock(&self.running);
        let phase =
            running.as_ref().and_then(|pass| pass.phases.last()).map_or(Phase::Begin, |last| last.phase);
        Sharing { recorder: self, phase, begin: self.now(), pieces: AtomicUsize::new(0), in_turn }
    }

    /// The thread that calls this has worked.
    fn worked(&self, span: Span) {
        let Some(work) = current_thread_index().and_then(|thread| self.work.get(thread)) else { return };
        let mut work = lock(work);
        if work.len() < MOST {
            work.push(span);
        }
    }

    fn end(&self) {
        let Some(mut pass) = lock(&self.running).take() else { return };
        if let Some(last) = pass.phases.last_mut() {
            last.end = self.now();
        }
        pass.work = self.work.iter().map(|work| take(&mut *lock(work))).collect();
        lock(&self.passes).push(pass);
    }
}

/// What is shared out at the moment.
struct Sharing<'r> {
    recorder: &'r Recorder,
    phase: Phase,
    begin: Duration,
    pieces: AtomicUsize,
    in_turn: bool,
}

impl Sharing<'_> {
    /// The thread that calls this does `work`, which is a piece of it.
    fn piece(&self, work: impl FnOnce()) {
        let begin = self.recorder.now();
        work();
        self.pieces.fetch_add(1, Relaxed);
        self.recorder.worked(Span { phase: self.phase, begin, end: self.recorder.now() });
    }
}

impl Drop for Sharing<'_> {
    fn drop(&mut self) {
        let span = Span { phase: self.phase, begin: self.begin, end: self.recorder.now() };
        if let Some(pass) = lock(&self.recorder.running).as_mut() {
            let (pieces, in_turn) = (self.pieces.load(Relaxed), self.in_turn);
            pass.shared.push(Shared { span, pieces, in_turn });
        }
    }
}

impl Compute {
    /// The pass goes on with `phase`.
    pub fn phase(&self, phase: Phase) {
        if let Some(recorder) = self.phases.recorder() {
            recorder.turn(phase);
        }
    }

    /// For how many threads work is cut: those of the pass, unless a recording is for more.
    pub fn cut_for(&self) -> usize {
        self.phases.cut_for.load(Relaxed).max(self.threads())
    }

    /// Shares out `items` among the threads of the pass, and does `work` with each.
    pub fn each<I: ParallelIterator>(&self, items: I, work: impl Fn(I::Item) + Send + Sync) {
        match self.phases.recorder() {
            None => self.run(|| items.for_each(work)),
            Some(recorder) => {
                let sharing = recorder.share(false);
                self.run(|| items.for_each(|item| sharing.piece(|| work(item))));
            }
        }
    }

    /// [`Compute::each`] of items that threads take in their order, as each comes to it.
    pub fn in_turn<T>(&self, items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Send + Sync) {
        self.in_turn_with(items, || (), |(), item| work(item));
    }

    /// [`Compute::in_turn`] with what `init` gives, which a thread uses again from item to item.
    pub fn in_turn_with<T, W>(
        &self,
        items: impl Iterator<Item = T> + Send,
        init: impl Fn() -> W + Send + Sync,
        work: impl Fn(&mut W, T) + Send + Sync,
    ) {
        let items = Mutex::new(items.fuse());
        let take = || lock(&items).next();
        let each = |work: &(dyn Fn(&mut W, T) + Sync)| {
            if let Some(first) = take() {
                let mut of = init();
                work(&mut of, first);
                while let Some(item) = take() {
                    work(&mut of, item);
                }
            }
        };
        let threads = || (0..self.threads()).into_par_iter().with_max_len(1);
        match self.phases.recorder() {
            None => self.run(|| threads().for_each(|_| each(&work))),
            Some(recorder) => {
                let sharing = recorder.share(true);
                let piece = |of: &mut W, item| sharing.piece(|| work(of, item));
                self.run(|| threads().for_each(|_| each(&piece)));
            }
        }
    }
}

impl Model {
    /// Records the phases of the passes on the CPU from now on, which costs some hundredths of a microsecond for each piece of work. Work is cut as for `cut_for` threads,
    /// where those that run are fewer (0: as for those; at most [`MOST_SIMULATED`]): a recording of one thread then has the pieces that so many would share.
    pub fn record_phases(&self, cut_for: usize) {
        self.compute.phases.cut_for.store(cut_for.min(MOST_SIMULATED), SeqCst);
        let threads = self.threads().max(self.batch_threads());
        *lock(&self.compute.phases.recorder) = Some(Arc::new(Recorder {
            start: Instant::now(),
            passes: Mutex::default(),
            running: Mutex::default(),
            work: (0..threads).map(|_| Mutex::default()).collect(),
        }));
        self.compute.phases.on.store(true, SeqCst);
    }

    /// The passes that were recorded since [`Model::record_phases`]. Ends the recording.
    pub fn recorded_phases(&self) -> Vec<RecordedPass> {
        self.compute.phases.on.store(false, SeqCst);
        self.compute.phases.cut_for.store(0, SeqCst);
        let recorder = lock(&self.compute.phases.recorder).take();
        recorder.map_or_else(Vec::new, |recorder| take(&mut *lock(&recorder.passes)))
    }
}
