//! Types for a container of a given size: those that lose the least.

use yuan_kernels::DType;

use crate::{
    config::ModelConfig,
    container::write::ALIGNMENT,
    error::{Error, Result},
    quantize::{Options, Plan, Wishes},
};

/// Types of the experts, and how far a model is from bf16 whose other matrices are bf16: mean KL divergence over the demo model's
/// held-out text in both languages, activations of 8 bits included (README.md, "Exactness"). Floats are not among them: they cost a token twice the bytes and
/// more, and experts in floats cannot be streamed.
const EXPERTS: [(DType, f32); 4] =
    [(DType::Q8_0, 0.0013), (DType::Q6_K, 0.0016), (DType::Q4_K, 0.0040), (DType::Q3_K, 0.0111)];

/// The same for the other matrices, beside the experts' share.
const DENSE: [(DType, f32); 3] = [(DType::Q8_0, 0.0022), (DType::Q6_K, 0.0051), (DType::Q4_K, 0.0209)];

/// What a container has beside its tensors: a token of the vocabulary takes so many bytes at most, on average.
const TOKEN_BYTES: u64 = 64;
/// The rest of a header.
const HEADER_BYTES: u64 = 1 << 20;

/// `wishes` with types in the place of a size: of those that give a container of at most that size, the ones that are expected to lose the least. Types that are
/// named stay. The second result is the expected mean KL divergence from bf16; none where no size is asked for.
///
/// # Errors
/// [`Error::Argument`] where even the smallest container is larger, or as [`Plan::new`].
pub fn within_size(wishes: &Wishes, config: &ModelConfig) -> Result<(Wishes, Option<f32>)> {
    let Some(most) = wishes.size else { return Ok((*wishes, None)) };
    let mut choices = Vec::new();
    for (experts, of_experts) in EXPERTS.into_iter().filter(|(t, _)| wishes.experts.is_none_or(|e| e == *t)) {
        for (dense, of_dense) in DENSE.into_iter().filter(|(t, _)| wishes.dense.is_none_or(|d| d == *t)) {
            let choice = Wishes { experts: Some(experts), dense: Some(dense), size: None, ..*wishes };
            choices.push((of_experts + of_dense, file_bytes(config, &choice.options())?, choice));
        }
    }
    choices.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let smallest = choices.iter().map(|(_, bytes, _)| *bytes).min();
    match choices.into_iter().find(|(_, bytes, _)| *bytes <= most) {
        Some((loss, _, choice)) => Ok((choice, Some(loss))),
        None => Err(Error::Argument(match smallest {
            Some(bytes) => format!(
                "no container of {most} bytes: the smallest of this model has about {bytes}; give a larger --size"
            ),
            None => "nobody has measured what the types that are named lose; name none beside --size".into(),
        })),
    }
}

/// About the bytes of the file, and not fewer.
fn file_bytes(config: &ModelConfig, options: &Options) -> Result<u64> {
    let plan = Plan::new(config.clone(), options)?;
    let aligned = |bytes: u64| bytes.next_multiple_of(ALIGNMENT);
    let tensors: u64 = plan.items.iter().map(|item| aligned(item.bytes())).sum();
    Ok(tensors + HEADER_BYTES + TOKEN_BYTES * config.vocab as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::synth;

    fn chosen(size: u64) -> (DType, DType) {
        let wishes = Wishes { size: Some(size), ..Wishes::default() };
        let options = within_size(&wishes, &synth::m32()).expect("a container").0.options();
        (options.experts, options.dense)
    }

    #[test]
    fn the_types_of_a_size_lose_the_least() {
        use DType::{Q3_K, Q4_K, Q6_K, Q8_0};
        let giga = 1_000_000_000;
        assert_eq!(chosen(100 * giga), (Q8_0, Q8_0));
        assert_eq!(chosen(34 * giga), (Q6_K, Q8_0));
        assert_eq!(chosen(24 * giga), (Q4_K, Q8_0));
        assert_eq!(chosen(20 * giga), (Q3_K, Q8_0));
        assert_eq!(chosen(18_300_000_000), (Q3_K, Q6_K));
        assert_eq!(chosen(18 * giga), (Q3_K, Q4_K));
    }

    #[test]
    fn a_size_that_is_too_small_is_refused_and_what_is_named_stays() {
        let m32 = synth::m32();
        let small = Wishes { size: Some(10_000_000_000), ..Wishes::default() };
        let refusal = within_size(&small, &m32).expect_err("too small").to_string();
        assert!(refusal.contains("--size"), "{refusal}");
        let named = Wishes { size: Some(24_000_000_000), experts: Some(DType::Q3_K), ..Wishes::default() };
        let (wishes, loss) = within_size(&named, &m32).expect("a container");
        assert_eq!((wishes.experts, wishes.dense), (Some(DType::Q3_K), Some(DType::Q8_0)));
        assert!(loss.is_some_and(|loss| loss > 0.01));
        assert_eq!(within_size(&Wishes::default(), &m32).expect("none asked for"), (Wishes::default(), None));
    }
}
