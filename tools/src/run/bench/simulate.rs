//! `yuan bench --simulate`: how long passes would take with more threads than this machine has.
//!
//! A pass that one thread ran, with its work cut as for so many, is played again: what one thread does alone takes as long as it took, and the pieces of what is shared out go to the
//! threads as they would. Pieces take as long as they took on one thread, or longer where the memory has not enough for all; what threads cost each other is counted by the constants
//! below. Caches that threads share, and clocks that fall when all of them work, are left out.

use std::{collections::VecDeque, ops::Range, time::Duration};

use serde_json::{Value, json};
use yuan::model::{
    Model,
    phases::{Phase, RecordedPass, Shared, Span},
};

use super::{Bench, phases::Recording};

/// Seconds until a thread that waits has found work of another and has it: some cache lines come from another core.
const STEAL: f64 = 1.0e-6;
/// Seconds for halving a range.
const HALVE: f64 = 0.1e-6;
/// Seconds for taking the next piece under a lock that others take, too.
const TAKE: f64 = 0.2e-6;
/// Seconds until the thread that has shared work out knows that all of it is done.
const JOIN: f64 = 1.0e-6;

/// Passes of one kind, as one thread has run them.
pub struct Recorded {
    pub name: &'static str,
    pub passes: Vec<RecordedPass>,
}

/// What so many threads would do.
pub struct Simulated {
    name: &'static str,
    threads: usize,
    /// Of a pass, its mean.
    time: Duration,
    /// How many times faster than one thread with the same pieces.
    gain: f64,
    /// GB of weights a second.
    rate: f64,
}

impl Simulated {
    /// For people.
    pub fn describe(&self) -> String {
        format!(
            "simulated  {} on {} threads: {:.3} ms a pass, {:.2} times one thread, {:.1} GB/s of weights",
            self.name,
            self.threads,
            self.time.as_secs_f64() * 1e3,
            self.gain,
            self.rate
        )
    }

    /// For a program.
    pub fn json(&self) -> Value {
        json!({ "name": self.name, "threads": self.threads, "ms": self.time.as_secs_f64() * 1e3, "gain": self.gain, "weights_gb_per_second": self.rate })
    }
}

impl Bench {
    /// What `--simulate` asks for: the passes of other machines, and what they come to. `record` runs the prompt and the answer with work cut for so many threads.
    pub fn simulated(
        &self,
        model: &Model,
        mut record: impl FnMut(usize) -> anyhow::Result<[Recorded; 2]>,
    ) -> anyhow::Result<(Vec<Recording>, Vec<Simulated>)> {
        // A prompt may touch all weights, and reads each only once.
        let whole = self.run.model.path()?.metadata()?.len();
        let (mut recordings, mut simulated) = (Vec::new(), Vec::new());
        for &threads in &self.simulate {
            let memory = self.simulate_memory.map_or(f64::INFINITY, |gb| gb * 1e9);
            let machine = Machine { threads, memory };
            for of in record(threads)? {
                let bytes = |played: &Played| {
                    whole.min((model.bytes_per_token() as u64).saturating_mul(played.rows as u64))
                };
                let all = Played::typical(&of.passes);
                let passes = all.iter().map(|played| machine.run(played, bytes(played))).collect();
                let name = format!("{} on {threads} simulated threads", of.name);
                let recording = Recording::new(name, threads, passes);
                if all.is_empty() {
                    continue;
                }
                let mean = |sum: f64| sum / all.len() as f64;
                let time = recording.time();
                let seconds = time.as_secs_f64().max(1e-9);
                simulated.push(Simulated {
                    name: of.name,
                    threads,
                    time,
                    gain: mean(all.iter().map(Played::time).sum()) / seconds,
                    rate: mean(all.iter().map(|played| bytes(played) as f64).sum()) / 1e9 / seconds,
                });
                recordings.push(recording);
            }
        }
        Ok((recordings, simulated))
    }
}

/// The machine that is simulated.
#[derive(Clone, Copy)]
pub struct Machine {
    pub threads: usize,
    /// Bytes a second that its memory gives to all threads together.
    pub memory: f64,
}

