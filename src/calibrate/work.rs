//! A whole calibration: texts cut into passes, and sums that outlive a killed run.

use std::{
    fs,
    ops::{ControlFlow, Range},
    path::Path,
    time::{Duration, Instant},
};

use super::{Calibration, Moments, Wanted, sums};
use crate::{
    container::{
        imatrix::{Imatrix, partial},
        value::Value,
    },
    error::{Error, Result},
    files::{check_name, check_output},
    model::{KvType, Model},
};

/// Keys of a file that is under way: of what, which round, and how many passes of the round are done.
const OF: &str = "yuan.calibrate.of";
const ROUND: &str = "yuan.calibrate.round";
const DONE: &str = "yuan.calibrate.done";

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Work {
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// The tokens of their documents.
    pub documents: Vec<Vec<u32>>,
    /// Whether second moments are gathered: which, and of how many layers in one round through the texts, at least 1.
    pub moments: Option<(Moments, usize)>,
    /// Type of the keys and values.
    pub kv: KvType,
    /// What else decides what comes out: of which model, and how it is run. A run that was killed is only continued with the same.
    pub identity: Vec<u8>,
    /// After how long the sums so far are saved.
    pub save_every: Duration,
}

impl Work {
    /// The documents' tokens in pieces, those of a pass together. A piece has no more tokens than a pass or the context, and begins without memory.
    fn passes(&self, model: &Model) -> Vec<Vec<&[u32]>> {
        let most = model.batch().min(model.config().context).max(1);
        let (mut passes, mut tokens) = (Vec::<Vec<&[u32]>>::new(), usize::MAX);
        for piece in self.documents.iter().flat_map(|document| document.chunks(most)) {
            if tokens.saturating_add(piece.len()) > most {
                passes.push(Vec::new());
                tokens = 0;
            }
            tokens += piece.len();
            if let Some(pass) = passes.last_mut() {
                pass.push(piece);
            }
        }
        passes
    }

    /// What is wanted of each round through the texts.
    fn rounds(&self, layers: usize) -> Vec<Wanted> {
        let Some((moments, together)) = self.moments else {
            return vec![Wanted { squares: true, layers: 0..0, moments: Moments::ByLayer }];
        };
        // The head is one more.
        let starts = (0..=layers).step_by(together.max(1));
        let rounds = starts.map(|start| start..(start + together.max(1)).min(layers + 1));
        rounds.map(|layers: Range<usize>| Wanted { squares: layers.start == 0, layers, moments }).collect()
    }

    /// Tokens of all rounds, which is what progress counts.
    pub fn tokens(&self, layers: usize) -> u64 {
        let tokens: usize = self.documents.iter().map(Vec::len).sum();
        (tokens * self.rounds(layers).len()) as u64
    }

    /// Tells this work from others.
    fn digest(&self, model: &Model) -> String {
        let mut hasher = blake3::Hasher::new();
        let shape = (model.batch(), model.config(), model.arithmetic(), self.kv, self.moments);
        hasher.update(format!("{shape:?}{:?}", self.datasets).as_bytes());
        hasher.update(&(self.identity.len() as u64).to_le_bytes()).update(&self.identity);
        for document in &self.documents {
            hasher.update(&(document.len() as u64).to_le_bytes());
            document.iter().for_each(|token| {
                hasher.update(&token.to_le_bytes());
            });
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Runs the texts through the model and writes what was summed up to `path`. The sums so far are saved beside it, and a run of the same work goes on with
/// them; its file is the same byte for byte. `progress` hears of tokens, those of an earlier run at once, and says whether to go on.
///
/// # Errors
/// [`Error::Argument`] for texts without tokens, and a `path` that is none; those of [`Model::forward`]; [`Error::Cancelled`], which leaves the sums for the next run;
/// [`Error::Io`].
pub fn calibrate(
    model: &Model,
    work: &Work,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Imatrix> {
    check_name(path, "importance.gguf")?;
    check_output(path, 0, &[], "importance.gguf")?;
    let passes = work.passes(model);
    if passes.is_empty() {
        return Err(Error::Argument("the texts have no tokens; give others".into()));
    }
    let (digest, beside) = (work.digest(model), partial(path));
    let before = resume(&beside, &digest, model, work).unwrap_or_else(|| Imatrix {
        datasets: work.datasets.clone(),
        chunks: passes.len() as u32,
        chunk_size: model.batch() as u32,
        ..Imatrix::default()
    });
    let noted = |key: &str| before.notes.number(key).ok().flatten().unwrap_or(0) as usize;
    let (first_round, mut done) = (noted(ROUND), noted(DONE));
    let tokens = |passes: &[Vec<&[u32]>]| passes.iter().flatten().map(|p| p.len() as u64).sum::<u64>();
    let mut calibration = Calibration::new(model, before);
    let mut go_on =
        progress(first_round as u64 * tokens(&passes) + tokens(&passes[..done.min(passes.len())]));
    let mut saved = Instant::now();
    let rounds = work.rounds(model.config().layers);
    for (round, wanted) in rounds.iter().enumerate().skip(first_round) {
        for (i, pass) in passes.iter().enumerate().skip(done) {
            if go_on.is_break() || saved.elapsed() >= work.save_every {
                save(calibration.sums_mut(), &beside, &digest, round, i)?;
                saved = Instant::now();
            }
            if go_on.is_break() {
                return Err(Error::Cancelled);
            }
            calibration.run(pass, work.kv, wanted)?;
            go_on = progress(tokens(&passes[i..=i]));
        }
        done = 0;
    }
    let imatrix = calibration.sums_mut();
    imatrix.notes.remove(|key| [OF, ROUND, DONE].contains(&key));
    sums::mirror(imatrix);
    imatrix.write(path)?;
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &beside)(e)),
        _ => {}
    }
    Ok(calibration.into_sums())
}

fn save(imatrix: &mut Imatrix, beside: &Path, digest: &str, round: usize, done: usize) -> Result<()> {
    imatrix.notes.set(OF, Value::String(digest.into()));
    imatrix.notes.set(ROUND, Value::U32(round as u32));
    imatrix.notes.set(DONE, Value::U32(done as u32));
    imatrix.write(beside)
}

/// The sums that an earlier run of the same work has left.
fn resume(beside: &Path, digest: &str, model: &Model, work: &Work) -> Option<Imatrix> {
    if !beside.exists() {
        return None;
    }
    let found = Imatrix::open(beside);
    let found = found.inspect_err(|e| tracing::warn!("the sums of an earlier run are not used: {e}")).ok()?;
    let moments = work.moments.map_or(Moments::ByLayer, |(moments, _)| moments);
    let same =
        found.notes.text(OF).ok().flatten() == Some(digest) && sums::fits(model.config(), moments, &found);
    if !same {
        tracing::warn!("{} is of another calibration: it is begun anew", beside.display());
    }
    same.then_some(found)
}
