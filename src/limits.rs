//! The largest numbers that a caller may ask for, in one place: the programs, the C library and the library itself check against these.

use crate::error::{Error, Result};

/// Tokens of a context, of a prompt or of an answer.
pub const MOST_CONTEXT: usize = 1 << 24;
/// Tokens of a vocabulary.
pub const MOST_VOCAB: usize = 1 << 22;
/// Tokens that go through the model together.
pub const MOST_BATCH: usize = 1 << 16;
/// Layers of a model.
pub const MOST_LAYERS: usize = 1 << 10;
/// Experts of a layer.
pub const MOST_EXPERTS: usize = 1 << 10;
/// Experts of all layers.
pub const MOST_EXPERTS_IN_ALL: usize = 1 << 16;
/// Tokens that are drafted behind the next one of an answer, and run with it in one pass.
pub const MOST_DRAFTED: usize = 3;
/// Tokens of a text that answers are drafted from.
pub const MOST_HINT: usize = 1 << 17;
/// Threads of another machine, for which a recording cuts work.
pub const MOST_SIMULATED: usize = 1024;
/// Threads that read experts.
pub const MOST_READERS: usize = 256;
/// Penalties, temperatures and biases: logits that are divided or multiplied by it stay finite.
pub const MOST_WEIGHT: f32 = 1e9;

/// Threads that compute: four for each processor, and 64 on the smallest machine. More of them only wait for each other.
pub fn most_threads() -> usize {
    (4 * std::thread::available_parallelism().map_or(1, usize::from)).max(64)
}

/// `threads`, where they are not too many.
///
/// # Errors
/// [`Error::Argument`] with the largest number that is allowed.
pub fn check_threads(threads: usize) -> Result<usize> {
    let most = most_threads();
    if threads > most {
        return Err(Error::Argument(format!(
            "{threads} threads are too many: this machine takes {most} at most, and 0 is one for each physical core"
        )));
    }
    Ok(threads)
}

/// `tokens` that go through the model together, where they are not too many.
///
/// # Errors
/// [`Error::Argument`] with the largest number that is allowed.
pub fn check_batch(tokens: usize) -> Result<usize> {
    if tokens > MOST_BATCH {
        return Err(Error::Argument(format!(
            "{tokens} tokens cannot go through the model together: {MOST_BATCH} are possible; ask for fewer"
        )));
    }
    Ok(tokens)
}

/// `tokens` of a context, where they are not too many.
///
/// # Errors
/// [`Error::Argument`] with the largest number that is allowed.
pub fn check_context(tokens: usize) -> Result<usize> {
    if tokens > MOST_CONTEXT {
        return Err(Error::Argument(format!(
            "a context of {tokens} tokens is too large: {MOST_CONTEXT} are possible; ask for less"
        )));
    }
    Ok(tokens)
}
