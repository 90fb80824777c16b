//! What a run asked of its pager, written down, and asked again of a policy without the model.

use std::{fmt::Write as _, fs, io::Write as _, path::Path};

use serde::{Deserialize, Serialize};

use super::{Eviction, Hits, Policy};
use crate::{
    error::{Error, Result},
    files::write_whole,
    limits::{MOST_EXPERTS, MOST_EXPERTS_IN_ALL, MOST_LAYERS},
};

/// Bytes of an expert, or of everything else: more than any model has, and so few that sums of them are numbers.
const MOST_BYTES: u64 = 1 << 48;

/// All requests of a run, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The model that they were made to.
    pub model: Traced,
    /// Of each request the layer, and the experts chosen by its tokens.
    pub requests: Vec<(usize, Vec<usize>)>,
}

/// What a trace says of its model: the first line of the file, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traced {
    /// Version of the file format: 1.
    pub yuan_trace: u32,
    /// Layers.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts of a token in a layer.
    pub used: usize,
    /// Bytes of an expert.
    pub expert_bytes: u64,
    /// Memory that a streamed run takes beside the experts that it keeps.
    pub fixed_bytes: u64,
}

/// What a policy makes of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Requests of several tokens.
    pub prefill: Hits,
    /// Requests of one token.
    pub decode: Hits,
    /// Experts that each pass with one token had to wait for.
    pub misses: Vec<u64>,
}

impl Trace {
    /// Asks a policy that keeps `resident` experts for all of it, as the engine does.
    pub fn replay(&self, eviction: Eviction, resident: usize) -> Replayed {
        let Traced { layers, experts, used, .. } = self.model;
        let mut policy = Policy::new(eviction, layers, experts, resident);
        let mut replayed = Replayed::default();
        for (layer, chosen) in &self.requests {
            let decision = policy.request(*layer, chosen, used);
            let single = chosen.len() <= used;
            let hits = if single { &mut replayed.decode } else { &mut replayed.prefill };
            hits.hits += decision.hits.len() as u64;
            hits.misses += decision.misses.len() as u64;
            if single {
                if *layer == 0 {
                    replayed.misses.push(0);
                }
                if let Some(token) = replayed.misses.last_mut() {
                    *token += decision.misses.len() as u64;
                }
            }
        }
        replayed
    }

    /// Tokens that used each expert, by `layer * experts + expert`.
    pub fn uses(&self) -> Vec<u64> {
        let mut uses = vec![0; self.model.layers * self.model.experts];
        for (layer, chosen) in &self.requests {
            chosen.iter().for_each(|e| uses[layer * self.model.experts + e] += 1);
        }
        uses
    }

    /// Writes the trace: a line of JSON, then a line for each request, its layer and its experts.
    ///
    /// # Errors
    /// As [`write_whole`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string(&self.model).expect("plain data");
        text.push('\n');
        for (layer, chosen) in &self.requests {
            let _ = write!(text, "{layer}");
            chosen.iter().for_each(|e| {
                let _ = write!(text, " {e}");
            });
            text.push('\n');
        }
        write_whole(path, text.len() as u64, |out| out.write_all(text.as_bytes()))
    }

    /// Reads what [`Trace::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] with the line that is no request.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let bad = |line: usize, problem: &str| Error::BadFile {
            path: path.into(),
            place: format!("line {line}"),
            problem: problem.into(),
            remedy: "give a trace of `yuan trace`",
        };
        let mut lines = text.lines().enumerate();
        let head = lines.next().map_or("", |(_, line)| line);
        let model: Traced = serde_json::from_str(head).map_err(|e| bad(1, &e.to_string()))?;
        // What a model may have: a policy looks at all experts of a layer for each of its requests.
        let is_model = (1..=MOST_LAYERS).contains(&model.layers)
            && (1..=MOST_EXPERTS).contains(&model.experts)
            && model.layers * model.experts <= MOST_EXPERTS_IN_ALL
            && (1..=model.experts).contains(&model.used)
            && model.expert_bytes.max(model.fixed_bytes) <= MOST_BYTES;
        if model.yuan_trace != 1 || !is_model {
            return Err(bad(1, "it describes no model"));
        }
        let requests = lines.map(|(i, line)| {
            let mut numbers = line.split(' ').map(str::parse::<usize>);
            let layer = numbers.next().and_then(std::result::Result::ok).filter(|&l| l < model.layers);
            let chosen: Option<Vec<usize>> = numbers.map(|n| n.ok().filter(|&e| e < model.experts)).collect();
            let whole = chosen.filter(|c| !c.is_empty() && c.len().is_multiple_of(model.used));
            layer
                .zip(whole)
                .ok_or_else(|| bad(i + 1, "it does not have a layer and the experts of its tokens"))
        });
        let requests = requests.collect::<Result<Vec<_>>>()?;
        Ok(Self { model, requests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let model =
            Traced { yuan_trace: 1, layers: 2, experts: 4, used: 2, expert_bytes: 10, fixed_bytes: 100 };
        let requests = vec![(0, vec![0, 1, 2, 1]), (1, vec![3, 0, 3, 1]), (0, vec![1, 2]), (1, vec![2, 3])];
        Trace { model, requests }
    }

    #[test]
    fn a_trace_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        trace().write(&path).unwrap();
        assert_eq!(Trace::read(&path).unwrap(), trace());
    }

    #[test]
    fn hits_and_misses_are_counted_by_kind() {
        let replayed = trace().replay(Eviction::Lfu, 8);
        assert_eq!(replayed.prefill, Hits { hits: 0, misses: 6 });
        assert_eq!((replayed.decode, replayed.misses), (Hits { hits: 3, misses: 1 }, vec![1]));
        assert_eq!(trace().uses(), [1, 3, 2, 0, 1, 1, 1, 3]);
    }

    #[test]
    fn what_is_no_trace_is_an_error_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let head = serde_json::to_string(&trace().model).unwrap();
        let huge = head.replace("\"layers\":2", "\"layers\":99999999999");
        let none = head.replace("\"used\":2", "\"used\":0");
        let wide = head.replace("\"experts\":4", "\"experts\":100000");
        let heavy = head.replace("\"expert_bytes\":10", &format!("\"expert_bytes\":{}", u64::MAX));
        for (text, line) in [
            (String::new(), 1),
            ("{}\n".into(), 1),
            (huge, 1),
            (none, 1),
            (wide, 1),
            (heavy, 1),
            (format!("{head}\n2 0 1\n"), 2),
            (format!("{head}\n0 0 1\n1 0 4\n"), 3),
            (format!("{head}\n0 0 1 2\n"), 2),
            (format!("{head}\n0\n"), 2),
            (format!("{head}\n0 0 -1\n"), 2),
        ] {
            fs::write(&path, text).unwrap();
            let problem = Trace::read(&path).unwrap_err().to_string();
            assert!(problem.contains(&format!("line {line}")), "{problem}");
        }
    }
}
