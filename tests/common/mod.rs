//! What the integration tests share: where fixtures are, and how to convert and open a model.
#![allow(dead_code)]

pub mod damage;
mod fixture;
pub mod gptq;
pub mod linear;
pub mod mutate;
pub mod paging;
pub mod schedule;
pub mod sessions;
pub mod weights;
pub mod yuan3;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::SafeTensors;
use yuan::{
    checkpoint::{Checkpoint, vocab::read_vocab},
    config::ModelConfig,
    container::Container,
    convert::Conversion,
    model::{Arithmetic, Model, Options as RunOptions},
    quantize::{DType, Loss, Options, Plan, Wishes},
    vocab::{Piece, PieceKind, Vocab},
};

// Not every test has fixtures.
#[allow(unused_imports)]
pub use fixture::{fixture, skip};

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The demo model's folder.
pub fn demo() -> PathBuf {
    root().join("assets/demo-model")
}

/// A temporary folder for one test.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A vocabulary of `size` pieces: bytes, special strings and made-up words.
pub fn letters(size: usize) -> Vocab {
    let bytes = (0..=255).map(|b| (format!("<0x{b:02X}>"), PieceKind::Byte));
    let fixed =
        ["<unk>", "<eod>", "<n>", "<sep>", "\u{2581}", "a", "b"].map(|t| (t.to_owned(), PieceKind::Normal));
    let words = (0..).map(|i| (format!("\u{2581}w{i}"), PieceKind::Normal));
    let all = fixed.into_iter().chain(bytes).chain(words).take(size).enumerate();
    Vocab::from_pieces(all.map(|(i, (text, kind))| Piece { text, score: -(i as f32), kind }).collect())
}

/// Types for checking: everything in f32.
pub fn exact() -> Options {
    Options { experts: DType::F32, dense: DType::F32, rope: None, rope_base: None }
}

/// Converts a checkpoint folder and opens the container.
pub fn convert(checkpoint: &Path, options: &Options, output: &Path) -> Container {
    let checkpoint = Checkpoint::open(checkpoint).expect("the checkpoint opens");
    let vocab = match checkpoint.folder().join("tokenizer.model").exists() {
        true => read_vocab(checkpoint.folder(), Some(checkpoint.config())).expect("the vocabulary"),
        false => letters(checkpoint.config().vocab),
    };
    let plan = Plan::new(checkpoint.config().clone(), options).expect("a plan");
    let conversion =
        Conversion::of_checkpoint(plan, &checkpoint, &vocab, b"test", None).expect("a conversion");
    conversion.write(output, &|_| true).expect("the conversion runs");
    Container::open(output).expect("the container opens")
}

/// Converts a checkpoint folder as the tools do, opens the container, and says what it cost.
pub fn convert_as(checkpoint: &Path, wishes: &Wishes, output: &Path) -> (Container, Vec<Loss>) {
    let checkpoint = Checkpoint::open(checkpoint).expect("the checkpoint opens");
    let vocab = read_vocab(checkpoint.folder(), Some(checkpoint.config())).expect("the vocabulary");
    let (plan, _) = Plan::of_checkpoint(&checkpoint, wishes).expect("a plan");
    let conversion =
        Conversion::of_checkpoint(plan, &checkpoint, &vocab, b"test", None).expect("a conversion");
    conversion.write(output, &|_| true).expect("the conversion runs");
    (Container::open(output).expect("the container opens"), conversion.losses())
}

/// A container of random weights.
pub fn synth(config: ModelConfig, options: &Options, seed: u64, output: &Path) -> Container {
    let vocab = letters(config.vocab);
    let plan = Plan::new(config, options).expect("a plan");
    let conversion = Conversion::synth(plan, seed, &vocab).expect("a conversion");
    conversion.write(output, &|_| true).expect("the conversion runs");
    Container::open(output).expect("the container opens")
}

/// A model of a container.
pub fn load(container: &Container, options: RunOptions) -> Arc<Model> {
    Arc::new(Model::load(container, &options).expect("the model loads"))
}

/// Two threads, float products.
pub fn float() -> RunOptions {
    RunOptions { threads: 2, arithmetic: Arithmetic::Float, ..Default::default() }
}

/// Golden numbers of one file.
pub struct Goldens {
    f32s: HashMap<String, (Vec<usize>, Vec<f32>)>,
    i32s: HashMap<String, (Vec<usize>, Vec<i32>)>,
}

impl Goldens {
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("the goldens");
        let tensors = SafeTensors::deserialize(&bytes).expect("the goldens are safetensors");
        let (mut f32s, mut i32s) = (HashMap::new(), HashMap::new());
        for (name, view) in tensors.tensors() {
            let words = || view.data().chunks_exact(4).map(|w| <[u8; 4]>::try_from(w).unwrap());
            let shape = view.shape().to_vec();
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    f32s.insert(name, (shape, words().map(f32::from_le_bytes).collect()));
                }
                safetensors::Dtype::I32 => {
                    i32s.insert(name, (shape, words().map(i32::from_le_bytes).collect()));
                }
                _ => {}
            }
        }
        Self { f32s, i32s }
    }

    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.f32s.get(name).map(|(_, v)| v.as_slice())
    }

    pub fn f32(&self, name: &str) -> &[f32] {
        self.get(name).unwrap_or_else(|| panic!("the goldens have no {name}"))
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let (_, v) = self.i32s.get(name).unwrap_or_else(|| panic!("the goldens have no {name}"));
        v.iter().map(|&id| u32::try_from(id).unwrap()).collect()
    }

    pub fn has_ids(&self, name: &str) -> bool {
        self.i32s.contains_key(name)
    }
}

/// The largest difference between `found` and `golden`, which must have the same length.
pub fn error(found: &[f32], golden: &[f32]) -> f32 {
    assert_eq!(found.len(), golden.len());
    found
        .iter()
        .zip(golden)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}