impl Machine {
    /// The pass as this machine would run it, where one thread read so many bytes of memory for it.
    fn run(&self, played: &Played, bytes: u64) -> RecordedPass {
        // Threads that together ask for all that the memory gives.
        let enough = self.memory * played.time() / (bytes as f64).max(1.0);
        let mut pass = RecordedPass {
            rows: played.rows,
            work: vec![Vec::new(); self.threads],
            ..RecordedPass::default()
        };
        let mut now = Duration::ZERO;
        for step in &played.steps {
            let (phase, begin) = (step.phase, now);
            if let Some(in_turn) = step.shared {
                let (time, spans) = Sharing::new(self.threads, enough, in_turn, &step.times).run();
                for (thread, from, until) in spans {
                    let [begin, end] = [from, until].map(|at| begin + Duration::from_secs_f64(at));
                    pass.work[thread].push(Span { phase, begin, end });
                }
                now += Duration::from_secs_f64(time);
                let span = Span { phase, begin, end: now };
                pass.shared.push(Shared { span, pieces: step.times.len(), in_turn });
            } else {
                now += Duration::from_secs_f64(step.times[0]);
            }
            match pass.phases.last_mut() {
                Some(last) if last.phase == phase => last.end = now,
                _ => pass.phases.push(Span { phase, begin, end: now }),
            }
        }
        pass
    }
}

/// Seconds of one thread: what it does alone, or each piece of what is shared out.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    phase: Phase,
    /// Whether the pieces are taken in turn, where it is shared out.
    shared: Option<bool>,
    times: Vec<f64>,
}

/// A pass that one thread has run, step by step.
#[derive(Clone, Debug, PartialEq)]
struct Played {
    rows: usize,
    steps: Vec<Step>,
}

impl Played {
    fn new(pass: &RecordedPass) -> Self {
        let seconds = |begin: Duration, end: Duration| end.saturating_sub(begin).as_secs_f64();
        let mut work: Vec<Span> = pass.work.iter().flatten().copied().collect();
        work.sort_by_key(|span| span.begin);
        let (mut work, mut shared) = (work.into_iter().peekable(), pass.shared.iter().peekable());
        let mut steps = Vec::new();
        for &Span { phase, begin, end } in &pass.phases {
            let mut at = begin;
            while let Some(Shared { span, in_turn, .. }) = shared.next_if(|shared| shared.span.begin < end) {
                steps.push(Step { phase, shared: None, times: vec![seconds(at, span.begin)] });
                let pieces = std::iter::from_fn(|| work.next_if(|piece| piece.begin < span.end));
                let times = pieces.map(|piece| piece.time().as_secs_f64()).collect();
                steps.push(Step { phase, shared: Some(*in_turn), times });
                at = span.end;
            }
            steps.push(Step { phase, shared: None, times: vec![seconds(at, end)] });
        }
        Self { rows: pass.rows, steps }
    }

    /// Of passes with the same steps one in which each time is the median of theirs: a machine that has other work to do makes some pieces of each pass slow.
    fn typical(passes: &[RecordedPass]) -> Vec<Self> {
        let mut kinds: Vec<Vec<Self>> = Vec::new();
        for played in passes.iter().map(Self::new) {
            match kinds.iter_mut().find(|kind| kind[0].is_like(&played)) {
                Some(kind) => kind.push(played),
                None => kinds.push(vec![played]),
            }
        }
        let typical = |kind: &Vec<Self>| {
            let mut typical = kind[0].clone();
            for (i, step) in typical.steps.iter_mut().enumerate() {
                for (j, time) in step.times.iter_mut().enumerate() {
                    let mut times: Vec<f64> = kind.iter().map(|played| played.steps[i].times[j]).collect();
                    times.sort_by(f64::total_cmp);
                    *time = times[times.len() / 2];
                }
            }
            typical
        };
        kinds.iter().flat_map(|kind| std::iter::repeat_n(typical(kind), kind.len())).collect()
    }

    fn is_like(&self, other: &Self) -> bool {
        let like =
            |(a, b): (&Step, &Step)| (a.phase, a.shared, a.times.len()) == (b.phase, b.shared, b.times.len());
        self.rows == other.rows
            && self.steps.len() == other.steps.len()
            && self.steps.iter().zip(&other.steps).all(like)
    }

