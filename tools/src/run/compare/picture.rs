//! A picture of containers: how far each is from the reference, by the bits of its weights.

use std::fmt::Write as _;

/// Pixels of the picture, and of what is around the plot.
const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 60.0;

/// Pixels of a line of text.
const LINE: f64 = 15.0;

/// A container.
#[derive(Clone, Debug)]
pub struct Point {
    /// What people call it.
    pub name: String,
    /// Bits of a weight.
    pub bits: f64,
    /// Mean KL divergence from the reference, in nats.
    pub kl: f64,
    /// Standard error of that.
    pub error: Option<f64>,
}

/// An SVG of the containers, with these lines above; its vertical axis is logarithmic, and what is at no distance from the reference is named below and not drawn.
pub fn svg(points: &[Point], title: &str, subtitle: &str) -> String {
    let is_drawn = |point: &&Point| point.kl > 0.0 && point.kl.is_finite() && point.bits.is_finite();
    let drawn: Vec<&Point> = points.iter().filter(is_drawn).collect();
    let axes = Axes::of(&drawn);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='{LEFT}' y='26' font-size='15'>{}</text>\n<text x='{LEFT}' y='46' fill='#555'>{}</text>\n",
        escaped(title),
        escaped(subtitle)
    );
    axes.draw(&mut svg);
    let mut taken = Vec::new();
    for point in &drawn {
        let (x, y) = (axes.x(point.bits), axes.y(point.kl));
        taken.push([x - 5.0, y - 5.0, x + 5.0, y + 5.0]);
    }
    for point in &drawn {
        let (x, y) = (axes.x(point.bits), axes.y(point.kl));
        if let Some(error) = point.error {
            let (low, high) = (axes.y(point.kl - error), axes.y(point.kl + error));
            let _ =
                writeln!(svg, "<path d='M{x:.1} {low:.1}V{high:.1}' stroke='#08306b' stroke-width='1.5'/>");
        }
        let name = escaped(&point.name);
        let _ = writeln!(
            svg,
            "<circle cx='{x:.1}' cy='{y:.1}' r='4.5' fill='#08306b'><title>{name}: {:.2} bits a weight, KL {:.6}</title></circle>",
            point.bits, point.kl
        );
        let [left, top, ..] = place(x, y, width(&point.name), &mut taken);
        let _ = writeln!(svg, "<text x='{left:.1}' y='{:.1}'>{name}</text>", top + LINE - 4.0);
    }
    let same: Vec<String> =
        points.iter().filter(|p| !is_drawn(p)).map(|point| escaped(&point.name)).collect();
    if !same.is_empty() {
        let _ = writeln!(
            svg,
            "<text x='{LEFT}' y='{}' fill='#555'>at no distance: {}</text>",
            HEIGHT - 8.0,
            same.join(", ")
        );
    }
    svg += "</svg>\n";
    svg
}

/// What the plot shows: bits from left to right, powers of ten from below.
struct Axes {
    bits: [f64; 2],
    /// Between which marks of the horizontal axis there are so many bits.
    step: f64,
    powers: [i32; 2],
}

impl Axes {
    fn of(points: &[&Point]) -> Self {
        let range = |values: &mut dyn Iterator<Item = f64>, none: [f64; 2]| {
            let [low, high] =
                values.fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], v| [a.min(v), b.max(v)]);
            if low <= high { [low, high] } else { none }
        };
        let [low, high] = range(&mut points.iter().map(|p| p.bits), [2.0, 16.0]);
        let [low, high] = [(low - 0.3).max(0.0), high + 0.3];
        let step = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0].into_iter().find(|step| (high - low) / step <= 10.0);
        let step = step.unwrap_or((high - low) / 8.0);
        let bits = [(low / step).floor() * step, (high / step).ceil() * step];
        let [low, high] = range(&mut points.iter().map(|p| p.kl.log10()), [-4.0, 0.0]);
        let floor = low.floor() as i32;
        Self { bits, step, powers: [floor, (high.ceil() as i32).max(floor + 1)] }
    }

    fn x(&self, bits: f64) -> f64 {
        LEFT + (bits - self.bits[0]) / (self.bits[1] - self.bits[0]) * (WIDTH - LEFT - RIGHT)
    }

    /// What is below the plot is at its lower end.
    fn y(&self, kl: f64) -> f64 {
        let [low, high] = self.powers.map(f64::from);
        let power = kl.max(f64::MIN_POSITIVE).log10().clamp(low, high);
        HEIGHT - BOTTOM - (power - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    }

    fn draw(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let marks = ((self.bits[1] - self.bits[0]) / self.step).round() as usize;
        for mark in 0..=marks {
            let bits = self.bits[0] + mark as f64 * self.step;
            let x = self.x(bits);
            let _ = writeln!(svg, "<path d='M{x:.1} {TOP}V{bottom}' stroke='#ddd'/>");
            let label = format!("{bits:.2}");
            let label = label.trim_end_matches('0').trim_end_matches('.');
            let _ = writeln!(
                svg,
                "<text x='{x:.1}' y='{}' text-anchor='middle'>{label}</text>",
                bottom + LINE + 2.0
            );
        }
        let between: &[u32] = if self.powers[1] - self.powers[0] <= 3 { &[1, 2, 5] } else { &[1] };
        for power in self.powers[0]..=self.powers[1] {
            let digits = if power == self.powers[1] { &between[..1] } else { between };
            for digit in digits {
                let kl = f64::from(*digit) * 10.0_f64.powi(power);
                let y = self.y(kl);
                let decimals = usize::try_from(-power).unwrap_or(0);
                let _ = writeln!(svg, "<path d='M{LEFT} {y:.1}H{right}' stroke='#ddd'/>");
                let _ = writeln!(
                    svg,
                    "<text x='{}' y='{:.1}' text-anchor='end'>{kl:.decimals$}</text>",
                    LEFT - 8.0,
                    y + 4.0
                );
            }
        }
        let _ = writeln!(svg, "<path d='M{LEFT} {TOP}V{bottom}H{right}' fill='none' stroke='#333'/>");
        let _ = writeln!(
            svg,
            "<text x='{:.1}' y='{}' text-anchor='middle'>bits a weight, of all tensors</text>",
            (LEFT + right) / 2.0,
            bottom + 2.0 * LINE + 6.0
        );
        let middle = (TOP + bottom) / 2.0;
        let _ = writeln!(
            svg,
            "<text x='22' y='{middle}' text-anchor='middle' transform='rotate(-90 22 {middle})'>mean KL divergence, nats a token</text>"
        );
    }
}

