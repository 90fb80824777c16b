//! GPTQ checkpoints as containers: the bytes of the blocks, every weight, and what becomes of forms that no block holds.

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{
    convert_as, fixture,
    gptq::{folder, forms, settings, small},
};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use yuan::{
    checkpoint::{Checkpoint, names},
    container::Container,
    convert::Conversion,
    quantize::{DType, Encoded, Item, Plan, SourceOf, Wishes, encode_item, fits},
};
use yuan_kernels::dequantize;

const FIXTURES: [(&str, DType); 3] =
    [("gptq-tiny-int4", DType::Q4_0), ("gptq-tiny-int8", DType::Q8_0), ("gptq-demo-int4", DType::Q4_0)];

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rows of one matrix in `dtype`; whatever they cost is `lost`.
fn rows(checkpoint: &Checkpoint, name: &str, shape: &[usize], dtype: DType) -> (Vec<u8>, usize) {
    let source = SourceOf::Matrix(name.into());
    let item = Item { name: name.into(), source, dtype, rows: shape[0], cols: shape[1], panels: false };
    let lost = std::sync::Mutex::new(0);
    let encoded = encode_item(&item, 0, checkpoint, None, &|_| *lost.lock().unwrap() += 1).unwrap();
    let Encoded::Matrix(rows) = encoded else { panic!("a matrix") };
    (rows, lost.into_inner().unwrap())
}

