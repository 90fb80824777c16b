//! A picture of recorded passes: of each thread what it does when.

use std::{fmt::Write as _, io, time::Duration};

use yuan::model::phases::{Phase, RecordedPass, Span};

use super::phases::{Recording, alone, joined};

/// Pixels.
const LEFT: f64 = 130.0;
const WIDTH: f64 = 1100.0;
const THREAD: f64 = 18.0;
const TITLE: f64 = 34.0;
const LEGEND: f64 = 26.0;

/// By phase, in their order: neighbours in time look unlike each other.
const COLOURS: [&str; Phase::ALL.len()] = [
    "#6b7280", "#94a3b8", "#f4a261", "#8d6e63", "#1f77b4", "#76b7e5", "#2ca02c", "#9467bd", "#e9c46a",
    "#d1495b", "#f28482", "#c77dff", "#264653", "#4b5563",
];

/// Writes an SVG: of each recording its last pass, a row for each thread and one for the phases. White is waiting, hatched what one thread does alone.
pub fn write(out: &mut impl io::Write, recordings: &[Recording]) -> io::Result<()> {
    let rows = |recording: &Recording| recording.passes.last().map_or(0, |pass| pass.work.len()) + 1;
    let height = |recording: &Recording| TITLE + rows(recording) as f64 * THREAD + 24.0;
    let whole = LEGEND * 2.0 + recordings.iter().map(height).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{:.0}' height='{whole:.0}' font-family='sans-serif' font-size='11'>\n\
         <defs><pattern id='alone' width='4' height='4' patternUnits='userSpaceOnUse' patternTransform='rotate(45)'>\
         <rect width='2' height='4' fill='#000' fill-opacity='.45'/></pattern></defs>\n\
         <rect width='100%' height='100%' fill='white'/>\n",
        LEFT + WIDTH + 20.0
    );
    for (i, (phase, colour)) in Phase::ALL.iter().zip(COLOURS).enumerate() {
        let (x, y) = (10.0 + (i % 7) as f64 * 175.0, 8.0 + (i / 7) as f64 * 20.0);
        let _ = writeln!(
            svg,
            "<rect x='{x}' y='{y}' width='12' height='12' fill='{colour}'/><text x='{}' y='{}'>{}</text>",
            x + 17.0,
            y + 10.0,
            phase.name()
        );
    }
    let mut top = LEGEND * 2.0;
    for recording in recordings {
        if let Some(pass) = recording.passes.last() {
            draw(&mut svg, top, recording, pass);
        }
        top += height(recording);
    }
    svg += "</svg>\n";
    out.write_all(svg.as_bytes())
}

fn draw(svg: &mut String, top: f64, recording: &Recording, pass: &RecordedPass) {
    let start = pass.phases.first().map_or(Duration::ZERO, |first| first.begin);
    let end = pass.phases.last().map_or(start, |last| last.end);
    let time = (end - start).as_secs_f64().max(1e-9);
    let at = |time_at: Duration| LEFT + WIDTH * time_at.saturating_sub(start).as_secs_f64() / time;
    let _ = writeln!(
        svg,
        "<text x='10' y='{:.0}' font-size='13' font-weight='bold'>{}: {} rows in {:.3} ms; hatched: one thread alone, white: waiting</text>",
        top + 20.0,
        recording.name,
        pass.rows,
        time * 1e3
    );
    let mut y = top + TITLE;
    let mut row = |name: &str, spans: &[Span], hatched: &[Span]| {
        let _ = writeln!(svg, "<text x='{}' y='{:.1}' text-anchor='end'>{name}</text>", LEFT - 8.0, y + 12.0);
        for (spans, hatch) in [(spans, false), (hatched, true)] {
            for span in joined(spans, (end - start).mul_f64(0.7 / WIDTH)) {
                let (from, until) = (at(span.begin), at(span.end));
                let colour = COLOURS[Phase::ALL.iter().position(|&p| p == span.phase).unwrap_or(0)];
                for fill in [colour, "url(#alone)"].into_iter().take(1 + usize::from(hatch)) {
                    let _ = write!(
                        svg,
                        "<rect x='{from:.2}' y='{y:.1}' width='{:.2}' height='{:.1}' fill='{fill}'",
                        (until - from).max(0.05),
                        THREAD - 3.0
                    );
                    // Of those that a pointer finds.
                    let _ = if until - from < 2.0 {
                        writeln!(svg, "/>")
                    } else {
                        let us = span.time().as_secs_f64() * 1e6;
                        writeln!(svg, "><title>{}, {us:.1} µs</title></rect>", span.phase.name())
                    };
                }
            }
        }
        y += THREAD;
    };
    row("phases", &pass.phases, &[]);
    let alone = alone(pass);
    for (thread, work) in pass.work.iter().enumerate() {
        row(&format!("thread {thread}"), work, if thread == pass.thread { &alone } else { &[] });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::phases::tests::recording, *};

    #[test]
    fn every_thread_has_a_row_and_nothing_lies_outside() {
        let mut out = Vec::new();
        write(&mut out, &[recording(), recording()]).unwrap();
        let svg = String::from_utf8(out).unwrap();
        assert_eq!(svg.matches(">thread ").count(), 4);
        assert_eq!(
            svg.matches("url(#alone)").count(),
            2 * 3,
            "before the norm, of the router, before and behind the experts: {svg}"
        );
        for x in svg.lines().filter_map(|line| line.strip_prefix("<rect x='")).skip(Phase::ALL.len()) {
            let numbers: Vec<f64> = x.split('\'').step_by(2).take(4).filter_map(|n| n.parse().ok()).collect();
            assert!(numbers[0] >= LEFT && numbers[0] + numbers[2] <= LEFT + WIDTH + 0.1, "{x}");
        }
    }
}
