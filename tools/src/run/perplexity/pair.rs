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

/// Tokens that are run by themselves, from an empty state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<'t> {
    /// All of them.
    pub tokens: &'t [u32],
    /// The first position whose prediction of the next token counts; what stands before it is only read.
    pub first: usize,
}

/// Windows of documents, each of which is cut where it is longer than the context; all predictions count.
pub fn of_documents(documents: &[Vec<u32>], context: usize) -> Vec<Window<'_>> {
    let pieces = documents.iter().flat_map(|document| document.chunks(context));
    pieces.map(|tokens| Window { tokens, first: 0 }).collect()
}

/// Windows of `context` tokens each, as llama-perplexity has them: what does not fill one is left out, and of each the predictions of the second half
/// count, which are made behind half of it at least.
pub fn of_chunks(tokens: &[u32], context: usize) -> Vec<Window<'_>> {
    tokens.chunks_exact(context).map(|tokens| Window { tokens, first: context / 2 }).collect()
}

/// Runs the windows of the text `file` through the model and the reference. The bar says `what` until there is something to tell, and `each` is called behind
/// each window, with the bar out of the way.
///
/// # Errors
/// The vocabularies differ, no window has a token to predict, a pass fails, `each` does, or somebody stops it.
pub fn run(
    windows: &[Window],
    file: &Path,
    model: Side,
    reference: Option<Side>,
    what: &'static str,
    each: &mut dyn FnMut(&Score) -> anyhow::Result<()>,
) -> anyhow::Result<Score> {
    let (config, other) = (model.model.config(), reference.unwrap_or(model).model.config());
    let (a, b) = (config.vocab, other.vocab);
    ensure!(a == b, "the models have vocabularies of {a} and {b}: their predictions cannot be compared");
    let bar = token_bar(windows.iter().map(|w| w.tokens.len() as u64).sum(), what);
    let mut score = Score::default();
    for window in windows {
        ensure!(!stopped(), "stopped on request");
        add(*window, model, reference, &mut score)?;
        bar.inc(window.tokens.len() as u64);
        if score.model.tokens() > 0 {
            bar.set_message(format!("perplexity {}", score.model.perplexity_text()));
        }
        bar.suspend(|| each(&score))?;
    }
    bar.finish_and_clear();
    ensure!(score.model.tokens() > 0, "{} has no token to predict: give a longer text", file.display());
    Ok(score)
}

fn add(window: Window, side: Side, reference: Option<Side>, score: &mut Score) -> anyhow::Result<()> {
    let (model, tokens) = (side.model, window.tokens);
    let mut state = model.state(tokens.len(), side.kv)?;
    let _stop = cancel_on_stop(state.cancel.clone());
    let state_of = |side: Side<'_>| side.model.state(tokens.len(), side.kv);
    let mut other = reference.map(|side| Ok::<_, yuan::Error>((side.model, state_of(side)?))).transpose()?;
    if let Some((_, other)) = &mut other {
        other.cancel = state.cancel.clone();
    }
    let vocab = model.config().vocab;
    let mut begin = 0;
    for batch in tokens.chunks(model.batch()) {
        let hidden = Hidden::run(model, batch, &mut state)?;
        let reference = match &mut other {
            None => None,
            Some((m, state)) => Some(Hidden::run(m, batch, state)?),
        };
        // Logits of what does not count are not made.
        for first in (window.first.saturating_sub(begin)..batch.len()).step_by(LOGIT_ROWS) {
            let logits = hidden.logits(first)?;
            let reference = reference.as_ref().map_or(Ok(Vec::new()), |r| r.logits(first))?;
            for (i, row) in logits.chunks_exact(vocab).enumerate() {
                let position = begin + first + i;
                // Behind the last token comes none.
                let Some(&next) = tokens.get(position + 1) else { break };
                score.add(position, row, next, reference.chunks_exact(vocab).nth(i));
            }
            ensure!(!stopped(), "stopped on request");
        }
        begin += batch.len();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_documents_or_chunks() {
        let tokens: Vec<u32> = (0..10).collect();
        let of =
            |windows: Vec<Window>| windows.iter().map(|w| (w.tokens.to_vec(), w.first)).collect::<Vec<_>>();
        let documents = [tokens[..3].to_vec(), tokens[3..8].to_vec()];
        assert_eq!(
            of(of_documents(&documents, 4)),
            [(vec![0, 1, 2], 0), (vec![3, 4, 5, 6], 0), (vec![7], 0)]
        );
        assert_eq!(of(of_chunks(&tokens, 4)), [(vec![0, 1, 2, 3], 2), (vec![4, 5, 6, 7], 2)]);
        assert_eq!(of(of_chunks(&tokens, 5)), [(vec![0, 1, 2, 3, 4], 2), (vec![5, 6, 7, 8, 9], 2)]);
        assert!(of_chunks(&tokens, 11).is_empty());
    }
}
