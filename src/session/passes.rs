//! The loop: one thread that forms passes of the model out of what all sessions want. Nobody else runs the model of an engine, so no two passes
//! share the threads that compute.
//!
//! A session lends its state with some tokens and waits until both come back: after one pass, which may have run a part of the tokens only.
//! Whatever happens, a panic in the pass or the end of the loop, the state comes back.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    company::Company,
    lent::Lent,
    runner::Runner,
    schedule::{Room, Share, next_pass},
    stats::Counts,
    sync::{
        Mutex, lock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel},
        now,
        thread::{self, JoinHandle},
    },
    work::{Answer, Pass, Task, Work, wait},
};
use crate::{
    error::{Error, Result},
    model::{LOGIT_ROWS, Model, Output, Want},
    pager::Mode,
};

/// Sequences of one pass: all may want logits.
const SEQUENCES: usize = LOGIT_ROWS;
/// Tokens of a prompt that go into one pass, where answers are waited for.
const PIECE: usize = 128;

/// The loop of an engine, and how sessions reach it.
pub struct Passes {
    runner: Arc<dyn Runner>,
    /// There until this is dropped.
    inbox: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Mutex<Counts>>,
    sessions: AtomicU64,
}

impl Passes {
    /// The loop of a model.
    ///
    /// # Errors
    /// [`Error::Memory`] when the thread cannot be started.
    pub fn of(model: &Arc<Model>) -> Result<Self> {
        let tokens = model.batch();
        // Streamed experts are read once a pass, so there a prompt keeps its whole batch.
        let piece = if model.pager().mode() == Mode::Streamed { tokens } else { PIECE.min(tokens) };
        Self::start(model.clone() as _, Room { sequences: SEQUENCES, tokens, piece })
    }

    pub(super) fn start(runner: Arc<dyn Runner>, room: Room) -> Result<Self> {
        let (inbox, work) = channel();
        let counts = Arc::<Mutex<Counts>>::default();
        let turns = Loop {
            runner: runner.clone(),
            room,
            line: Vec::new(),
            company: Company::default(),
            counts: counts.clone(),
        };
        let thread = thread::Builder::new().name("yuan-passes".into()).spawn(|| turns.run(work));
        let thread = thread.map_err(|e| Error::Memory(format!("cannot start the engine's thread: {e}")))?;
        Ok(Self { runner, inbox: Some(inbox), thread: Some(thread), counts, sessions: AtomicU64::new(0) })
    }

