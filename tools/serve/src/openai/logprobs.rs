//! Scores in the two forms that OpenAI gives them.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use yuan::{session::Score, tokenizer::Tokenizer};

use crate::{piece::Scored, tokens};

/// As chat has them.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Logprobs {
    pub content: Vec<TokenLogprob>,
    refusal: (),
}

/// A token of an answer, with the likeliest ones in its place.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TokenLogprob {
    #[serde(flatten)]
    itself: TopLogprob,
    top_logprobs: Vec<TopLogprob>,
}

/// A token and how likely it is.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct TopLogprob {
    token: String,
    /// Exactly the one that was computed, as sums want it.
    logprob: f64,
    bytes: Vec<u8>,
}

impl TopLogprob {
    fn of(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Self {
        Self { token: tokens::name(tokenizer, id), logprob: logprob.into(), bytes: tokenizer.bytes(id) }
    }
}

/// Of these tokens. One that ends the answer is no part of it.
pub fn chat(tokenizer: &Tokenizer, scored: &[Scored]) -> Logprobs {
    let entry = |Scored { score, .. }: &Scored| TokenLogprob {
        itself: TopLogprob::of(tokenizer, score.token, score.logprob),
        top_logprobs: score
            .best
            .iter()
            .map(|&(id, logprob)| TopLogprob::of(tokenizer, id, logprob))
            .collect(),
    };
    Logprobs { content: scored.iter().filter(|s| !s.ends).map(entry).collect(), refusal: () }
}

/// As completions have them: four lists of one length.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl Lists {
    /// A prompt's first token, which has nothing before it.
    pub fn first(&mut self, tokenizer: &Tokenizer, id: u32) {
        self.tokens.push(tokens::name(tokenizer, id));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.text_offset.push(0);
    }

    /// One more token, which begins behind so many characters.
    pub fn push(&mut self, tokenizer: &Tokenizer, score: &Score, offset: usize) {
        self.tokens.push(tokens::name(tokenizer, score.token));
        self.token_logprobs.push(Some(score.logprob.into()));
        self.top_logprobs.push(Some(top(tokenizer, score)));
        self.text_offset.push(offset);
    }
}

/// The likeliest tokens by their names, and the token itself. Of tokens with one name, the second and later ones go by their ids.
fn top(tokenizer: &Tokenizer, score: &Score) -> Map<String, Value> {
    let mut top = Map::new();
    let itself = (score.token, score.logprob);
    let all = score.best.iter().copied().chain((!score.best.contains(&itself)).then_some(itself));
    for (id, logprob) in all {
        let name = tokens::name(tokenizer, id);
        let name = if top.contains_key(&name) { format!("token_id:{id}") } else { name };
        top.insert(name, json!(logprob));
    }
    top
}

#[cfg(test)]
mod tests {
    use yuan::vocab::{Piece, PieceKind, Vocab};

    use super::*;

    #[test]
    fn tokens_of_one_name_do_not_hide_each_other() {
        let piece = |text: &str, kind| Piece { text: text.into(), score: 0.0, kind };
        let texts = [("<unk>", PieceKind::Unknown), ("a", PieceKind::Normal), ("<0x61>", PieceKind::Byte)];
        let pieces = texts.map(|(text, kind)| piece(text, kind)).to_vec();
        let tokenizer = Tokenizer::new(Vocab::from_pieces(pieces)).unwrap();
        let score = Score { token: 2, logprob: -2.0, best: vec![(1, -1.0)] };
        assert_eq!(Value::from(top(&tokenizer, &score)), json!({ "a": -1.0, "token_id:2": -2.0 }));
        let best = Score { token: 1, logprob: -1.0, best: vec![(1, -1.0)] };
        assert_eq!(Value::from(top(&tokenizer, &best)), json!({ "a": -1.0 }));
    }
}
