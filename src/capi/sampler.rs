//! The choice of the next token.

use std::sync::Mutex;

use super::{
    args::Out,
    border::call,
    handles::{Table, exclusive},
    status::{Failure, yuan_status},
};
use crate::sampler::{Sampler, Settings};

/// How the next token is chosen, and where the stream of choices stands. For one call at a time. A handle: it points to nothing.
pub struct yuan_sampler(());

/// A sampler and what it was made of.
pub(super) struct Chooser {
    settings: Settings,
    pub sampler: Sampler,
}

pub(super) static SAMPLERS: Table<Mutex<Chooser>> = Table::new("sampler");

/// Makes a sampler that always takes the best token. Every setter below starts its stream of choices anew. Free it with
/// yuan_sampler_free. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_sampler_new(sampler: *mut *mut yuan_sampler) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("the place of the sampler", sampler) }?;
        let settings = Settings::default();
        SAMPLERS.add(Mutex::new(Chooser { settings, sampler: Sampler::new(settings)? }), out)
    })
}

/// Frees a sampler. NULL is nothing to free. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_free(sampler: *mut yuan_sampler) -> yuan_status {
    call(|| SAMPLERS.remove(sampler).map(drop))
}

/// Divides the logits; 0, the default, always takes the best token. One thread at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_temperature(sampler: *mut yuan_sampler, temperature: f32) -> yuan_status {
    set(sampler, |settings| settings.temperature = temperature)
}

/// Keeps the k best tokens; 0, the default, keeps all. One thread at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_top_k(sampler: *mut yuan_sampler, k: usize) -> yuan_status {
    set(sampler, |settings| settings.top_k = k)
}

/// Keeps the fewest best tokens whose probabilities reach this sum; 1, the default, keeps all. One thread at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_top_p(sampler: *mut yuan_sampler, p: f32) -> yuan_status {
    set(sampler, |settings| settings.top_p = p)
}

/// The same seed gives the same choices from the same logits. One thread at a time.
#[unsafe(no_mangle)]
pub extern "C" fn yuan_sampler_set_seed(sampler: *mut yuan_sampler, seed: u64) -> yuan_status {
    set(sampler, |settings| settings.seed = seed)
}

fn set(sampler: *mut yuan_sampler, change: impl FnOnce(&mut Settings)) -> yuan_status {
    call(|| {
        let sampler = SAMPLERS.get(sampler)?;
        let mut chooser = exclusive("sampler", &sampler)?;
        let mut settings = chooser.settings;
        change(&mut settings);
        *chooser = Chooser { settings, sampler: Sampler::new(settings).map_err(Failure::from)? };
        Ok(())
    })
}