/// A box for a text so wide beside a point, where there is room, as left, top, right, bottom: it is taken from then on.
fn place(x: f64, y: f64, width: f64, taken: &mut Vec<[f64; 4]>) -> [f64; 4] {
    let half = LINE / 2.0;
    let beside = [(x + 9.0, y - half), (x - 9.0 - width, y - half)];
    let above = [-1.0, 1.0].map(|side| (x - width / 2.0, y - half + side * (LINE + 2.0)));
    let further = (2..12).map(|n| (x + 9.0, y - half - f64::from(n) * LINE));
    let boxes = beside.into_iter().chain(above).chain(further);
    let boxes = boxes.map(|(left, top)| [left, top, left + width, top + LINE]);
    let inside = |b: &[f64; 4]| b[0] >= LEFT && b[2] <= WIDTH - 4.0 && b[1] >= TOP && b[3] <= HEIGHT - BOTTOM;
    let free = |b: &[f64; 4]| !taken.iter().any(|t| b[0] < t[2] && t[0] < b[2] && b[1] < t[3] && t[1] < b[3]);
    let found = boxes.clone().find(|b| inside(b) && free(b));
    // Where it is crowded a name is better than none.
    let chosen = found.or_else(|| boxes.clone().find(inside)).unwrap_or([x, y, x, y]);
    taken.push(chosen);
    chosen
}

/// Pixels of a text, about: fonts differ.
fn width(text: &str) -> f64 {
    text.chars().map(|c| if c.is_ascii() { 7.0 } else { 12.5 }).sum()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '\'' => out += "&apos;",
            '"' => out += "&quot;",
            // XML has no other characters of control.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(name: &str, bits: f64, kl: f64) -> Point {
        Point { name: name.into(), bits, kl, error: Some(kl / 20.0) }
    }

    #[test]
    fn fewer_bits_are_further_left_and_more_distance_is_higher() {
        let points = [point("q4", 4.5, 0.005), point("q3", 3.44, 0.013)];
        let axes = Axes::of(&points.iter().collect::<Vec<_>>());
        assert!(axes.x(3.44) < axes.x(4.5) && axes.y(0.013) < axes.y(0.005));
        assert_eq!(axes.powers, [-3, -1]);
        for p in &points {
            assert!((LEFT..=WIDTH - RIGHT).contains(&axes.x(p.bits)));
            assert!((TOP..=HEIGHT - BOTTOM).contains(&axes.y(p.kl)));
        }
        assert_eq!(axes.y(-1.0), axes.y(1e-3), "an error that reaches below the plot ends there");
    }

    #[test]
    fn names_are_text_whatever_is_in_them() {
        let points =
            [point("a<b>&'\"\u{1}", 4.5, 0.005), point("模型", 8.5, 0.0), point("nan", f64::NAN, 0.1)];
        let svg = svg(&points, "从 bf16", "<script>");
        assert!(svg.contains("a&lt;b&gt;&amp;&apos;&quot; </text>"), "{svg}");
        assert!(svg.contains("at no distance: 模型, nan") && svg.contains("从 bf16"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("<script>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    /// All at one place: their names stand beside each other, not on each other.
    #[test]
    fn names_do_not_lie_on_each_other() {
        let mut taken = vec![[395.0, 245.0, 405.0, 255.0]];
        for _ in 0..8 {
            place(400.0, 250.0, 60.0, &mut taken);
        }
        for (i, a) in taken.iter().enumerate() {
            for b in &taken[..i] {
                assert!(!(a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_picture_of_nothing_has_axes() {
        let svg = svg(&[], "none", "");
        assert!(svg.contains("bits a weight") && svg.ends_with("</svg>\n") && !svg.contains("<circle"));
    }
}