#[test]
fn blocks_are_those_of_the_goldens() {
    for (name, dtype) in FIXTURES {
        let (Some(folder), Some(goldens)) =
            (fixture(&format!("models/{name}")), fixture(&format!("goldens/{name}.json")))
        else {
            continue;
        };
        let goldens: Value = serde_json::from_slice(&fs::read(goldens).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let mut checked = 0;
        for spec in names::tensors(checkpoint.config()) {
            let golden = &goldens["quantized"][spec.hf.trim_end_matches(".weight")];
            if golden.is_object() {
                let (bytes, lost) = rows(&checkpoint, &spec.hf, &spec.shape, dtype);
                assert_eq!((hex(&bytes), lost), (golden["ggml"].as_str().unwrap().into(), 0), "{}", spec.hf);
                checked += 1;
            }
        }
        assert_eq!(checked, 142);
    }
}

#[test]
fn blocks_that_fit_hold_every_weight_and_others_say_what_they_cost() {
    let (mut exact, mut lossy) = (0, 0);
    for form in forms() {
        let (tensors, expected) = small(form);
        let folder = folder(&tensors, &settings(form));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let specs = names::tensors(checkpoint.config());
        for (name, weights) in expected.iter().filter(|(name, _)| !name.contains("experts.1")) {
            let spec = specs.iter().find(|spec| spec.hf == *name).unwrap();
            for dtype in [DType::Q4_0, DType::Q8_0, DType::F32] {
                if dtype.row_bytes(spec.shape[1]).is_none() {
                    continue;
                }
                let fits = fits(&checkpoint.facts(name).unwrap().unwrap(), dtype).is_ok();
                let (bytes, lost) = rows(&checkpoint, name, &spec.shape, dtype);
                assert_eq!(lost, usize::from(!fits), "{name} {}", dtype.name());
                let mut found = vec![0.0; weights.len()];
                dequantize(dtype, &bytes, &mut found);
                if fits {
                    assert!(found == *weights, "{name} in {}", dtype.name());
                    exact += 1;
                } else {
                    let largest = weights.iter().fold(0.0, |max: f32, w| max.max(w.abs()));
                    assert!(common::error(&found, weights) <= largest / 7.5, "{name} in {}", dtype.name());
                    lossy += 1;
                }
            }
        }
    }
    assert!(exact > 100 && lossy > 100, "{exact} {lossy}");
}

/// Every weight of the container against the checkpoint's.
fn assert_exact(checkpoint: &Path, container: &Container, scratch: &Path) {
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    Conversion::export(container).unwrap().write(scratch, &|_| true).unwrap();
    let standard = Container::open(scratch).unwrap();
    for spec in names::tensors(checkpoint.config()) {
        let view = standard.tensor(&spec.gguf).unwrap();
        let (mut found, mut weights) = (vec![f32::NAN; view.rows * view.cols], Vec::new());
        dequantize(view.dtype, &view.bytes, &mut found);
        checkpoint.read_f32(&spec.hf, 0..found.len(), &mut weights).unwrap();
        assert!(found == weights, "{} in {}", spec.hf, view.dtype.name());
    }
}

fn stored(container: &Container, name: &str) -> String {
    container.tensors().iter().find(|t| t.name == name).expect("a tensor").stored.name()
}

const LOSSLESS: Wishes =
    Wishes { experts: None, dense: None, rope: None, rope_base: None, lossless: true, size: None };

#[test]
fn lossless_containers_have_every_weight_of_the_checkpoint() {
    for (name, dtype) in FIXTURES {
        let Some(checkpoint) = fixture(&format!("models/{name}")) else { continue };
        let folder = common::folder();
        let (container, _) = convert_as(&checkpoint, &LOSSLESS, &folder.path().join("m.gguf"));
        let expert = match dtype {
            DType::Q4_0 => ("blk.1.ffn_expert.31", "q4_0 tiles"),
            _ => ("blk.1.ffn_expert.31", "q8_0 tiles"),
        };
        let trunk = format!("{} panels", dtype.name());
        assert_eq!(stored(&container, expert.0), expert.1);
        assert_eq!(stored(&container, "blk.0.attn_q.weight"), trunk);
        assert_eq!(stored(&container, "blk.0.mlp_attn_k.weight"), "f32");
        assert_eq!(stored(&container, "output.weight"), "f16");
        assert_exact(&checkpoint, &container, &folder.path().join("rows.gguf"));
        // Without the wish, what the checkpoint has in floats is rounded as ever.
        let (default, losses) = convert_as(&checkpoint, &Wishes::default(), &folder.path().join("d.gguf"));
        assert_eq!(losses, []);
        assert_eq!(stored(&default, expert.0), expert.1);
        assert_eq!(stored(&default, "blk.0.attn_q.weight"), trunk);
        assert_eq!(stored(&default, "output.weight"), "q8_0 panels");
    }
}

/// Tensors of a file by name: type, shape and bytes.
type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a fixture with other tensors and settings.
fn variant(name: &str, format: &str, change: impl Fn(&mut Tensors)) -> Option<tempfile::TempDir> {
    let from = fixture(&format!("models/{name}"))?;
    let folder = common::folder();
    for file in ["config.json", "tokenizer.model", "tokenizer_config.json"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    let bits = if name.ends_with('4') { 4 } else { 8 };
    let settings =
        json!({ "bits": bits, "group_size": 128, "checkpoint_format": format, "sym": format == "gptq" });
    fs::write(folder.path().join("quantize_config.json"), settings.to_string()).unwrap();
    let file = fs::read(from.join(format!("gptq_model-{bits}bit-128g.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let own = |(name, view): (String, TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    let mut tensors: Tensors = tensors.tensors().into_iter().map(own).collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    Some(folder)
}

/// Adds one to every zero, as format 2 has them.
fn as_v2(tensors: &mut Tensors) {
    for (name, (_, _, bytes)) in tensors {
        if name.ends_with(".qzeros") {
            bytes.iter_mut().for_each(|b| *b = if *b == 0x77 { 0x88 } else { b.wrapping_add(1) });
        }
    }
}

#[test]
fn both_formats_with_and_without_groups_give_the_same_container() {
    for (name, _) in &FIXTURES[..2] {
        let Some(checkpoint) = fixture(&format!("models/{name}")) else { continue };
        let second = variant(name, "gptq_v2", |tensors| {
            as_v2(tensors);
            tensors.retain(|name, _| !name.ends_with(".g_idx"));
        });
        let folder = common::folder();
        let convert = |from: &Path, to: &str| {
            let to = folder.path().join(to);
            convert_as(from, &LOSSLESS, &to);
            blake3::hash(&fs::read(to).unwrap())
        };
        assert_eq!(convert(&checkpoint, "1.gguf"), convert(second.unwrap().path(), "2.gguf"));
    }
}

#[test]
fn columns_in_another_order_are_quantized_once_more_or_refused() {
    let (q, w1) = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.experts.3.w1");
    let shuffled = variant("gptq-tiny-int4", "gptq", |tensors| {
        for name in [q, w1] {
            let (_, _, bytes) = tensors.get_mut(&format!("{name}.g_idx")).unwrap();
            let groups: Vec<u8> = (0..256u32).flat_map(|i| (i % 2).to_le_bytes()).collect();
            *bytes = groups;
        }
    });
    let Some(shuffled) = shuffled else { return };
    let folder = common::folder();
    let checkpoint = Checkpoint::open(shuffled.path()).unwrap();
    let refused = Plan::of_checkpoint(&checkpoint, &LOSSLESS).unwrap_err().to_string();
    for word in ["--lossless", "blk.0.attn_q.weight", "act-order", "blk.1.ffn_expert.3", "2 tensors"] {
        assert!(refused.contains(word), "{refused}");
    }
    let (container, losses) = convert_as(shuffled.path(), &Wishes::default(), &folder.path().join("m.gguf"));
    assert_eq!(stored(&container, "blk.0.attn_q.weight"), "q8_0 panels");
    assert_eq!(stored(&container, "blk.0.attn_k.weight"), "q4_0 panels");
    assert_eq!(stored(&container, "blk.1.ffn_expert.3"), "q4_k tiles");
    let loss = losses.iter().find(|loss| loss.name == format!("{q}.weight")).expect("what q cost");
    assert!(loss.relative > 1e-4 && loss.relative < 0.02 && loss.largest > 0.0, "{loss:?}");
    // Experts have one type.
    assert_eq!(losses.len(), 1 + 2 * 2 * 32);
    assert!(losses.iter().all(|loss| loss.relative < 0.1));
    let exact = Wishes { experts: Some(DType::F32), dense: Some(DType::F32), ..LOSSLESS };
    let (container, losses) = convert_as(shuffled.path(), &exact, &folder.path().join("f32.gguf"));
    assert_eq!(losses, []);
    assert_exact(shuffled.path(), &container, &folder.path().join("rows.gguf"));
}

#[test]
fn zeros_that_differ_fit_q8_0() {
    let other = variant("gptq-tiny-int4", "gptq_v2", |tensors| {
        as_v2(tensors);
        for name in ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.experts.3.w2"] {
            let (_, _, bytes) = tensors.get_mut(&format!("{name}.qzeros")).unwrap();
            bytes.iter_mut().zip(0u32..).for_each(|(b, i)| *b = i as u8);
        }
    });
    let Some(other) = other else { return };
    let folder = common::folder();
    let (container, _) = convert_as(other.path(), &LOSSLESS, &folder.path().join("m.gguf"));
    assert_eq!(stored(&container, "blk.0.attn_q.weight"), "q8_0 panels");
    assert_eq!(stored(&container, "blk.0.attn_k.weight"), "q4_0 panels");
    assert_eq!(stored(&container, "blk.0.ffn_expert.0"), "q8_0 tiles");
    assert_exact(other.path(), &container, &folder.path().join("rows.gguf"));
}

#[test]
fn a_killed_conversion_goes_on_to_the_same_bytes() {
    let Some(folder) = fixture("models/gptq-tiny-int4") else { return };
    let (checkpoint, out) = (Checkpoint::open(&folder).unwrap(), common::folder());
    let vocab = yuan::checkpoint::vocab::read_vocab(&folder, Some(checkpoint.config())).unwrap();
    let conversion = || {
        let (plan, _) = Plan::of_checkpoint(&checkpoint, &Wishes::default()).unwrap();
        Conversion::of_checkpoint(plan, &checkpoint, &vocab, &checkpoint.identity(), None).unwrap()
    };
    let (whole, cut) = (out.path().join("whole.gguf"), out.path().join("cut.gguf"));
    conversion().write(&whole, &|_| true).unwrap();
    let left = std::cell::Cell::new(40);
    conversion()
        .write(&cut, &|_| {
            left.set(left.get() - 1);
            left.get() > 0
        })
        .unwrap_err();
    assert_eq!(conversion().write(&cut, &|_| true).unwrap().resumed, 40);
    assert!(fs::read(&whole).unwrap() == fs::read(&cut).unwrap());
    // A matrix of all experts in memory at a time would be much more.
    assert!(conversion().peak_bytes() < 64 << 20);
}

#[test]
fn an_unquantized_checkpoint_can_be_kept_exactly() {
    let demo = common::demo();
    let folder = common::folder();
    let (container, _) = convert_as(&demo, &LOSSLESS, &folder.path().join("m.gguf"));
    assert_eq!(stored(&container, "blk.0.attn_q.weight"), "bf16");
    assert_exact(&demo, &container, &folder.path().join("rows.gguf"));
    let checkpoint = Checkpoint::open(&demo).unwrap();
    let e = Plan::of_checkpoint(&checkpoint, &Wishes { experts: Some(DType::Q4_K), ..LOSSLESS }).unwrap_err();
    assert!(e.to_string().contains("blk.0.ffn_expert.0, q4_k: the checkpoint has it in bf16"), "{e}");
}
