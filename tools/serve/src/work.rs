//! Requests at work. Every sequence has a thread with a session of its own; what it says goes over a bounded channel to the task that writes the
//! answer. A client that goes away stops its sequences, and a client that does not read is cut off after a time.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{Receiver, Sender, channel, error::TrySendError},
        oneshot,
    },
};
use tracing::{Instrument, Span};
use yuan::{
    Error,
    sampler::{Sampler, Settings},
    session::{Cancel, Drafted, Finish, Limits, Score, Session},
};

use crate::{
    chains::{Chain, chains, parts},
    drafting::Drafting,
    gate::Ticket,
    piece::{Piece, Pieces},
    problem::Problem,
    server::{Loaded, Shared},
};

/// Events that wait for a client to read them.
const EVENTS: usize = 64;

/// What one sequence does.
#[derive(Clone, Debug)]
pub struct Job {
    /// At least one token. Answers to one prompt share it.
    pub prompt: Arc<[u32]>,
    /// How tokens are chosen.
    pub settings: Settings,
    /// What ends the answer.
    pub limits: Limits,
    /// Whether the answer's tokens are scored, and how many of the likeliest are told.
    pub top: Option<usize>,
    /// Whether the prompt's tokens are scored, too.
    pub echo: bool,
    /// Whether the client hears how much of the prompt was read.
    pub progress: bool,
    /// What the answer is drafted from, and whether it is, where the request says so.
    pub drafting: Drafting,
}

/// What a sequence says.
#[derive(Clone, Debug)]
pub enum Event {
    /// So many tokens of the prompt are done, of which so many were there already.
    Reading { done: usize, total: usize, cached: usize, time: Duration },
    /// The scores of the prompt's tokens, but for the first, which has nothing before it.
    Prompt(Vec<Score>),
    /// A part of the answer.
    Piece(Piece),
    /// The end of the answer.
    End(Finish, Figures),
    /// There is no more of the answer.
    Failed(Problem),
}

/// Figures of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those that were there already.
    pub cached: usize,
    /// Tokens of the answer, the one that ended it included.
    pub answer: usize,
    /// What was drafted of it.
    pub drafted: Drafted,
    /// How long the prompt took.
    pub prompt_time: Duration,
    /// How long the answer took.
    pub answer_time: Duration,
}

impl Figures {
    fn log(&self, finish: Finish) {
        let ms = |time: Duration| time.as_millis() as u64;
        let reason = if finish == Finish::Length { "length" } else { "stop" };
        let Self { prompt, cached, answer, drafted, prompt_time, answer_time } = *self;
        tracing::info!(
            prompt,
            cached,
            answer,
            drafted = drafted.tokens,
            accepted = drafted.accepted,
            prompt_ms = ms(prompt_time),
            answer_ms = ms(answer_time),
            reason,
            "answered"
        );
    }
}

/// Stops the sequences of a request.
#[derive(Debug, Default)]
pub struct Stop(Mutex<Calls>);

#[derive(Debug, Default)]
struct Calls {
    stopped: bool,
    /// Because the client does not read.
    cut: bool,
    sessions: Vec<Cancel>,
}

impl Stop {
    /// Stops what runs, and what will.
    pub fn stop(&self) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        calls.stopped = true;
        calls.sessions.iter().for_each(Cancel::cancel_all);
    }

    /// Stops all, because the client does not read.
    fn cut(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cut = true;
        self.stop();
    }

    fn is_cut(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cut
    }

    /// One more session, which stops with the others.
    fn attach(&self, cancel: Cancel) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.stopped {
            cancel.cancel_all();
        }
        calls.sessions.push(cancel);
    }
}

/// Stops the sequences of a request when nobody waits for them any more.
#[derive(Debug)]
struct Guard(Arc<Stop>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What the sequences of a request say, each by its place in the list of jobs. Without this they stop.
#[derive(Debug)]
pub struct Answers {
    events: Receiver<(usize, Event)>,
    guard: Guard,
    /// Sequences that have not ended.
    left: usize,
}

impl Answers {
    /// What is said next; `None` behind the end of all.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        if self.left == 0 {
            return None;
        }
        // A sequence whose thread ends without a word was cut off, or has made a mistake.
        let silent = || if self.guard.0.is_cut() { Problem::slow() } else { Problem::internal() };
        let event = self.events.recv().await.unwrap_or_else(|| (0, Event::Failed(silent())));
        match event.1 {
            Event::End(..) => self.left -= 1,
            Event::Failed(_) => self.left = 0,
            _ => {}
        }
        Some(event)
    }
}

