//! Text that the model writes itself: answers to the questions of a text, in the form that the model knows, without anybody's answers.

use std::ops::ControlFlow;

use crate::{
    error::{Error, Result},
    model::{KvType, Model, Sequence, State, Want},
};

/// Documents that are written together.
const TOGETHER: usize = 16;

/// What the model is to write.
#[derive(Clone, Debug)]
pub struct Writing {
    /// How documents begin; none is empty.
    pub beginnings: Vec<Vec<u32>>,
    /// Tokens of a document at most, its beginning among them.
    pub most: usize,
    /// Tokens that end one.
    pub ends: Vec<u32>,
    /// Type of the keys and values.
    pub kv: KvType,
}

/// A document that is being written.
struct Page {
    tokens: Vec<u32>,
    state: State,
    /// Those that the state does not hold yet.
    new: usize,
    random: u64,
}

/// Documents with these beginnings as the model goes on with them: each token as likely as the model says. The same model writes the same text. `progress` hears
/// of tokens as they are written, and says whether to go on.
///
/// # Errors
/// Those of [`Model::forward`]; [`Error::Cancelled`].
pub fn write(
    model: &Model,
    writing: &Writing,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>> {
    let most = writing.most.min(model.config().context);
    let mut written = Vec::new();
    for (group, beginnings) in writing.beginnings.chunks(TOGETHER).enumerate() {
        let page = |(i, beginning): (usize, &Vec<u32>)| {
            let tokens = beginning[..beginning.len().min(most)].to_vec();
            let state = model.state(most, writing.kv)?;
            Ok(Page { new: tokens.len(), tokens, state, random: (group * TOGETHER + i) as u64 })
        };
        let mut pages = beginnings.iter().enumerate().map(page).collect::<Result<Vec<Page>>>()?;
        // A beginning may look like an end.
        let ended = |page: &Page| {
            page.state.position() > 0 && page.tokens.last().is_some_and(|t| writing.ends.contains(t))
        };
        let under_way = |page: &Page| page.tokens.len() < most && !ended(page);
        while pages.iter().any(under_way) {
            let mut at_work: Vec<&mut Page> = pages.iter_mut().filter(|page| under_way(page)).collect();
            let mut sequences: Vec<Sequence<'_>> = at_work
                .iter_mut()
                .map(|page| {
                    let tokens = &page.tokens[page.tokens.len() - page.new..];
                    Sequence { tokens, drafted: 0, state: &mut page.state, want: Want::Last }
                })
                .collect();
            let outputs = model.forward(&mut sequences);
            drop(sequences);
            let count = at_work.len() as u64;
            for (page, output) in at_work.into_iter().zip(outputs) {
                let token = choose(&output?.into_rows(), &mut page.random);
                page.tokens.push(token);
                page.new = 1;
            }
            if progress(count).is_break() {
                return Err(Error::Cancelled);
            }
        }
        written.extend(pages.into_iter().map(|page| page.tokens));
    }
    Ok(written)
}

/// A token by its likelihood.
fn choose(logits: &[f32], random: &mut u64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = || logits.iter().map(|l| f64::from(l - max).exp());
    let mut left = uniform(random) * weights().sum::<f64>();
    let chosen = weights().position(|weight| {
        left -= weight;
        left < 0.0
    });
    chosen.unwrap_or(logits.len().saturating_sub(1)) as u32
}

/// From 0 up to 1 (splitmix64).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