    fn time(&self) -> f64 {
        self.steps.iter().flat_map(|step| &step.times).sum()
    }
}

/// Pieces of a range that a thread has, and how often they are halved before it works on them.
#[derive(Clone)]
struct Part {
    pieces: Range<usize>,
    halvings: usize,
}

/// What a thread does.
#[derive(Clone, Copy)]
enum Doing {
    Nothing,
    /// Something that reads no memory to speak of, for so many seconds; then this piece.
    Overhead(f64, usize),
    /// A piece, which began then and of which so many seconds of one thread are left.
    Piece {
        begin: f64,
        left: f64,
    },
}

/// Work that is shared out.
struct Sharing<'p> {
    enough: f64,
    in_turn: bool,
    pieces: &'p [f64],
    /// The next piece that nobody has taken, of those that are taken in turn.
    next: usize,
    /// What each thread has to do, and what others can take of it.
    own: Vec<Range<usize>>,
    parts: Vec<VecDeque<Part>>,
    doing: Vec<Doing>,
    /// Threads that have been there already: the first time they come from elsewhere.
    came: Vec<bool>,
}

impl<'p> Sharing<'p> {
    /// Thread 0 shares it out.
    fn new(threads: usize, enough: f64, in_turn: bool, pieces: &'p [f64]) -> Self {
        let mut parts = vec![VecDeque::new(); threads];
        parts[0].push_back(Part { pieces: 0..pieces.len(), halvings: threads });
        let mut came = vec![false; threads];
        came[0] = true;
        Self {
            enough,
            in_turn,
            pieces,
            next: 0,
            own: vec![0..0; threads],
            parts,
            doing: vec![Doing::Nothing; threads],
            came,
        }
    }

    /// The piece that a thread does next, and the seconds until it has it.
    fn take(&mut self, thread: usize) -> Option<(usize, f64)> {
        if self.in_turn {
            let piece = self.next;
            let reach = if self.came[thread] { 0.0 } else { STEAL };
            (piece < self.pieces.len()).then(|| {
                self.next += 1;
                self.came[thread] = true;
                (piece, reach + TAKE)
            })
        } else {
            let mut cost = 0.0;
            if self.own[thread].is_empty() {
                let threads = self.parts.len();
                let own = self.parts[thread].pop_back();
                let mut part = own.or_else(|| {
                    cost = STEAL;
                    let victims = (1..threads).map(|i| (thread + i) % threads);
                    let mut found = victims.filter_map(|victim| self.parts[victim].pop_front());
                    // As rayon does: what has been taken from another is halved for all threads anew.
                    found.next().map(|part| Part { halvings: (part.halvings / 2).max(threads), ..part })
                })?;
                while part.pieces.len() > 1 && part.halvings > 0 {
                    part.halvings /= 2;
                    cost += HALVE;
                    let middle = part.pieces.start + part.pieces.len() / 2;
                    self.parts[thread].push_back(Part { pieces: middle..part.pieces.end, ..part });
                    part.pieces.end = middle;
                }
                self.own[thread] = part.pieces;
            }
            self.own[thread].next().map(|piece| (piece, cost))
        }
    }

