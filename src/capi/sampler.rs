//! The choice of the next token, and what ends an answer.

use std::{ffi::c_char, sync::Mutex};

use super::{
    args::{self, Out},
    border::call,
    handles::{Table, exclusive},
    status::{Failure, yuan_status},
};
use crate::{
    sampler::{Sampler, Settings},
    session::Limits,
};

/// How the next token is chosen, where the random choices stand, and what ends an answer. For one call at a time. A handle: it points
/// to nothing.
pub struct yuan_sampler(());

/// A sampler and what ends an answer.
pub(super) struct Chooser {
    pub sampler: Sampler,
    pub limits: Limits,
}

pub(super) static SAMPLERS: Table<Mutex<Chooser>> = Table::new("sampler");

/// Stops, of either kind, and biased tokens that a sampler takes.
const MOST: usize = 1 << 16;

/// Makes a sampler that always takes the best token, until the model ends the answer. The chain is bias, penalties, top-k, top-p,
/// min-p, temperature, and a draw. A setting holds from the next token on. Free it with yuan_sampler_free. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_sampler_new(sampler: *mut *mut yuan_sampler) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the sampler", sampler) }?;
        let chooser = Chooser { sampler: Sampler::new(Settings::default())?, limits: Limits::tokens(0) };
        SAMPLERS.add(Mutex::new(chooser), out)
    })
}

/// Frees a sampler. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_free(sampler: *mut yuan_sampler) -> yuan_status {
    call(|| SAMPLERS.remove(sampler).map(drop))
}

/// Begins the random choices anew, with the settings and the seed as they are. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_reset(sampler: *mut yuan_sampler) -> yuan_status {
    with(sampler, |chooser| {
        chooser.sampler = Sampler::new(chooser.sampler.settings().clone())?;
        Ok(())
    })
}

/// Divides the logits; 0, the default, always takes the best token. No setting may be above 10^9. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_temperature(sampler: *mut yuan_sampler, temperature: f32) -> yuan_status {
    set(sampler, |settings| settings.temperature = temperature)
}

/// Keeps the k best tokens; 0, the default, keeps all. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_top_k(sampler: *mut yuan_sampler, k: usize) -> yuan_status {
    set(sampler, |settings| settings.top_k = k)
}

/// Keeps the fewest best tokens whose probabilities reach this sum; 1, the default, keeps all. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_top_p(sampler: *mut yuan_sampler, p: f32) -> yuan_status {
    set(sampler, |settings| settings.top_p = p)
}

/// Keeps the tokens with at least this part of the probability of the best; 0, the default, keeps all. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_min_p(sampler: *mut yuan_sampler, p: f32) -> yuan_status {
    set(sampler, |settings| settings.min_p = p)
}

/// Divides the logits of recent tokens where they are positive, and multiplies them where they are negative; 1, the default, is none. One
/// call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_repeat_penalty(sampler: *mut yuan_sampler, penalty: f32) -> yuan_status {
    set(sampler, |settings| settings.repeat_penalty = penalty)
}

/// Taken from the logits of recent tokens; 0, the default, is none. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_presence_penalty(sampler: *mut yuan_sampler, penalty: f32) -> yuan_status {
    set(sampler, |settings| settings.presence_penalty = penalty)
}

/// Taken from the logits of recent tokens as often as they occur; 0, the default, is none. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_frequency_penalty(
    sampler: *mut yuan_sampler,
    penalty: f32,
) -> yuan_status {
    set(sampler, |settings| settings.frequency_penalty = penalty)
}

/// How many tokens are recent, the prompt's among them: 64 by default, 0 for none, SIZE_MAX for all. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_repeat_last_n(sampler: *mut yuan_sampler, tokens: usize) -> yuan_status {
    set(sampler, |settings| settings.repeat_last_n = tokens)
}

/// Adds to the logit of a token; minus infinity forbids it, and 0 takes an earlier bias back. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_logit_bias(
    sampler: *mut yuan_sampler,
    token: u32,
    bias: f32,
) -> yuan_status {
    with(sampler, |chooser| {
        let mut settings = chooser.sampler.settings().clone();
        settings.logit_bias.retain(|(id, _)| *id != token);
        if bias != 0.0 {
            room(settings.logit_bias.len())?;
            settings.logit_bias.push((token, bias));
        }
        Ok(chooser.sampler.set(settings)?)
    })
}

/// The same seed gives the same choices from the same logits, on every machine. A sampler whose seed is not set has a random one. One call at a
/// time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_seed(sampler: *mut yuan_sampler, seed: u64) -> yuan_status {
    set(sampler, |settings| settings.seed = Some(seed))
}

/// The seed of the random choices: the one that was set, or the one that was taken at random. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_sampler_seed(sampler: *const yuan_sampler, seed: *mut u64) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the seed", seed) }?;
        let sampler = SAMPLERS.get(sampler)?;
        let chosen = exclusive("sampler", &sampler)?.sampler.settings().seed;
        out.write(chosen.unwrap_or(0));
        Ok(())
    })
}

/// A text that ends an answer, wherever the borders of tokens are; it is not shown. One call at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_sampler_add_stop_text(
    sampler: *mut yuan_sampler,
    text: *const c_char,
) -> yuan_status {
    with(sampler, |chooser| {
        // SAFETY: the contract of the header.
        let text = unsafe { args::c_text("the stop text", text) }?;
        room(chooser.limits.stop_texts.len())?;
        chooser.limits.stop_texts.push(text.to_owned());
        Ok(())
    })
}

/// A token that ends an answer beside the model's end token; it is no part of the answer. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_add_stop_token(sampler: *mut yuan_sampler, token: u32) -> yuan_status {
    with(sampler, |chooser| {
        room(chooser.limits.stop_tokens.len())?;
        chooser.limits.stop_tokens.push(token);
        Ok(())
    })
}

/// 1 to go on after the model's end token; 0 is the default. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_ignore_eod(sampler: *mut yuan_sampler, ignore: i32) -> yuan_status {
    with(sampler, |chooser| {
        chooser.limits.ignore_eod = ignore != 0;
        Ok(())
    })
}

fn room(held: usize) -> Result<(), Failure> {
    if held < MOST { Ok(()) } else { Err(Failure::argument(format!("a sampler takes {MOST} of these"))) }
}

fn set(sampler: *mut yuan_sampler, change: impl FnOnce(&mut Settings)) -> yuan_status {
    with(sampler, |chooser| {
        let mut settings = chooser.sampler.settings().clone();
        change(&mut settings);
        Ok(chooser.sampler.set(settings)?)
    })
}

fn with(sampler: *mut yuan_sampler, body: impl FnOnce(&mut Chooser) -> Result<(), Failure>) -> yuan_status {
    call(|| {
        let sampler = SAMPLERS.get(sampler)?;
        body(&mut *exclusive("sampler", &sampler)?)
    })
}
