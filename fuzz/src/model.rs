//! Small models in files, and what is done with one.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::OnceLock,
};

use yuan::{
    config::{Architecture, Family, ModelConfig, RopePrecision, RouterKind, Yarn},
    container::Container,
    convert::Conversion,
    machine::budget::Limit,
    model::{KvType, Model, Options as RunOptions, Want},
    pager::{Paging, Settings},
    quantize::{DType, Options, Plan, synth},
    tokenizer::{Special, Tokenizer},
    vocab::{Piece, PieceKind, Vocab},
};

/// More memory than any of these models needs.
const MEMORY: u64 = 256 << 20;

/// A folder in memory for the files of this process.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        sweep(&parent);
        let folder = parent.join(format!("yuan-fuzz-{}", process::id()));
        fs::create_dir_all(&folder).expect("a folder for files");
        folder
    })
}

/// Removes the folders of processes that are gone: libFuzzer ends a process without telling it.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("yuan-fuzz-"));
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A vocabulary of `size` pieces: bytes, special strings and made-up words.
pub fn letters(family: Family, size: usize) -> Vocab {
    let fixed =
        ["<unk>", "<eod>", "<n>", "<sep>", "\u{2581}", "a", "b"].map(|t| (t.to_owned(), PieceKind::Normal));
    let bytes = (0..=255).map(|b| (format!("<0x{b:02X}>"), PieceKind::Byte));
    let words = (0..).map(|i| (format!("\u{2581}w{i}"), PieceKind::Normal));
    let all = fixed.into_iter().chain(bytes).chain(words).take(size).enumerate();
    Vocab::of(family, all.map(|(i, (text, kind))| Piece { text, score: -(i as f32), kind }).collect())
}

/// Some models of every kind, the smallest that have what they are for: two of matrices in rows, one with tiles of each type.
pub fn configs() -> Vec<(ModelConfig, Options)> {
    let rows = ModelConfig {
        vocab: 268,
        hidden: 32,
        layers: 2,
        heads: 2,
        projection: 64,
        ffn: 32,
        experts: 3,
        rope_dims: 16,
        context: 64,
        ..synth::tiny()
    };
    let dense = ModelConfig {
        architecture: Architecture::Dense,
        experts: 0,
        experts_used: 0,
        tied_embeddings: true,
        ..rows.clone()
    };
    let tiles =
        ModelConfig { layers: 1, hidden: 256, projection: 256, experts: 2, rope_dims: 64, ..rows.clone() };
    let linear = ModelConfig {
        family: Family::Yuan3,
        router: RouterKind::Linear,
        rope_precision: RopePrecision::F32,
        yarn: Some(Yarn { factor: 4.0, original: 16 }),
        ..rows.clone()
    };
    let of = |experts, dense| Options { experts, dense, ..Options::default() };
    vec![
        (rows, of(DType::F32, DType::Q8_0)),
        (dense, of(DType::F32, DType::F16)),
        (linear, of(DType::F16, DType::Bf16)),
        (tiles.clone(), of(DType::Q4_K, DType::Q8_0)),
        (tiles.clone(), of(DType::Q4_0, DType::Q4_K)),
        (tiles.clone(), of(DType::Q8_0, DType::Q6_K)),
        (tiles.clone(), of(DType::Q3_K, DType::Q8_0)),
        (tiles, of(DType::Q6_K, DType::F32)),
    ]
}

/// A container of random weights.
pub fn write(config: &ModelConfig, options: &Options, path: &Path) {
    let plan = Plan::new(config.clone(), options).expect("a plan");
    let vocab = letters(config.family, config.vocab);
    Conversion::synth(plan, 7, &vocab).expect("a conversion").write(path, &|_| true).expect("a container");
}

/// The bytes of [`configs`]' containers, in their order.
pub fn containers() -> Vec<Vec<u8>> {
    let path = folder().join("base.gguf");
    let made = configs().into_iter().map(|(config, options)| {
        write(&config, &options, &path);
        fs::read(&path).expect("what was written just now")
    });
    made.collect()
}

/// The same as standard GGUF files, those in rows.
pub fn standard() -> Vec<Vec<u8>> {
    let (path, exported) = (folder().join("base.gguf"), folder().join("standard.gguf"));
    let made = configs().into_iter().map(|(config, options)| {
        write(&config, &options, &path);
        let container = Container::open(&path).expect("a container");
        Conversion::export(&container).expect("an export").write(&exported, &|_| true).expect("a file");
        fs::read(&exported).expect("what was written just now")
    });
    made.collect()
}

/// One thread, so that a failure comes again.
pub fn options(mode: Paging) -> RunOptions {
    let memory = Some(Limit::Bytes(MEMORY));
    RunOptions {
        threads: 1,
        paging: Settings { mode, memory, readers: 1, ..Settings::default() },
        ..RunOptions::default()
    }
}

/// Everything that is done with a model: its digests, its vocabulary, a prompt and a token.
pub fn use_it(container: &Container, options: &RunOptions, kv: KvType) {
    let _ = container.verify(&|_| true);
    let _ = container.fingerprint();
    if let Ok(vocab) = container.vocab()
        && let Ok(tokenizer) = Tokenizer::new(vocab)
    {
        let ids = tokenizer.encode("a w1 春<sep>\n", Special::Parse);
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.len()));
        tokenizer.decode(&ids);
    }
    let Ok(model) = Model::load(container, options) else { return };
    let Ok(mut state) = model.state(8, kv) else { return };
    for tokens in [&[1, 5, 2][..], &[3]] {
        match model.forward_one(tokens, &mut state, Want::Last) {
            Ok(logits) => assert!(logits.iter().all(|logit| logit.is_finite())),
            Err(_) => return,
        }
    }
}
