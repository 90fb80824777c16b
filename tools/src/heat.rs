//! A picture of a trace: how often each expert was used, layer by layer.

use std::{fmt::Write as _, io::Write as _, path::Path};

use yuan::{files::write_whole, pager::trace::Trace};

/// Pixels of an expert.
const CELL: usize = 18;
const LEFT: usize = 60;
const TOP: usize = 46;

/// Writes an SVG: a row for each layer, a column for each expert, darker where more tokens went.
///
/// # Errors
/// As [`write_whole`].
pub fn write(trace: &Trace, path: &Path) -> yuan::Result<()> {
    let svg = svg(trace);
    write_whole(path, svg.len() as u64, |out| out.write_all(svg.as_bytes()))
}

fn svg(trace: &Trace) -> String {
    let (layers, experts) = (trace.model.layers, trace.model.experts);
    let uses = trace.uses();
    let tokens: u64 = uses.iter().sum::<u64>() / (trace.model.used * layers) as u64;
    let most = uses.iter().copied().max().unwrap_or(0).max(1);
    let (width, height) = (LEFT + experts * CELL + 20, TOP + layers * CELL + 30);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' font-family='sans-serif' font-size='11'>\n\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='{LEFT}' y='16'>Use of experts, {tokens} tokens; the darkest had {most}</text>\n"
    );
    for expert in (0..experts).step_by(4) {
        let x = LEFT + expert * CELL + CELL / 2;
        let _ = writeln!(svg, "<text x='{x}' y='{}' text-anchor='middle'>{expert}</text>", TOP - 6);
    }
    for layer in 0..layers {
        let y = TOP + layer * CELL;
        let _ = writeln!(
            svg,
            "<text x='{}' y='{}' text-anchor='end'>layer {layer}</text>",
            LEFT - 6,
            y + CELL - 5
        );
        for expert in 0..experts {
            let n = uses[layer * experts + expert];
            // From white to a dark blue.
            let shade = |dark: u64| 255 - (255 - dark) * n / most;
            let _ = writeln!(
                svg,
                "<rect x='{}' y='{y}' width='{CELL}' height='{CELL}' fill='rgb({},{},{})' stroke='#ddd'>\
                 <title>layer {layer}, expert {expert}: {n} tokens</title></rect>",
                LEFT + expert * CELL,
                shade(8),
                shade(48),
                shade(107)
            );
        }
    }
    svg += "</svg>\n";
    svg
}