/// Starts the sequences of a request as there is room for them.
pub fn start(server: &Shared, model: &Arc<Loaded>, ticket: Ticket, jobs: Vec<Job>) -> Answers {
    let (sender, events) = channel(EVENTS);
    let stop = server.stop();
    let answers = Answers { events, guard: Guard(stop.clone()), left: jobs.len() };
    let (server, model, crew) = (server.clone(), model.clone(), server.crew.clone());
    let span = Span::current();
    let begin = async move {
        let ticket = Arc::new(ticket);
        for chain in chains(jobs) {
            let permit = tokio::select! {
                permit = server.gate.sequence() => permit,
                () = sender.closed() => return,
            };
            let Some(permit) = permit else {
                // Where nobody listens any more, nobody misses it.
                let _ = sender.send((chain[0].0, Event::Failed(Problem::stopping()))).await;
                return;
            };
            if stop.is_cut() {
                return;
            }
            let mut line = Line {
                place: chain[0].0,
                stop: stop.clone(),
                sender: sender.clone(),
                patience: server.options.patience(),
            };
            let (server, model, stop, ticket) = (server.clone(), model.clone(), stop.clone(), ticket.clone());
            let span = Span::current();
            let place = chain[0].0;
            let work = move || {
                let _inside = (ticket, permit, span.entered());
                let last = match run_all(&server, &model, &stop, &chain, &mut line) {
                    Ok((finish, figures)) => Event::End(finish, figures),
                    Err(error) => {
                        tracing::info!(%error, "failed");
                        Event::Failed(error.into())
                    }
                };
                if !stop.is_cut() {
                    // As above.
                    let _ = line.send(last);
                }
            };
            if let Err(error) = crew.run(work) {
                tracing::warn!("no thread for a sequence: {error}");
                let _ = sender.send((place, Event::Failed(Problem::crowded()))).await;
                return;
            }
        }
    };
    tokio::spawn(begin.instrument(span));
    answers
}

/// The way of a sequence to its client.
struct Line {
    place: usize,
    stop: Arc<Stop>,
    sender: Sender<(usize, Event)>,
    patience: Duration,
}

