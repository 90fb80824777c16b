//! Filling in the middle, by the three special tokens that a model was trained with for it.

use yuan::tokenizer::{Special, Tokenizer};

use crate::problem::Problem;

/// Whether the vocabulary has the tokens for it.
pub fn is_there(tokenizer: &Tokenizer) -> bool {
    marks(tokenizer).is_some()
}

/// The prompt behind which the model writes what stands between `before` and `after`. Special strings in the two are text.
///
/// # Errors
/// The vocabulary does not have the tokens for it; `param` is the field that asks for it.
pub fn prompt(
    tokenizer: &Tokenizer,
    param: &'static str,
    before: &str,
    after: &str,
) -> Result<Vec<u32>, Problem> {
    let [prefix, suffix, middle] = marks(tokenizer).ok_or_else(|| {
        let message = format!(
            "{param} asks to fill in the middle, for which this model's vocabulary has no tokens (<FIM_PREFIX>, <FIM_SUFFIX>, <FIM_MIDDLE>); give the text before the gap alone"
        );
        Problem::field(param, message)
    })?;
    let mut ids = vec![prefix];
    ids.extend(tokenizer.encode(before, Special::AsText));
    ids.push(suffix);
    ids.extend(tokenizer.encode(after, Special::AsText));
    ids.push(middle);
    Ok(ids)
}

fn marks(tokenizer: &Tokenizer) -> Option<[u32; 3]> {
    let special = &tokenizer.vocab().special;
    let id = |mark| special.iter().find(|(text, _)| text == mark).map(|(_, id)| *id);
    Some([id("<FIM_PREFIX>")?, id("<FIM_SUFFIX>")?, id("<FIM_MIDDLE>")?])
}

#[cfg(test)]
mod tests {
    use yuan::vocab::{Piece, PieceKind, Vocab};

    use super::*;

    fn tokenizer(marks: &[&str]) -> Tokenizer {
        let pieces = marks.iter().chain(&["<unk>", "\u{2581}", "a", "b"]);
        let piece = |text: &&str| Piece { text: (*text).into(), score: 0.0, kind: PieceKind::Normal };
        let mut pieces: Vec<_> = pieces.map(piece).collect();
        pieces[marks.len()].kind = PieceKind::Unknown;
        Tokenizer::new(Vocab::from_pieces(pieces)).unwrap()
    }

    #[test]
    fn a_gap_lies_between_marks() {
        let all = tokenizer(&["<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>"]);
        assert!(is_there(&all));
        assert_eq!(prompt(&all, "suffix", "a", "b").unwrap(), [1, 4, 5, 0, 4, 6, 2]);
        assert_eq!(prompt(&all, "suffix", "", "").unwrap(), [1, 0, 2]);
        let none = tokenizer(&["<FIM_SUFFIX>", "<FIM_PREFIX>"]);
        assert!(!is_there(&none));
        let problem = prompt(&none, "suffix", "a", "b").unwrap_err();
        assert_eq!((problem.param, problem.status.as_u16()), (Some("suffix"), 400));
        assert!(problem.message.contains("<FIM_MIDDLE>"));
    }
}
