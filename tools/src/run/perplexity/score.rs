//! What is counted of predictions, and how sure its means are.

use serde_json::{Map, Value, json};

/// First positions of the ranges that distances are told apart by.
const FIRSTS: [usize; 7] = [0, 64, 256, 1024, 4096, 16_384, 65_536];

/// A quantity over tokens: its mean, and the standard error of that as if tokens were independent of each other, as llama-perplexity has it. (They are not quite:
/// those of a hard document are hard together, so that another text differs by more.)
#[derive(Clone, Copy, Debug, Default)]
pub struct Moments {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    fn merge(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
        }
    }

    /// The mean; not a number of no values.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Its standard error, that of a share too, of which the values are zeros and ones; none of fewer than two values.
    pub fn error(&self) -> Option<f64> {
        let n = self.count as f64;
        let variance = (self.squares / n - self.mean().powi(2)).max(0.0);
        (self.count > 1).then(|| (variance / (n - 1.0)).sqrt())
    }

    /// Both, scaled and with so many digits: `14.316 ± 0.214`.
    pub fn text(&self, scale: f64, digits: usize) -> String {
        with_error(scale * self.mean(), self.error().map(|e| scale * e), digits)
    }
}

/// `14.316 ± 0.214`.
pub fn with_error(value: f64, error: Option<f64>, digits: usize) -> String {
    match error {
        Some(error) => format!("{value:.digits$} ± {error:.digits$}"),
        None => format!("{value:.digits$}"),
    }
}

/// How well a text was predicted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Likelihood {
    /// Minus the logarithm of the probability of each token.
    pub loss: Moments,
    /// Whether each was the likeliest.
    pub hits: Moments,
}

impl Likelihood {
    /// Tokens that were predicted.
    pub fn tokens(&self) -> usize {
        self.loss.count
    }

    /// The exponential of the mean loss, and its standard error: that of the loss times the slope there, which is the perplexity itself (the delta method).
    pub fn perplexity(&self) -> (f64, Option<f64>) {
        let perplexity = self.loss.mean().exp();
        (perplexity, self.loss.error().map(|e| perplexity * e))
    }

    /// The perplexity and its error: `14.316 ± 0.317`.
    pub fn perplexity_text(&self) -> String {
        let (perplexity, error) = self.perplexity();
        with_error(perplexity, error, 3)
    }

    /// The figures for programs.
    pub fn json(&self) -> Map<String, Value> {
        let (perplexity, error) = self.perplexity();
        object(json!({
            "tokens": self.tokens(), "loss": self.loss.mean(), "loss_error": self.loss.error(), "perplexity": perplexity, "perplexity_error": error,
            "top1": self.hits.mean(), "top1_error": self.hits.error(),
        }))
    }

    fn add(&mut self, log_probabilities: &[f64], best: u32, next: u32) {
        self.loss.add(-log_probabilities[next as usize]);
        self.hits.add(f64::from(u8::from(best == next)));
    }
}

/// How far predictions are from those of a reference.
#[derive(Clone, Debug, Default)]
pub struct Distance {
    /// The Kullback-Leibler divergence of each token's probabilities from the reference's, in nats.
    each: Vec<f32>,
    /// The same, summed up.
    pub kl: Moments,
    /// Whether both have the same likeliest token.
    pub agreed: Moments,
}

impl Distance {
    fn add(&mut self, divergence: f64, agreed: bool) {
        self.each.push(divergence as f32);
        self.kl.add(divergence);
        self.agreed.add(f64::from(u8::from(agreed)));
    }

    /// The divergences that 50, 90, 95, 99, 99.9 and 100 % of the tokens do not exceed; none of no token.
    fn percentiles(&self) -> Option<[f64; 6]> {
        let mut sorted = self.each.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        (!sorted.is_empty()).then(|| [50.0, 90.0, 95.0, 99.0, 99.9, 100.0].map(|p| percentile(&sorted, p)))
    }

    /// The figures for programs.
    fn json(&self) -> Map<String, Value> {
        let [median, p90, p95, p99, p999, most] = self.percentiles().map_or([None; 6], |p| p.map(Some));
        object(json!({
            "kl_divergence": self.kl.mean(), "kl_divergence_error": self.kl.error(), "kl_divergence_median": median,
            "kl_divergence_percentiles": { "90": p90, "95": p95, "99": p99, "99.9": p999 }, "kl_divergence_max": most,
            "top1_agreement": self.agreed.mean(), "top1_agreement_error": self.agreed.error(),
        }))
    }
}

/// What `percent` of the sorted values, of which there is one at least, do not exceed; between two of them as far as it is from each, as NumPy and llama-perplexity have it.
fn percentile(sorted: &[f32], percent: f64) -> f64 {
    let last = sorted.len() - 1;
    let at = percent / 100.0 * last as f64;
    let below = (at as usize).min(last);
    let (a, b) = (f64::from(sorted[below]), f64::from(sorted[(below + 1).min(last)]));
    a + (at - below as f64) * (b - a)
}

