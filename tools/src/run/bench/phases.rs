//! `yuan bench --phases`: what each thread does when, in Chrome's trace format, and how much of it one thread does alone.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use yuan::{
    files::write_whole,
    model::phases::{Phase, RecordedPass, Span},
};

use super::picture;

/// Waits that are shorter are none.
const SHORT: Duration = Duration::from_micros(1);

/// Pieces of a thread's work with no more than this between them are one.
const GAP: Duration = Duration::from_nanos(200);

/// Passes of one kind, by so many threads.
pub struct Recording {
    /// `prompt`, `decode`, or how many sequences decode together.
    pub name: String,
    pub threads: usize,
    pub passes: Vec<RecordedPass>,
}

/// Of a phase of some passes.
#[derive(Clone, Copy, Default)]
struct Shares {
    /// From its beginning to its end.
    time: Duration,
    /// In which it shares nothing out, or one thread works on the only piece.
    alone: Duration,
    /// In which one thread works on what is shared out, and the others wait.
    one: Duration,
    /// In which none does.
    none: Duration,
    /// Of all threads.
    work: Duration,
}

impl Recording {
    /// Of passes whose pieces of work are spans of their own.
    pub fn new(name: String, threads: usize, mut passes: Vec<RecordedPass>) -> Self {
        passes.iter_mut().flat_map(|pass| &mut pass.work).for_each(|work| *work = joined(work, GAP));
        Self { name, threads, passes }
    }

    /// The mean time of a pass.
    pub fn time(&self) -> Duration {
        let all: Duration = self.passes.iter().flat_map(|pass| &pass.phases).map(Span::time).sum();
        all / self.passes.len().max(1) as u32
    }

    /// By phase, in their order.
    fn shares(&self) -> [Shares; Phase::ALL.len()] {
        let mut all = [Shares::default(); Phase::ALL.len()];
        let place = |phase: Phase| Phase::ALL.iter().position(|&p| p == phase).expect("one of all");
        for pass in &self.passes {
            pass.phases.iter().for_each(|span| all[place(span.phase)].time += span.time());
            for span in alone(pass) {
                let shares = &mut all[place(span.phase)];
                shares.alone += span.time();
                shares.work += span.time();
            }
            pass.work.iter().flatten().for_each(|span| all[place(span.phase)].work += span.time());
            let mut ends: Vec<(Duration, bool)> =
                pass.work.iter().flatten().flat_map(|span| [(span.begin, true), (span.end, false)]).collect();
            ends.sort_unstable();
            let (mut ends, mut busy) = (ends.into_iter().peekable(), 0usize);
            for shared in &pass.shared {
                let (mut at, shares) = (shared.span.begin, &mut all[place(shared.span.phase)]);
                let mut until = |time: Duration, busy: usize| {
                    let passed = time.saturating_sub(at);
                    at = at.max(time);
                    match busy {
                        0 => shares.none += passed,
                        _ if shared.pieces < 2 => shares.alone += passed,
                        1 if self.threads > 1 => shares.one += passed,
                        _ => {}
                    }
                };
                while let Some((time, begins)) = ends.next_if(|(time, _)| *time < shared.span.end) {
                    until(time, busy);
                    busy = if begins { busy + 1 } else { busy.saturating_sub(1) };
                }
                until(shared.span.end, busy);
            }
        }
        all
    }

    /// The sums of all phases.
    fn sum(shares: &[Shares]) -> Shares {
        shares.iter().fold(Shares::default(), |sum, s| Shares {
            time: sum.time + s.time,
            alone: sum.alone + s.alone,
            one: sum.one + s.one,
            none: sum.none + s.none,
            work: sum.work + s.work,
        })
    }

    /// For people: of each phase how long it takes in a pass, and which parts of one thread's work are those in which not all threads work.
    pub fn describe(&self) -> String {
        let (shares, passes) = (self.shares(), self.passes.len().max(1) as u32);
        let sum = Self::sum(&shares);
        let ms = |time: Duration| (time / passes).as_secs_f64() * 1e3;
        let percent = |time: Duration| 100.0 * part(time, sum.work);
        let row = |name: &str, s: &Shares| {
            format!(
                "  {name:<14} {:>10.3} ms {:>8.3} % {:>8.3} % {:>8.3} % {:>8.3} %",
                ms(s.time),
                percent(s.work),
                percent(s.alone),
                percent(s.one),
                percent(s.none)
            )
        };
        let head = format!(
            "{} of {} rows on {} threads, of a pass and of one thread's work:\n  {:<14} {:>13} {:>10} {:>10} {:>10} {:>10}",
            self.name,
            self.passes.iter().map(|pass| pass.rows).sum::<usize>(),
            self.threads,
            "phase",
            "time",
            "work",
            "alone",
            "one works",
            "none works"
        );
        let rows = Phase::ALL.iter().zip(&shares).filter(|(_, s)| !s.time.is_zero());
        let rows = rows.map(|(phase, shares)| row(phase.name(), shares));
        [head].into_iter().chain(rows).chain([row("all", &sum)]).collect::<Vec<_>>().join("\n")
    }

