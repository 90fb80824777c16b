//! Bias and penalties: what changes logits before tokens are chosen.

use super::Settings;

/// Applies the bias, then the penalties for the `recent` tokens. Ids outside the vocabulary are nothing.
pub fn apply(logits: &mut [f32], settings: &Settings, recent: impl Iterator<Item = u32>) {
    for &(id, bias) in &settings.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
    let mut recent: Vec<u32> = recent.collect();
    recent.sort_unstable();
    for same in recent.chunk_by(|a, b| a == b) {
        let Some(logit) = logits.get_mut(same[0] as usize) else { continue };
        if *logit > 0.0 {
            *logit /= settings.repeat_penalty;
        } else {
            *logit *= settings.repeat_penalty;
        }
        *logit -= settings.presence_penalty + settings.frequency_penalty * same.len() as f32;
    }
}