/// What is counted of a text: four bytes a token where there is a reference, otherwise sums alone.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Of the model.
    pub model: Likelihood,
    /// Of the reference, if there is one.
    pub reference: Likelihood,
    /// The model's loss less the reference's, token by token: far surer than the two by themselves.
    pub lost: Moments,
    /// The distance between the two, by the ranges of positions.
    ranges: [Distance; FIRSTS.len()],
}

impl Score {
    /// Takes in what was said of the token `next` behind so many others of its context but one: logits \[V\] of the model, and of the reference.
    pub fn add(&mut self, position: usize, logits: &[f32], next: u32, reference: Option<&[f32]>) {
        let p = log_softmax(logits);
        let best = yuan::sampler::greedy(logits);
        self.model.add(&p, best, next);
        let Some(reference) = reference else { return };
        let q = log_softmax(reference);
        let reference = yuan::sampler::greedy(reference);
        self.reference.add(&q, reference, next);
        self.lost.add(q[next as usize] - p[next as usize]);
        let divergence = q.iter().zip(&p).map(|(q, p)| q.exp() * (q - p)).sum();
        let range = FIRSTS.partition_point(|&first| first <= position) - 1;
        self.ranges[range].add(divergence, best == reference);
    }

    /// Of all positions.
    pub fn distance(&self) -> Distance {
        let add = |mut all: Distance, range: &Distance| {
            all.each.extend(&range.each);
            (all.kl, all.agreed) = (all.kl.merge(range.kl), all.agreed.merge(range.agreed));
            all
        };
        self.ranges.iter().fold(Distance::default(), add)
    }

    /// First and last position, which the last range has none of, and the distance there; ranges without a token are left out.
    fn by_position(&self) -> impl Iterator<Item = (usize, Option<usize>, &Distance)> {
        let ranges = self.ranges.iter().enumerate();
        let range = |(i, range)| (FIRSTS[i], FIRSTS.get(i + 1).map(|next| next - 1), range);
        ranges.map(range).filter(|(.., range)| !range.each.is_empty())
    }

    /// The figures for programs: those of the model, and where there is a reference the distance from it.
    pub fn json(&self) -> Map<String, Value> {
        let mut all = self.model.json();
        if self.reference.tokens() > 0 {
            let (perplexity, error) = self.reference.perplexity();
            all.extend(object(json!({
                "reference_perplexity": perplexity, "reference_perplexity_error": error,
                "ln_perplexity_ratio": self.lost.mean(), "ln_perplexity_ratio_error": self.lost.error(),
            })));
            all.extend(self.distance().json());
            let range = |(first, last, range): (usize, Option<usize>, &Distance)| {
                let mut all = object(json!({ "first": first, "last": last, "tokens": range.each.len() }));
                all.extend(range.json());
                Value::from(all)
            };
            all.insert("positions".into(), self.by_position().map(range).collect());
        }
        all
    }