    /// For a program.
    pub fn json(&self) -> Value {
        let (shares, ms) = (self.shares(), |time: Duration| time.as_secs_f64() * 1e3);
        let sum = Self::sum(&shares);
        let object = |name: &str, s: &Shares| json!({ "name": name, "ms": ms(s.time), "work_ms": ms(s.work), "alone_ms": ms(s.alone), "one_ms": ms(s.one), "none_ms": ms(s.none) });
        let phases = Phase::ALL.iter().zip(&shares).filter(|(_, s)| !s.time.is_zero());
        let phases: Vec<Value> = phases.map(|(phase, shares)| object(phase.name(), shares)).collect();
        json!({
            "passes": self.passes.len(), "rows": self.passes.iter().map(|pass| pass.rows).sum::<usize>(), "threads": self.threads,
            "alone_share": part(sum.alone, sum.work), "all": object("all", &sum), "phases": phases,
        })
    }
}

fn part(of: Duration, whole: Duration) -> f64 {
    of.as_secs_f64() / whole.as_secs_f64().max(1e-9)
}

/// Spans in their order, those of one phase with no more than `gap` between them as one.
pub fn joined(spans: &[Span], gap: Duration) -> Vec<Span> {
    let mut all: Vec<Span> = Vec::new();
    for span in spans {
        match all.last_mut() {
            Some(last) if last.phase == span.phase && span.begin <= last.end + gap => last.end = span.end,
            _ => all.push(*span),
        }
    }
    all
}

/// What the pass's own thread does between what it shares out.
pub fn alone(pass: &RecordedPass) -> Vec<Span> {
    let mut shared = pass.shared.iter().peekable();
    let mut found = Vec::new();
    for span in &pass.phases {
        let mut begin = span.begin;
        while let Some(next) = shared.next_if(|next| next.span.begin < span.end) {
            found.push(Span { begin, end: next.span.begin.max(begin), ..*span });
            begin = next.span.end.max(begin);
        }
        found.push(Span { begin, end: span.end.max(begin), ..*span });
    }
    found.retain(|span| !span.time().is_zero());
    found
}

/// Writes recordings into a file: as a picture where its name ends with `.svg`, or else as Chrome's trace events.
///
/// # Errors
/// As [`write_whole`].
pub fn save(path: &Path, recordings: &[Recording]) -> yuan::Result<()> {
    let is_picture = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
    write_whole(
        path,
        0,
        |out| if is_picture { picture::write(out, recordings) } else { write(out, recordings) },
    )
}

/// Writes recordings one behind another as Chrome's trace events: the phases of passes, and of each thread what it works on, what it does alone, and when it waits.
pub fn write(out: &mut impl Write, recordings: &[Recording]) -> io::Result<()> {
    let threads = recordings.iter().flat_map(|r| &r.passes).map(|pass| pass.work.len()).max().unwrap_or(0);
    let name = |of: &str, thread: usize, name: &str| json!({ "ph": "M", "name": of, "pid": 1, "tid": thread, "args": { "name": name } });
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}", name("process_name", 0, "yuan bench"))?;
    write!(out, ",\n{}", name("thread_name", 0, "pass"))?;
    for thread in 0..threads {
        write!(out, ",\n{}", name("thread_name", thread + 1, &format!("thread {thread}")))?;
    }
    let mut behind = Duration::ZERO;
    for recording in recordings {
        for pass in &recording.passes {
            let mut event = |thread: usize, kind: &str, name: &str, begin: Duration, end: Duration| {
                let us = |time: Duration| time.as_nanos() as f64 / 1e3;
                let (at, time) = (us(begin + behind), us(end.saturating_sub(begin)));
                write!(
                    out,
                    ",\n{{\"ph\":\"X\",\"pid\":1,\"tid\":{thread},\"cat\":\"{kind}\",\"name\":\"{name}\",\"ts\":{at:.3},\"dur\":{time:.3}}}"
                )
            };
            for span in &pass.phases {
                event(0, &recording.name, span.phase.name(), span.begin, span.end)?;
            }
            let alone = alone(pass);
            for (thread, work) in pass.work.iter().enumerate() {
                let own: &[Span] = if thread == pass.thread { &alone } else { &[] };
                let mut spans: Vec<(&Span, &str)> = work.iter().map(|span| (span, "work")).collect();
                spans.extend(own.iter().map(|span| (span, "alone")));
                spans.sort_by_key(|(span, _)| span.begin);
                let mut at = pass.phases.first().map_or(Duration::ZERO, |first| first.begin);
                let end = pass.phases.last().map_or(at, |last| last.end);
                for (span, kind) in spans {
                    if span.begin.saturating_sub(at) >= SHORT {
                        event(thread + 1, "waits", "waits", at, span.begin)?;
                    }
                    event(thread + 1, kind, span.phase.name(), span.begin, span.end)?;
                    at = at.max(span.end);
                }
                if end.saturating_sub(at) >= SHORT {
                    event(thread + 1, "waits", "waits", at, end)?;
                }
            }
        }
        let ends = recording.passes.iter().filter_map(|pass| pass.phases.last()).map(|last| last.end);
        behind += ends.max().unwrap_or_default() + Duration::from_millis(1);
    }
    writeln!(out, "\n]}}")
}

