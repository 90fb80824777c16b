//! What a model says of a text, and beside it what a reference says.

use std::path::Path;

use anyhow::ensure;
use yuan::model::{KvType, LOGIT_ROWS, Model, State, Want};
use yuan_tools::console::{cancel_on_stop, stopped, token_bar};

use super::score::Score;

/// A model, and the type of its cache.
#[derive(Clone, Copy)]
pub struct Side<'m> {
    /// The model.
    pub model: &'m Model,
    /// Type of its keys and values.
    pub kv: KvType,
}

/// Runs the documents of the text `file`, each from an empty state and in pieces where it is longer than a context, through the model and the reference. The bar says `what`.
///
/// # Errors
/// The vocabularies differ, no document has a token to predict, a pass fails, or somebody stops it.
pub fn run(
    documents: &[Vec<u32>],
    file: &Path,
    model: Side,
    reference: Option<Side>,
    what: &'static str,
) -> anyhow::Result<Score> {
    let (config, other) = (model.model.config(), reference.unwrap_or(model).model.config());
    let (a, b) = (config.vocab, other.vocab);
    ensure!(a == b, "the models have vocabularies of {a} and {b}: their predictions cannot be compared");
    let bar = token_bar(documents.iter().map(|d| d.len() as u64).sum(), what);
    let mut score = Score::default();
    for document in documents {
        for window in document.chunks(config.context.min(other.context)) {
            ensure!(!stopped(), "stopped on request");
            add(window, model, reference, &mut score)?;
            bar.inc(window.len() as u64);
        }
    }
    bar.finish_and_clear();
    ensure!(score.model.tokens() > 0, "{} has no token to predict: give a longer text", file.display());
    Ok(score)
}

fn add(tokens: &[u32], side: Side, reference: Option<Side>, score: &mut Score) -> anyhow::Result<()> {
    let model = side.model;
    let mut state = model.state(tokens.len(), side.kv)?;
    let _stop = cancel_on_stop(state.cancel.clone());
    let state_of = |side: Side<'_>| side.model.state(tokens.len(), side.kv);
    let mut other = reference.map(|side| Ok::<_, yuan::Error>((side.model, state_of(side)?))).transpose()?;
    if let Some((_, other)) = &mut other {
        other.cancel = state.cancel.clone();
    }
    let vocab = model.config().vocab;
    let mut next = tokens[1..].iter().enumerate();
    for batch in tokens.chunks(model.batch()) {
        let hidden = Hidden::run(model, batch, &mut state)?;
        let reference = match &mut other {
            None => None,
            Some((m, state)) => Some(Hidden::run(m, batch, state)?),
        };
        for first in (0..batch.len()).step_by(LOGIT_ROWS) {
            let logits = hidden.logits(first)?;
            let reference = reference.as_ref().map_or(Ok(Vec::new()), |r| r.logits(first))?;
            for (i, (row, (position, &next))) in logits.chunks_exact(vocab).zip(&mut next).enumerate() {
                score.add(position, row, next, reference.chunks_exact(vocab).nth(i));
            }
            ensure!(!stopped(), "stopped on request");
        }
    }
    Ok(())
}

/// Hidden states of a batch, of which logits are made a few rows at a time.
struct Hidden<'m> {
    model: &'m Model,
    rows: Vec<f32>,
}

impl<'m> Hidden<'m> {
    /// Runs a batch, cut where this model's own batches end.
    fn run(model: &'m Model, batch: &[u32], state: &mut State) -> yuan::Result<Self> {
        let parts = batch.chunks(model.batch()).map(|part| model.forward_one(part, state, Want::Hidden));
        Ok(Self { model, rows: parts.collect::<yuan::Result<Vec<_>>>()?.concat() })
    }

    /// Up to [`LOGIT_ROWS`] rows of logits from row `first` on.
    fn logits(&self, first: usize) -> yuan::Result<Vec<f32>> {
        let width = self.model.config().hidden;
        let end = self.rows.len().min((first + LOGIT_ROWS) * width);
        self.model.logits(&self.rows[first * width..end])
    }
}