    /// The figures for people.
    pub fn text(&self) -> String {
        let mut lines = vec![
            format!("tokens      {}", self.model.tokens()),
            format!("loss        {}", self.model.loss.text(1.0, 4)),
            format!("perplexity  {}", self.model.perplexity_text()),
            format!("top-1       {} %", self.model.hits.text(100.0, 2)),
        ];
        let distance = self.distance();
        if let Some([median, p90, p95, p99, p999, most]) = distance.percentiles() {
            lines.extend([
                format!("against     perplexity {}", self.reference.perplexity_text()),
                format!("ln ratio    {} (of the perplexities)", self.lost.text(1.0, 6)),
                format!("KL          {} (mean, from the predictions of --against)", distance.kl.text(1.0, 6)),
                format!("            {median:.6} median, {p90:.6} of 90 %, {p95:.6} of 95 %, {p99:.6} of 99 %, {p999:.6} of 99.9 %, {most:.6} most"),
                format!("same top-1  {} %", distance.agreed.text(100.0, 2)),
                String::new(),
                format!(
                    "{:<12}{:>9}  {:>19}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>14}",
                    "position", "tokens", "mean KL", "median", "90 %", "95 %", "99 %", "99.9 %", "most", "same top-1, %"
                ),
            ]);
            for (first, last, range) in self.by_position() {
                let place = format!("{first}-{}", last.map_or(String::new(), |last| last.to_string()));
                let kl: String =
                    range.percentiles().iter().flatten().map(|kl| format!("  {kl:>9.6}")).collect();
                lines.push(format!(
                    "{place:<12}{:>9}  {:>19}{kl}  {:>14}",
                    range.each.len(),
                    range.kl.text(1.0, 6),
                    range.agreed.text(100.0, 2)
                ));
            }
        }
        lines.join("\n")
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&l| (l as f64 - max).exp()).sum();
    logits.iter().map(|&l| l as f64 - max - sum.ln()).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f64]) -> Moments {
        let mut moments = Moments::default();
        values.iter().for_each(|&value| moments.add(value));
        moments
    }

    #[test]
    fn errors_are_those_of_hand() {
        let four = moments(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(four.mean(), 2.5);
        // The variance is 5/4, and of that a third under the root.
        assert!((four.error().unwrap() - 0.645_497_224_367_902_8).abs() < 1e-15);
        // Three of four: sqrt(3/4 * 1/4 / 3).
        assert_eq!(moments(&[1.0, 0.0, 1.0, 1.0]).error(), Some(0.25));
        assert_eq!(moments(&[7.0, 7.0]).error(), Some(0.0));
        assert_eq!(moments(&[7.0]).error(), None);
        assert!(moments(&[]).mean().is_nan() && moments(&[]).error().is_none());
        let merged = moments(&[1.0, 2.0]).merge(moments(&[3.0, 4.0]));
        assert_eq!((merged.mean(), merged.error()), (four.mean(), four.error()));
        assert_eq!(four.text(100.0, 1), "250.0 ± 64.5");
        assert_eq!(moments(&[7.0]).text(1.0, 2), "7.00");
    }

    /// Two tokens that had probabilities of 1/2 and 1/8: the perplexity is 4, and the losses ln 2 and 3 ln 2 are ln 2 away from their mean.
    #[test]
    fn a_perplexity_has_the_error_of_its_slope() {
        let mut both = Likelihood::default();
        both.add(&[0.5_f64.ln(), 0.5_f64.ln()], 0, 0);
        both.add(&[0.125_f64.ln(), 0.875_f64.ln()], 1, 0);
        let (perplexity, error) = both.perplexity();
        assert!((perplexity - 4.0).abs() < 1e-12, "{perplexity}");
        assert!((error.unwrap() - 4.0 * 2.0_f64.ln()).abs() < 1e-12, "{error:?}");
        assert_eq!((both.tokens(), both.hits.mean()), (2, 0.5));
    }

    #[test]
    fn percentiles_lie_between_values() {
        let eleven: Vec<f32> = (0..=10).map(|i| i as f32).collect();
        for (percent, wanted) in
            [(0.0, 0.0), (50.0, 5.0), (90.0, 9.0), (95.0, 9.5), (99.0, 9.9), (100.0, 10.0)]
        {
            assert!((percentile(&eleven, percent) - wanted).abs() < 1e-12, "{percent}");
        }
        assert_eq!(percentile(&[1.0, 2.0, 4.0, 8.0], 50.0), 3.0);
        assert_eq!((percentile(&[3.0], 50.0), percentile(&[3.0], 99.9)), (3.0, 3.0));
    }

    /// A reference that says 1/2 and 1/2 where the model says 1/4 and 3/4: KL is ln 2 - ln(3)/2.
    #[test]
    fn distances_are_told_apart_by_position() {
        let (even, odd) = ([0.0, 0.0], [0.0, 3.0_f32.ln()]);
        let mut score = Score::default();
        for position in [0, 63, 64, 1_000_000] {
            score.add(position, &odd, 1, Some(&even));
        }
        score.add(300, &even, 0, Some(&even));
        let kl = 2.0_f64.ln() - 3.0_f64.ln() / 2.0;
        let report = Value::from(score.json());
        let close = |value: &Value, wanted: f64| (value.as_f64().unwrap() - wanted).abs() < 1e-7;
        assert_eq!(report["tokens"], 5);
        assert!(close(&report["kl_divergence"], 0.8 * kl), "{report}");
        assert!(close(&report["kl_divergence_median"], kl) && close(&report["kl_divergence_max"], kl));
        // Of equals the lower token is the likeliest.
        assert!(close(&report["top1_agreement"], 0.2) && close(&report["top1_agreement_error"], 0.2));
        assert!(close(&report["reference_perplexity"], 2.0), "{report}");
        // Four times 3/4 in place of 1/2.
        assert!(close(&report["ln_perplexity_ratio"], 0.8 * (2.0_f64 / 3.0).ln()), "{report}");
        let ranges: Vec<_> =
            score.by_position().map(|(first, last, range)| (first, last, range.each.len())).collect();
        assert_eq!(ranges, [(0, Some(63), 2), (64, Some(255), 1), (256, Some(1023), 1), (65_536, None, 1)]);
        assert_eq!(report["positions"].as_array().unwrap().len(), 4);
        assert!(close(&report["positions"][0]["kl_divergence"], kl));
        assert_eq!(report["positions"][2]["kl_divergence"], 0.0);
        assert!(report["positions"][3]["kl_divergence_error"].is_null(), "one token has no error");
        let text = score.text();
        for part in ["0-63 ", "64-255 ", "256-1023 ", "65536- ", "of 99.9 %"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn without_a_reference_there_is_no_distance() {
        let mut score = Score::default();
        score.add(0, &[1.0, 0.0], 0, None);
        assert!(!score.json().contains_key("kl_divergence") && !score.text().contains("KL"));
        assert_eq!(score.json()["top1"], 1.0);
    }
}
