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
    schedule::{Room, next_pass},
    stats::Counts,
    sync::{
        Mutex, lock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel},
        now,
        thread::{self, JoinHandle},
    },
    work::{Answer, Task, Work, wait},
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

    /// Runs `tokens` or the first of them, in one pass. `want` is of the last of them: where that was not run, the output is [`Output::Nothing`];
    /// [`Want::Hidden`] is of those that were run.
    ///
    /// # Errors
    /// Those of [`Model::forward`]; [`Error::Internal`] when the pass panicked. The state is then as before.
    pub(super) fn run(&self, session: u64, state: &mut Lent, tokens: Vec<u32>, want: Want) -> Result<Output> {
        let answer = wait(&self.hand_in(session, Task::Run { state: state.take(), tokens, want }));
        *state = answer.state;
        answer.result
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
            work.answer(Err(Error::Argument(problem.into())));
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
            if self.line.iter().any(|work| work.tokens() == 0) { self.heads() } else { self.pass() }
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
                work.answer(Err(Error::Cancelled));
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
        let line: Vec<_> = self.line.iter().map(Work::tokens).collect();
        let answering =
            self.company.answering(|session| self.line.iter().any(|work| work.session == session));
        let mut shares = next_pass(&line, answering, &self.room);
        shares.sort_unstable_by_key(|share| share.place);
        let mut works = self.take(|place, _| shares.iter().any(|share| share.place == place));
        self.count(&works, shares.iter().map(|share| share.tokens).sum(), line.len());

        let start = now();
        let mut sequences: Vec<_> = works.iter_mut().zip(&shares).filter_map(Work::sequence).collect();
        let results = catch_unwind(AssertUnwindSafe(|| self.runner.forward(&mut sequences)));
        let parts = works.iter().zip(&shares).map(|(work, share)| (work.session, share.tokens));
        let end = now();
        self.company.ran(parts, end - start, end);
        match results {
            Ok(results) => works.into_iter().zip(results).for_each(|(work, result)| work.answer(result)),
            Err(panic) => self.panicked(works, panic.as_ref()),
        }
    }

    /// Computes the logits of hidden states that wait: one product for as many as there is memory for.
    fn heads(&mut self) {
        let (waiting, mut room) = (self.line.len(), LOGIT_ROWS);
        let works = self.take(|_, work| {
            let taken = work.tokens() == 0 && work.rows() <= room;
            room -= if taken { work.rows() } else { 0 };
            taken
        });
        self.count(&works, 0, waiting);
        let start = now();
        let hidden: Vec<f32> = works.iter().flat_map(Work::hidden).copied().collect();
        let logits = catch_unwind(AssertUnwindSafe(|| self.runner.logits(&hidden)));
        let end = now();
        self.company.ran(works.iter().map(|work| (work.session, 0)), end - start, end);
        match logits {
            Ok(Ok(logits)) => {
                let vocab = logits.len() / works.iter().map(Work::rows).sum::<usize>().max(1);
                let mut rest = &logits[..];
                for work in works {
                    let (rows, behind) = rest.split_at(work.rows() * vocab);
                    rest = behind;
                    work.answer(Ok(Output::Rows(rows.to_vec())));
                }
            }
            // The file has failed all of them; each hears it from a product of its own.
            Ok(Err(_)) => works.into_iter().for_each(|work| {
                let alone = catch_unwind(AssertUnwindSafe(|| self.runner.logits(work.hidden())));
                match alone {
                    Ok(logits) => work.answer(logits.map(Output::Rows)),
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
        works.into_iter().for_each(|work| work.answer(Err(Error::Internal(problem.clone()))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{KvType, Sequence, State},
        quantize::synth::tiny,
    };

    /// What a pass is to do.
    enum Step {
        Run,
        Panic,
    }

    /// A model that writes down the passes that it is given, as the first token and the number of tokens of each sequence, and runs each when it
    /// is told to.
    struct Script {
        passes: Mutex<Vec<Vec<(u32, usize)>>>,
        steps: Mutex<Receiver<Step>>,
        began: Sender<()>,
    }

    impl Runner for Script {
        fn forward(&self, sequences: &mut [Sequence<'_>]) -> Vec<Result<Output>> {
            let pass = sequences.iter().map(|s| (s.tokens[0], s.tokens.len())).collect();
            self.passes.lock().unwrap().push(pass);
            self.began.send(()).unwrap();
            let step = self.steps.lock().unwrap().recv();
            match step {
                Ok(Step::Panic) => panic!("as the script says"),
                // Where nobody says anything any more, it runs.
                Ok(Step::Run) | Err(_) => {}
            }
            let output = |s: &Sequence<'_>| match s.want {
                Want::Nothing => Output::Nothing,
                _ => Output::Rows(vec![s.tokens[s.tokens.len() - 1] as f32]),
            };
            sequences.iter().map(|s| Ok(output(s))).collect()
        }

        fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
            match hidden {
                [13.0, ..] => Err(Error::Argument("thirteen".into())),
                _ => Ok(hidden.to_vec()),
            }
        }

        fn is_inside(&self) -> bool {
            false
        }
    }

    /// The sender first: the loop then ends, whatever a test has left.
    struct Stage {
        step: Sender<Step>,
        passes: Passes,
        script: Arc<Script>,
        began: Receiver<()>,
    }

    impl Stage {
        fn new() -> Self {
            let ((step, steps), (began, begun)) = (channel(), channel());
            let script = Arc::new(Script { passes: Mutex::default(), steps: Mutex::new(steps), began });
            let room = Room { sequences: 64, tokens: 512, piece: 128 };
            Self { passes: Passes::start(script.clone(), room).unwrap(), script, step, began: begun }
        }

        /// Hands in `tokens` of the same number, by which the script shows them.
        fn hand_in(&self, number: u32, tokens: usize) -> Receiver<Answer> {
            let state = State::new(&tiny(), 8, KvType::F16).unwrap();
            self.hand_in_with(state, number, tokens)
        }

        fn hand_in_with(&self, state: State, number: u32, tokens: usize) -> Receiver<Answer> {
            let task = Task::Run { state: Lent::new(state), tokens: vec![number; tokens], want: Want::Last };
            self.passes.hand_in(u64::from(number), task)
        }

        /// The pass that is running, once it runs.
        fn running(&self) -> Vec<(u32, usize)> {
            self.began.recv().unwrap();
            self.script.passes.lock().unwrap().last().unwrap().clone()
        }

        fn go(&self) {
            self.step.send(Step::Run).unwrap();
        }
    }

    #[test]
    fn a_token_beside_long_prompts_is_in_the_next_pass() {
        let stage = Stage::new();
        let first = stage.hand_in(1, 512);
        assert_eq!(stage.running(), [(1, 512)], "alone, it has the whole batch");
        let waiting = [stage.hand_in(2, 512), stage.hand_in(3, 512), stage.hand_in(9, 1)];
        stage.go();
        assert_eq!(wait(&first).result.unwrap(), Output::Rows(vec![1.0]));
        assert_eq!(stage.running(), [(2, 128), (9, 1)]);
        // The first prompt goes on behind the third, and the answer goes on, too.
        let again = stage.hand_in(1, 512);
        stage.go();
        assert_eq!(wait(&waiting[0]).result.unwrap(), Output::Nothing, "a piece is not the end");
        assert_eq!(wait(&waiting[2]).result.unwrap(), Output::Rows(vec![9.0]));
        assert_eq!(stage.running(), [(3, 128)]);
        let token = stage.hand_in(9, 1);
        stage.go();
        assert_eq!(stage.running(), [(1, 128), (9, 1)]);
        stage.go();
        wait(&again).result.unwrap();
        wait(&token).result.unwrap();
        let counts = stage.passes.counts();
        assert_eq!((counts.passes, counts.sequences, counts.tokens), (4, 6, 512 + 128 + 1 + 128 + 128 + 1));
        assert_eq!((counts.most_sequences, counts.longest_line), (2, 3));
    }

    #[test]
    fn a_panic_fails_its_pass_and_the_loop_lives() {
        let stage = Stage::new();
        let one = stage.hand_in(1, 1);
        stage.running();
        let two = [stage.hand_in(2, 1), stage.hand_in(3, 40)];
        stage.go();
        stage.running();
        stage.step.send(Step::Panic).unwrap();
        for answer in &two {
            let answer = wait(answer);
            assert!(
                matches!(&answer.result, Err(Error::Internal(text)) if text.contains("as the script says"))
            );
            assert_eq!(answer.state.capacity(), 8, "the state is back");
        }
        assert!(wait(&one).result.is_ok());
        let next = stage.hand_in(2, 1);
        stage.running();
        stage.go();
        assert!(wait(&next).result.is_ok());
        assert_eq!(stage.passes.counts().panics, 1);
    }

    #[test]
    fn cancelled_work_leaves_the_line_and_nobody_waits_for_it() {
        let stage = Stage::new();
        let one = stage.hand_in(1, 1);
        stage.running();
        let state = State::new(&tiny(), 8, KvType::F16).unwrap();
        let (cancel, _call) = (state.cancel.clone(), state.cancel.begin());
        let two = stage.hand_in_with(state, 2, 512);
        cancel.cancel();
        let three = stage.hand_in(3, 1);
        stage.go();
        let answer = wait(&two);
        assert!(matches!(answer.result, Err(Error::Cancelled)));
        assert_eq!(answer.state.capacity(), 8);
        assert_eq!(stage.running(), [(3, 1)]);
        stage.go();
        assert!(wait(&one).result.is_ok() && wait(&three).result.is_ok());
    }

    #[test]
    fn who_does_not_wait_for_the_answer_leaves_nothing_behind() {
        let stage = Stage::new();
        drop(stage.hand_in(1, 1));
        drop(stage.hand_in(2, 300));
        stage.running();
        stage.go();
        stage.go();
        let next = stage.hand_in(3, 1);
        stage.go();
        assert!(wait(&next).result.is_ok());
    }

    #[test]
    fn hidden_states_share_a_product_and_fail_alone() {
        let stage = Stage::new();
        let one = stage.hand_in(1, 1);
        stage.running();
        let heads: Vec<_> = (0..40u8)
            .map(|i| {
                stage.passes.hand_in(10 + u64::from(i), Task::Head { hidden: vec![i.into(); 4], rows: 1 })
            })
            .collect();
        stage.go();
        assert!(wait(&one).result.is_ok());
        for (i, head) in heads.iter().enumerate() {
            assert_eq!(wait(head).result.unwrap(), Output::Rows(vec![i as f32; 4]));
        }
        assert_eq!(stage.passes.counts().passes, 3, "as many at once as there is room for");
        let two = stage.hand_in(1, 1);
        stage.running();
        let [bad, good] =
            [13.0, 5.0].map(|x| stage.passes.hand_in(x as u64, Task::Head { hidden: vec![x; 4], rows: 1 }));
        stage.go();
        assert!(wait(&two).result.is_ok() && wait(&bad).result.is_err());
        assert_eq!(wait(&good).result.unwrap(), Output::Rows(vec![5.0; 4]));
    }

    #[test]
    fn the_thread_ends_with_its_engine_and_answers_what_is_left() {
        let stage = Stage::new();
        let script = stage.script.clone();
        let one = stage.hand_in(1, 1);
        stage.running();
        let two = stage.hand_in(2, 1);
        drop(stage);
        assert!(wait(&one).result.is_ok() && wait(&two).result.is_ok());
        assert_eq!(Arc::strong_count(&script), 1);
        // Work that no loop takes any more answers itself.
        let (back, answer) = sync_channel(1);
        let state = Lent::new(State::new(&tiny(), 8, KvType::F16).unwrap());
        drop(Work {
            session: 1,
            task: Task::Run { state, tokens: vec![1], want: Want::Last },
            since: now(),
            back: Some(back),
        });
        let answer = wait(&answer);
        assert!(matches!(answer.result, Err(Error::Internal(_))));
        assert_eq!(answer.state.capacity(), 8);
    }
}
