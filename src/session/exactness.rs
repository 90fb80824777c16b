//! A short check that this machine computes the bits that every other does: logits of the demo model, against digests that come with the program.

use crate::{
    error::{Error, Result},
    model::{KvType, Model, State, Want},
    tokenizer::{Special, Tokenizer},
};

/// A prompt, and what the demo model with experts in `q4_k` and the usual types makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The prompt.
    pub prompt: &'static str,
    /// [`digest`] of it, whatever the kernels and the threads.
    pub digest: &'static str,
}

/// An English prompt and a Chinese one. The digests belong to a version of the arithmetic ([`ARITHMETIC`](crate::ARITHMETIC)) and of the encoders.
pub const DEMO: [Known; 2] = [
    Known {
        prompt: "Psalms 151:1-4<sep>The LORD is my shepherd; I shall not want. He maketh me to lie down in green pastures:",
        digest: "a27d4442f25d6bc46391d7456d65f2fdd5e50533f63e9af59583f4f4c8654037",
    },
    Known {
        prompt: "春日山中 李白<sep>青山横北郭，白水绕东城。此地一为别，孤蓬万里征。",
        digest: "73968d51fe29d489e45dafcae12a4d0026b89a40ae19860ed8e7519ad16aba39",
    },
];

/// Tokens at the end of a prompt that go through the model one by one, as those of an answer do.
const ALONE: usize = 3;

/// The BLAKE3 of the bits of all logits of a prompt, as lower-case hexadecimal digits: its last tokens go through the model one by one, all before them together.
///
/// # Errors
/// Those of the pass; [`Error::Argument`] for a prompt of fewer than four tokens.
pub fn digest(model: &Model, tokenizer: &Tokenizer, prompt: &str) -> Result<String> {
    let tokens = tokenizer.encode(prompt, Special::Parse);
    let (together, alone) = tokens.split_at(tokens.len().saturating_sub(ALONE));
    if together.is_empty() {
        return Err(Error::Argument(format!("{prompt:?} is too short a prompt to check; give a sentence")));
    }
    let mut state = State::new(model.config(), tokens.len(), KvType::F16)?;
    let mut hasher = blake3::Hasher::new();
    for piece in std::iter::once(together).chain(alone.chunks(1)) {
        for logit in model.forward_one(piece, &mut state, Want::All)? {
            hasher.update(&logit.to_bits().to_le_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