impl Line {
    /// Says something. Breaks off where nobody hears it, or does not in time.
    fn send(&self, event: Event) -> ControlFlow<()> {
        let sent = match self.sender.try_send((self.place, event)) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(event)) => Handle::current().block_on(async {
                match tokio::time::timeout(self.patience, self.sender.send(event)).await {
                    Ok(sent) => sent.is_ok(),
                    Err(_) => {
                        self.stop.cut();
                        false
                    }
                }
            }),
        };
        if sent { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// Runs the jobs of a chain, as long as somebody hears of them.
fn run_all(
    server: &Shared,
    model: &Loaded,
    stop: &Stop,
    chain: &Chain,
    line: &mut Line,
) -> yuan::Result<(Finish, Figures)> {
    let mut session = model.served.session()?;
    stop.attach(session.cancel_token());
    for (i, (place, job)) in chain.iter().enumerate() {
        line.place = *place;
        session.return_to(&parts(job, &chain[i + 1..]));
        let (finish, figures) = run(server, &mut session, job, line)?;
        server.metrics.answered(&figures);
        figures.log(finish);
        // What the last one says comes when the session is gone: who asks next finds what it has left.
        if i + 1 == chain.len() {
            return Ok((finish, figures));
        }
        if line.send(Event::End(finish, figures)).is_break() {
            break;
        }
    }
    Err(Error::Cancelled)
}

fn run(server: &Shared, session: &mut Session, job: &Job, line: &Line) -> yuan::Result<(Finish, Figures)> {
    let slot = server.slots.take(job);
    let mut sampler = Sampler::new(job.settings.clone())?;
    let start = Instant::now();
    let cached = read(session, job, line, start)?;
    let prompt_time = start.elapsed();
    job.drafting.apply(session);
    let before = session.drafted();

    let engine = session.engine().clone();
    let mut pieces = Pieces::new(engine.tokenizer(), &job.prompt);
    let (mut answer, mut last) = (0, Instant::now());
    let finish = session.generate_scored(&mut sampler, &job.limits, job.top, |token, text| {
        if let Some(token) = &token {
            let first = answer == 0;
            server.metrics.token(first, token.forced, if first { start.elapsed() } else { last.elapsed() });
            last = Instant::now();
            answer += 1;
            slot.token();
        }
        let piece = pieces.push(token, text);
        if piece == Piece::default() { ControlFlow::Continue(()) } else { line.send(Event::Piece(piece)) }
    })?;
    slot.said(session.tokens());
    if finish == Finish::Cancelled {
        return Err(Error::Cancelled);
    }
    let rest = pieces.finish(matches!(finish, Finish::StopText(_)));
    if rest != Piece::default() && line.send(Event::Piece(rest)).is_break() {
        return Err(Error::Cancelled);
    }
    let answer_time = start.elapsed() - prompt_time;
    let drafted = session.drafted().since(before);
    let figures = Figures { prompt: job.prompt.len(), cached, answer, drafted, prompt_time, answer_time };
    Ok((finish, figures))
}

/// Reads the prompt, and returns how many of its tokens were there already.
fn read(session: &mut Session, job: &Job, line: &Line, start: Instant) -> yuan::Result<usize> {
    if let Some(top) = job.top.filter(|_| job.echo) {
        let mut scores = Vec::with_capacity(job.prompt.len() - 1);
        let synced = session.score(&job.prompt, 1, top, |score| {
            scores.push(score);
            ControlFlow::Continue(())
        })?;
        if line.send(Event::Prompt(scores)).is_break() {
            return Err(Error::Cancelled);
        }
        return Ok(synced.reused);
    }
    let cached = session.adopt(&job.prompt)?;
    let total = job.prompt.len();
    let say = |done| match job.progress {
        true => line.send(Event::Reading { done, total, cached, time: start.elapsed() }),
        false => ControlFlow::Continue(()),
    };
    if say(cached).is_break() {
        return Err(Error::Cancelled);
    }
    Ok(session.sync(&job.prompt, say)?.reused)
}

/// The embeddings of these lists of tokens, of length one each.
///
/// # Errors
/// Those of the library.
pub async fn embed(
    server: &Shared,
    model: &Arc<Loaded>,
    ticket: Ticket,
    lists: Vec<Vec<u32>>,
) -> Result<Vec<Vec<f32>>, Problem> {
    let guard = Guard(server.stop());
    let stop = guard.0.clone();
    as_sequence(server, model, ticket, move |model| {
        let mut session = model.served.session()?;
        stop.attach(session.cancel_token());
        let mut embed = |list: &Vec<u32>| {
            session.sync(list, |_| ControlFlow::Continue(()))?;
            let hidden = session.embedding()?;
            let norm = hidden.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-30);
            Ok(hidden.iter().map(|x| (f64::from(*x) / norm) as f32).collect())
        };
        Ok(lists.iter().map(&mut embed).collect::<yuan::Result<Vec<_>>>()?)
    })
    .await
}

/// Does something else in the place of a sequence, on a thread of its own, when there is room for one.
///
/// # Errors
/// Those of `act`; the server stops.
pub async fn as_sequence<T: Send + 'static>(
    server: &Shared,
    model: &Arc<Loaded>,
    ticket: Ticket,
    act: impl FnOnce(&Loaded) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let permit = server.gate.sequence().await.ok_or_else(Problem::stopping)?;
    let model = model.clone();
    let (sender, acted) = oneshot::channel();
    let work = move || {
        let _inside = (ticket, permit);
        // Whoever has asked may have gone away.
        let _ = sender.send(act(&model));
    };
    server.crew.run(work).map_err(|error| {
        tracing::warn!("no thread for a request: {error}");
        Problem::crowded()
    })?;
    acted.await.unwrap_or_else(|_| Err(Problem::internal()))
}
