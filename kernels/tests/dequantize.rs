//! Dequantized weights against ggml's.

#[path = "../../tests/common/fixture.rs"]
mod fixture;

use fixture::fixture;
use safetensors::SafeTensors;
use yuan_kernels::{DType, dequantize};

#[test]
fn weights_equal_those_of_ggml_bit_for_bit() {
    let Some(path) = fixture("quant/quant.safetensors") else { return };
    let file = std::fs::read(&path).expect("the fixture");
    let tensors = SafeTensors::deserialize(&file).expect("fixtures are sound");
    for (dtype, name) in [
        (DType::Q4_0, "Q4_0"),
        (DType::Q8_0, "Q8_0"),
        (DType::Q3_K, "Q3_K"),
        (DType::Q4_K, "Q4_K"),
        (DType::Q6_K, "Q6_K"),
    ] {
        let bytes = tensors.tensor(&format!("{name}.bytes")).expect("bytes").data();
        let expected = tensors.tensor(&format!("{name}.dequant")).expect("dequantized weights");
        let mut weights = vec![0.0; expected.data().len() / 4];
        dequantize(dtype, bytes, &mut weights);
        for (i, (got, expected)) in weights.iter().zip(expected.data().chunks_exact(4)).enumerate() {
            assert_eq!(got.to_le_bytes(), expected, "{name}, weight {i}");
        }
    }
}

#[test]
fn floats_are_read_at_any_address() {
    let numbers = [1.5_f32, -2.0, 0.25];
    for (dtype, bytes) in [
        (DType::F32, numbers.map(f32::to_le_bytes).concat()),
        (DType::F16, numbers.map(|x| half::f16::from_f32(x).to_le_bytes()).concat()),
        (DType::Bf16, numbers.map(|x| half::bf16::from_f32(x).to_le_bytes()).concat()),
    ] {
        let shifted = [&[0], &bytes[..]].concat();
        let mut out = [0.0; 3];
        dequantize(dtype, &shifted[1..], &mut out);
        assert_eq!(out, numbers, "{dtype:?}");
    }
}

#[test]
#[should_panic(expected = "bytes of 32 q8_0 weights")]
fn a_length_that_does_not_match_is_refused() {
    dequantize(DType::Q8_0, &[0; 33], &mut [0.0; 32]);
}