    /// The seconds until all of it is done, and when each thread worked on it.
    fn run(mut self) -> (f64, Vec<(usize, f64, f64)>) {
        let threads = self.doing.len();
        let (mut now, mut spans) = (0.0, Vec::with_capacity(self.pieces.len()));
        loop {
            // Halved ranges are there for those behind: until nobody finds any more.
            let mut found = true;
            while found {
                found = false;
                for thread in 0..threads {
                    if matches!(self.doing[thread], Doing::Nothing)
                        && let Some((piece, cost)) = self.take(thread)
                    {
                        self.doing[thread] = Doing::Overhead(cost, piece);
                        found = true;
                    }
                }
            }
            let reading = self.doing.iter().filter(|doing| matches!(doing, Doing::Piece { .. })).count();
            let speed = (self.enough / reading.max(1) as f64).min(1.0);
            let until = |doing: &Doing| match *doing {
                Doing::Nothing => f64::INFINITY,
                Doing::Overhead(left, _) => left,
                Doing::Piece { left, .. } => left / speed,
            };
            let step = self.doing.iter().map(until).fold(f64::INFINITY, f64::min);
            if step.is_infinite() {
                let wait = if threads > 1 && self.pieces.len() > 1 { JOIN } else { 0.0 };
                return (now + wait, spans);
            }
            let done = |time: f64| time <= step * (1.0 + 1e-9);
            now += step;
            for (thread, doing) in self.doing.iter_mut().enumerate() {
                let ends = done(until(doing));
                match doing {
                    Doing::Nothing => {}
                    Doing::Overhead(_, piece) if ends => {
                        *doing = Doing::Piece { begin: now, left: self.pieces[*piece] };
                    }
                    Doing::Overhead(left, _) => *left -= step,
                    Doing::Piece { begin, .. } if ends => {
                        spans.push((thread, *begin, now));
                        *doing = Doing::Nothing;
                    }
                    Doing::Piece { left, .. } => *left -= step * speed,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// A pass of one thread: 100 µs alone, and pieces of so many µs with 1 µs between them.
    fn pass(pieces: &[u64], in_turn: bool) -> RecordedPass {
        let mut at = us(100);
        let piece = |&n: &u64| {
            let begin = at + us(1);
            at = begin + us(n);
            Span { phase: Phase::Experts, begin, end: at }
        };
        let work: Vec<Span> = pieces.iter().map(piece).collect();
        let span = Span { phase: Phase::Experts, begin: us(100), end: at };
        RecordedPass {
            rows: 1,
            thread: 0,
            phases: vec![Span { phase: Phase::Begin, begin: us(0), end: us(100) }, span],
            shared: vec![Shared { span, pieces: pieces.len(), in_turn }],
            work: vec![work],
        }
    }

    /// Microseconds that it takes with so many threads, and memory for so many.
    fn takes(pass: &RecordedPass, threads: usize, enough: f64) -> f64 {
        let one = Played::new(pass);
        let played = Machine { threads, memory: enough * 1e9 / one.time() }.run(&one, 1_000_000_000);
        assert_eq!(played.work.iter().map(Vec::len).sum::<usize>(), pass.work[0].len());
        for work in &played.work {
            assert!(work.windows(2).all(|pair| pair[0].end <= pair[1].begin), "one thing at a time");
        }
        played.phases.iter().map(Span::time).sum::<Duration>().as_secs_f64() * 1e6
    }

    #[test]
    fn a_pass_that_was_disturbed_counts_as_the_others() {
        let quiet = pass(&[10, 20, 30], true);
        let disturbed = pass(&[10, 900, 30], true);
        let other = pass(&[10, 20], true);
        let all = [quiet.clone(), disturbed, quiet.clone(), other.clone()];
        let quiet = Played::new(&quiet);
        assert_eq!(Played::typical(&all), [quiet.clone(), quiet.clone(), quiet, Played::new(&other)]);
    }

    #[test]
    fn even_pieces_are_done_by_all_threads() {
        for in_turn in [true, false] {
            let pass = pass(&[100; 64], in_turn);
            let one = takes(&pass, 1, f64::MAX);
            // The gaps between pieces are the recording's.
            assert!((6500.0..6520.0).contains(&one), "{one}");
            let sixteen = takes(&pass, 16, f64::MAX);
            // A thread that comes late to a range that was halved takes one from another.
            assert!((500.0..if in_turn { 510.0 } else { 620.0 }).contains(&sixteen), "{sixteen}");
        }
    }

    #[test]
    fn the_longest_piece_is_waited_for() {
        for in_turn in [true, false] {
            let mut pieces = vec![10; 32];
            pieces[0] = 1000;
            let took = takes(&pass(&pieces, in_turn), 16, f64::MAX);
            assert!((1100.0..1105.0).contains(&took), "{took}");
        }
    }

    #[test]
    fn memory_for_four_threads_is_shared_by_sixteen() {
        for in_turn in [true, false] {
            let pass = pass(&[100; 160], in_turn);
            let (four, sixteen) = (takes(&pass, 4, f64::MAX), takes(&pass, 16, 4.0));
            assert!((4100.0..4200.0).contains(&four), "{four}");
            assert!((four * 0.97..four * 1.03).contains(&sixteen), "{sixteen} instead of {four}");
        }
    }
}