#[cfg(test)]
pub mod tests {
    use yuan::model::phases::Shared;

    use super::*;

    fn span(phase: Phase, begin: u64, end: u64) -> Span {
        Span { phase, begin: Duration::from_micros(begin), end: Duration::from_micros(end) }
    }

    /// A pass of 100 µs: the router shares nothing out, the norm one piece; of the experts two threads do 10 and 40 µs, of which the first 5 are waking.
    pub fn recording() -> Recording {
        let experts = span(Phase::Experts, 50, 95);
        let pass = RecordedPass {
            rows: 1,
            thread: 1,
            phases: vec![
                span(Phase::Norm, 0, 20),
                span(Phase::Router, 20, 50),
                span(Phase::Experts, 50, 100),
            ],
            shared: vec![
                Shared { span: span(Phase::Norm, 4, 20), pieces: 1, in_turn: false },
                Shared { span: experts, pieces: 9, in_turn: true },
            ],
            work: vec![
                vec![span(Phase::Experts, 60, 70)],
                vec![span(Phase::Norm, 5, 20), span(Phase::Experts, 55, 95)],
            ],
        };
        Recording::new("decode".into(), 2, vec![pass])
    }

    #[test]
    fn what_one_thread_does_alone_is_found() {
        let json = recording().json();
        let of = |name: &str, key: &str| {
            let phases = json["phases"].as_array().unwrap();
            let phase = phases.iter().find(|phase| phase["name"] == name).unwrap();
            (phase[key].as_f64().unwrap() * 1e3).round()
        };
        // A piece that waits for its thread is nobody's work.
        assert_eq!((of("norm", "alone_ms"), of("norm", "work_ms"), of("norm", "none_ms")), (19.0, 19.0, 1.0));
        assert_eq!((of("router", "alone_ms"), of("router", "ms")), (30.0, 30.0));
        assert_eq!(
            (of("experts", "alone_ms"), of("experts", "one_ms"), of("experts", "none_ms")),
            (5.0, 30.0, 5.0)
        );
        // 19, 30 and 5 alone, 10 and 40 of two threads.
        assert_eq!((json["all"]["work_ms"].as_f64().unwrap() * 1e3).round(), 104.0);
        assert!((json["alone_share"].as_f64().unwrap() - 54.0 / 104.0).abs() < 1e-6, "{json}");
        let shown = recording().describe();
        assert_eq!(shown.lines().count(), 2 + 3 + 1, "{shown}");
    }

    #[test]
    fn a_trace_has_no_gap_but_short_ones() {
        let mut out = Vec::new();
        write(&mut out, &[recording(), recording()]).unwrap();
        let trace: Value = serde_json::from_slice(&out).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        for thread in 0..3 {
            let of = events.iter().filter(|e| e["ph"] == "X" && e["tid"] == thread);
            let time: f64 = of.clone().map(|e| e["dur"].as_f64().unwrap()).sum();
            assert_eq!(time.round(), 200.0, "thread {thread}");
            let mut ends: Vec<f64> = vec![0.0];
            for e in of {
                assert!(e["ts"].as_f64().unwrap() >= ends[ends.len() - 1] - 1e-6, "{e}");
                ends.push(e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap());
            }
        }
        let waits = events.iter().filter(|e| e["name"] == "waits").count();
        assert_eq!(waits, 2 * 4, "{trace}");
    }
}
