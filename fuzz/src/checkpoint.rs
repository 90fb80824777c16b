//! Folders of checkpoints: safetensors, `torch.save` and GPTQ, with configs, indexes and vocabularies, opened, read and converted.

use std::{fs, path::Path, sync::OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use yuan::{
    checkpoint::{Checkpoint, config::parse_config, names, vocab::read_vocab},
    container::Container,
    convert::Conversion,
    model::KvType,
    pager::Paging,
    quantize::{Options, Plan, Wishes},
};

use crate::{
    Seed, gptq, json,
    model::{self, letters},
    mutate::mutate,
    tokenizer::sentencepiece,
    weights::{self, Tensor},
};

#[derive(Arbitrary, Debug)]
struct Input {
    base: u8,
    /// Of four, one is converted.
    way: u8,
    edits: Vec<Edit>,
}

#[derive(Arbitrary, Debug)]
enum Edit {
    /// A file that is JSON, or begins with it.
    Json(u8, json::Edit),
    /// Any bytes, by the mutations of the tests.
    Bytes(u8, u64),
    Overwrite(u8, u32, Vec<u8>),
    Cut(u8, u16),
    Longer(u8, u8),
    Remove(u8),
    Replace(u8, u8),
}

type Files = Vec<(String, Vec<u8>)>;

/// The folders that are changed.
fn bases() -> &'static [Files] {
    static BASES: OnceLock<Vec<Files>> = OnceLock::new();
    BASES.get_or_init(|| {
        let config = plain_config().to_string().into_bytes();
        let parsed =
            parse_config(&plain_config().to_string(), Path::new("config.json")).expect("a config").config;
        let specs = names::tensors(&parsed);
        let of = |dtype| {
            specs.iter().map(move |spec| Tensor::new(&spec.hf, dtype, &spec.shape, 1)).collect::<Vec<_>>()
        };
        let (bf16, f32) = (of("BF16"), of("F32"));
        let half = bf16.len() / 2;
        let index = |names: [&str; 2]| {
            let place = |(i, t): (usize, &Tensor)| (t.name.clone(), json!(names[usize::from(i >= half)]));
            let map: serde_json::Map<_, _> = bf16.iter().enumerate().map(place).collect();
            json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string().into_bytes()
        };
        let tokenizer = || ("tokenizer.model".to_owned(), sentencepiece(&letters(parsed.family, 6)));
        let file = |name: &str, bytes: Vec<u8>| (name.to_owned(), bytes);
        let mut bases = vec![
            vec![
                file("config.json", config.clone()),
                file("model.safetensors", weights::safetensors(&f32)),
                tokenizer(),
            ],
            vec![
                file("config.json", config.clone()),
                file(
                    "model.safetensors.index.json",
                    index(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
                ),
                file("model-00001-of-00002.safetensors", weights::safetensors(&bf16[..half])),
                file("model-00002-of-00002.safetensors", weights::safetensors(&bf16[half..])),
                tokenizer(),
            ],
            vec![
                file("config.json", config),
                file(
                    "pytorch_model.bin.index.json",
                    index(["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]),
                ),
                file("pytorch_model-00001-of-00002.bin", weights::torch(&bf16[..half])),
                file("pytorch_model-00002-of-00002.bin", weights::torch(&bf16[half..])),
                tokenizer(),
            ],
        ];
        for form in [
            gptq::PLAIN,
            gptq::Form { bits: 8, symmetric: false, act_order: true, ..gptq::PLAIN },
            gptq::Form { v2: true, padded: true, ..gptq::PLAIN },
        ] {
            let tensors = gptq::small(form).0;
            bases.push(vec![
                file("config.json", gptq::small_config().to_string().into_bytes()),
                file("quantize_config.json", gptq::settings(form).to_string().into_bytes()),
                file("gptq_model-4bit-32g.safetensors", weights::safetensors(&tensors)),
                tokenizer(),
            ]);
        }
        bases
    })
}

/// The smallest model, whose tensors have a few bytes.
fn plain_config() -> Value {
    json!({
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": 6, "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 2, "attention_projection_size": 4, "max_position_embeddings": 16,
        "rotary_base": 10_000, "rotary_percent": 0.5, "moe_config": { "moe_num_experts": 2, "moe_top_k": 1, "gated_linear_unit": true },
    })
}

/// Changes of folders.
pub fn run(data: &[u8]) {
    let Ok(Input { base, way, edits }) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    if edits.len() > 16 {
        return;
    }
    let bases = bases();
    let mut files = bases[usize::from(base) % bases.len()].clone();
    edits.iter().for_each(|edit| change(&mut files, edit));
    let folder = model::folder().join("checkpoint");
    fs::create_dir_all(&folder).expect("room for a folder");
    for (name, bytes) in &files {
        fs::write(folder.join(name), bytes).expect("room for a small file");
    }
    open(&folder, way);
    fs::remove_dir_all(&folder).expect("it is there");
}

/// The bytes of a file.
fn file(files: &mut Files, i: u8) -> Option<&mut Vec<u8>> {
    let n = files.len().max(1);
    files.get_mut(usize::from(i) % n).map(|file| &mut file.1)
}

fn change(files: &mut Files, edit: &Edit) {
    match edit {
        Edit::Json(i, edit) => {
            let changed = |text: &[u8]| {
                let value = serde_json::from_slice(text).ok()?;
                Some(json::changed(&value, std::slice::from_ref(edit)).to_string().into_bytes())
            };
            let Some(bytes) = file(files, *i) else { return };
            if let Some(changed) = changed(bytes) {
                *bytes = changed;
            } else if let Some(length) = bytes.first_chunk().map(|word| u64::from_le_bytes(*word) as usize)
                && let Some(header) = bytes.get(8..8_usize.saturating_add(length)).and_then(changed)
            {
                let new = [&(header.len() as u64).to_le_bytes(), &header[..], &bytes[8 + length..]].concat();
                *bytes = new;
            }
        }
        Edit::Bytes(i, seed) => _ = file(files, *i).map(|bytes| *bytes = mutate(bytes, *seed)),
        Edit::Overwrite(i, at, new) => {
            if let Some(bytes) = file(files, *i) {
                let at = *at as usize % bytes.len().max(1);
                bytes[at..].iter_mut().zip(new).for_each(|(byte, new)| *byte = *new);
            }
        }
        Edit::Cut(i, by) => {
            _ = file(files, *i).map(|bytes| bytes.truncate(bytes.len().saturating_sub((*by).into())));
        }
        Edit::Longer(i, by) => {
            _ = file(files, *i).map(|bytes| bytes.resize(bytes.len() + usize::from(*by), 0))
        }
        Edit::Remove(i) => {
            if files.len() > 1 {
                files.remove(usize::from(*i) % files.len());
            }
        }
        Edit::Replace(i, by) => {
            let new = file(files, *by).cloned();
            if let (Some(bytes), Some(new)) = (file(files, *i), new) {
                *bytes = new;
            }
        }
    }
}

fn open(folder: &Path, way: u8) {
    let Ok(checkpoint) = Checkpoint::open(folder) else { return };
    let config = checkpoint.config().clone();
    let specs = names::tensors(&config);
    if specs.len() > 500 {
        return;
    }
    let mut values = Vec::new();
    for spec in &specs {
        let elements = spec.shape.iter().try_fold(1_usize, |n, dim| n.checked_mul(*dim));
        let Some(elements) = elements.filter(|n| *n < 1 << 20) else { continue };
        let _ = checkpoint.facts(&spec.hf);
        values.clear();
        if checkpoint.read_f32(&spec.hf, 0..elements, &mut values).is_ok() {
            assert_eq!(values.len(), elements, "{}", spec.hf);
        }
    }
    if way % 4 != 0 {
        return;
    }
    let Ok(vocab) = read_vocab(folder, Some(&config)) else { return };
    let plan = match way / 4 % 2 {
        0 => Plan::of_checkpoint(&checkpoint, &Wishes::default()).map(|(plan, _)| plan),
        _ => Plan::new(config, &Options::default()),
    };
    let Ok(plan) = plan else { return };
    let path = folder.join("made.gguf");
    if let Ok(conversion) = Conversion::of_checkpoint(plan, &checkpoint, &vocab, b"fuzz", None)
        && conversion.file_bytes() < 64 << 20
        && conversion.write(&path, &|_| true).is_ok()
    {
        let container = Container::open(&path).expect("what was made of a checkpoint can be opened");
        container.verify(&|_| true).expect("its digests are right");
        model::use_it(&container, &model::options(Paging::Auto), KvType::F16);
    }
}

/// Every folder as it is, read and converted.
pub fn seeds() -> Vec<Seed> {
    (0..6).flat_map(|base| [0, 1, 4].map(|way| vec![base, way])).collect()
}