    /// A number for one more session.
    pub(super) fn join(&self) -> u64 {
        self.sessions.fetch_add(1, Relaxed)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    /// Runs `tokens` or the first of them, in one pass. The last so many are `drafted`: they are run as far as there is room beside the tokens of others. `want` is of
    /// the last of them: where that was not run, the output is [`Output::Nothing`]; [`Want::Hidden`] is of those that were run, and [`Want::Tail`] of the last token that
    /// is no draft and of those drafts that were run.
    ///
    /// # Errors
    /// Those of [`Model::forward`]; [`Error::Internal`] when the pass panicked. The state is then as before.
    pub(super) fn run(
        &self,
        session: u64,
        state: &mut Lent,
        (tokens, drafted): (Vec<u32>, usize),
        want: Want,
    ) -> Result<(Output, Pass)> {
        let task = Task::Run { state: state.take(), tokens, drafted, want };
        let answer = wait(&self.hand_in(session, task));
        *state = answer.state;
        answer.result.map(|output| (output, answer.pass))
    }

    /// Counts a draft that was the next token.
    pub(super) fn count_accepted(&self) {
        lock(&self.counts).accepted += 1;
    }

    /// The logits of so many hidden states, [`LOGIT_ROWS`] at most.
    ///
    /// # Errors
    /// As [`Model::logits`]; [`Error::Internal`] as [`Passes::run`].
    pub(super) fn logits(&self, session: u64, hidden: &[f32], rows: usize) -> Result<Vec<f32>> {
        let task = Task::Head { hidden: hidden.to_vec(), rows };
        wait(&self.hand_in(session, task)).result.map(Output::into_rows)
    }

    /// The answer comes by what is returned.
    pub(super) fn hand_in(&self, session: u64, task: Task) -> Receiver<Answer> {
        let (back, answer) = sync_channel(1);
        let work = Work { session, task, since: now(), back: Some(back) };
        if self.runner.is_inside()
            || self.thread.as_ref().is_some_and(|t| t.thread().id() == thread::current().id())
        {
            let problem =
                "a session was used from within a pass of its engine; use it on a thread of its own";
            work.answer(Err(Error::Argument(problem.into())), Pass::default());
        } else if let Some(inbox) = &self.inbox {
            // Work that cannot be handed in is dropped, and so answered.
            let _ = inbox.send(work);
        }
        answer
    }
}

impl fmt::Debug for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passes").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Drop for Passes {
    fn drop(&mut self) {
        self.inbox = None;
        if let Some(thread) = self.thread.take() {
            // It has caught what panicked.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Loop {
    runner: Arc<dyn Runner>,
    room: Room,
    /// What waits, in the order in which it came.
    line: Vec<Work>,
    company: Company,
    counts: Arc<Mutex<Counts>>,
}

impl Loop {
    /// Until nobody can hand in work any more.
    fn run(mut self, inbox: Receiver<Work>) {
        while self.gather(&inbox) {
            if self.line.iter().any(Work::is_head) { self.heads() } else { self.pass() }
        }
    }

    /// Waits for work and, a little, for those who are expected. `false` at the end.
    fn gather(&mut self, inbox: &Receiver<Work>) -> bool {
        loop {
            while let Ok(work) = inbox.try_recv() {
                self.admit(work);
            }
            for work in self.line.extract_if(.., |work| work.is_cancelled()) {
                self.company.left(work.session);
                work.answer(Err(Error::Cancelled), Pass::default());
            }
            if self.line.is_empty() {
                match inbox.recv() {
                    Ok(work) => self.admit(work),
                    Err(_) => return false,
                }
                continue;
            }
            let left = self.company.awaited().and_then(|until| until.checked_duration_since(now()));
            match left.map(|left| inbox.recv_timeout(left)) {
                Some(Ok(work)) => self.admit(work),
                None | Some(Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => return true,
            }
        }
    }

    fn admit(&mut self, work: Work) {
        self.company.came(work.session, work.since);
        self.line.push(work);
    }

    /// Takes those out of the line of whom `wanted` says so, by their places.
    fn take(&mut self, mut wanted: impl FnMut(usize, &Work) -> bool) -> Vec<Work> {
        let mut places = 0..;
        let mut taken = |work: &mut Work| wanted(places.next().unwrap_or_default(), work);
        self.line.extract_if(.., &mut taken).collect()
    }

    /// Runs a pass of what waits.
    fn pass(&mut self) {
        let line: Vec<_> = self.line.iter().map(Work::waiting).collect();
        let answering =
            self.company.answering(|session| self.line.iter().any(|work| work.session == session));
        let mut shares = next_pass(&line, answering, &self.room);
        shares.sort_unstable_by_key(|share| share.place);
        let mut works = self.take(|place, _| shares.iter().any(|share| share.place == place));
        let answers = |share: &Share| line[share.place].is_answer();
        let drafted = |share: &Share| share.tokens.saturating_sub(line[share.place].tokens);
        self.count(&works, shares.iter().map(|share| share.tokens).sum(), line.len());
        lock(&self.counts).drafted += shares.iter().map(drafted).sum::<usize>() as u64;

        let start = now();
        let mut sequences: Vec<_> = works.iter_mut().zip(&shares).filter_map(Work::sequence).collect();
        let results = catch_unwind(AssertUnwindSafe(|| self.runner.forward(&mut sequences)));
        let parts = works.iter().zip(&shares).map(|(work, share)| (work.session, answers(share)));
        let end = now();
        self.company.ran(parts, end - start, end);
        let took = shares.iter().all(answers).then_some(end - start);
        let pass = Pass { sequences: works.len(), took };
        match results {
            Ok(results) => {
                works.into_iter().zip(results).for_each(|(work, result)| work.answer(result, pass))
            }
            Err(panic) => self.panicked(works, panic.as_ref()),
        }
    }

    /// Computes the logits of hidden states that wait: one product for as many as there is memory for.
    fn heads(&mut self) {
        let (waiting, mut room) = (self.line.len(), LOGIT_ROWS);
        let works = self.take(|_, work| {
            let taken = work.is_head() && work.rows() <= room;
            room -= if taken { work.rows() } else { 0 };
            taken
        });
        self.count(&works, 0, waiting);
        let start = now();
        let hidden: Vec<f32> = works.iter().flat_map(Work::hidden).copied().collect();
        let logits = catch_unwind(AssertUnwindSafe(|| self.runner.logits(&hidden)));
        let end = now();
        self.company.ran(works.iter().map(|work| (work.session, false)), end - start, end);
        match logits {
            Ok(Ok(logits)) => {
                let vocab = logits.len() / works.iter().map(Work::rows).sum::<usize>().max(1);
                let mut rest = &logits[..];
                for work in works {
                    let (rows, behind) = rest.split_at(work.rows() * vocab);
                    rest = behind;
                    work.answer(Ok(Output::Rows(rows.to_vec())), Pass::default());
                }
            }
            // The file has failed all of them; each hears it from a product of its own.
            Ok(Err(_)) => works.into_iter().for_each(|work| {
                let alone = catch_unwind(AssertUnwindSafe(|| self.runner.logits(work.hidden())));
                match alone {
                    Ok(logits) => work.answer(logits.map(Output::Rows), Pass::default()),
                    Err(panic) => self.panicked(vec![work], panic.as_ref()),
                }
            }),
            Err(panic) => self.panicked(works, panic.as_ref()),
        }
    }

    fn count(&self, works: &[Work], tokens: usize, line: usize) {
        let mut counts = lock(&self.counts);
        counts.passes += 1;
        counts.tokens += tokens as u64;
        counts.sequences += works.len() as u64;
        counts.most_sequences = counts.most_sequences.max(works.len());
        counts.longest_line = counts.longest_line.max(line);
        counts.waited += works.iter().map(|work| work.since.elapsed()).sum::<Duration>();
    }

    /// The pass of these works has panicked.
    fn panicked(&self, works: Vec<Work>, panic: &(dyn Any + Send)) {
        lock(&self.counts).panics += 1;
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let problem = format!("a pass of the model panicked: {}", text.unwrap_or("no message"));
        let error = || Err(Error::Internal(problem.clone()));
        works.into_iter().for_each(|work| work.answer(error(), Pass::default()));
    }
}

#[cfg(test)]
mod tests;
