//! `yuan-quant synth`: a model with random weights, as a checkpoint or straight to a container.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use yuan::{
    checkpoint::names::{self, TensorSpec},
    config::{Architecture, Family, ModelConfig, RouterKind},
    convert::{Conversion, within_size},
    quantize::{Plan, Weights, synth},
    vocab::{Piece, PieceKind, SPECIAL_OF_YUAN3, Vocab},
};
use yuan_tools::{
    console::{byte_bar, size, stopped},
    convert::Job,
    geometry::geometry,
    tell,
};

use crate::Types;

/// Weights of a checkpoint shard at most.
const SHARD_BYTES: u64 = 4_000_000_000;
/// Weights that are made and written at a time.
const PIECE: usize = 4 << 20;

/// Write a model with random weights, for benchmarks and tests
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan-quant synth --geometry m32 -o m32.gguf             the full 40 B geometry, straight to a container
  yuan-quant synth --geometry 3-flash -o flash.gguf       the geometry of Yuan3.0 Flash
  yuan-quant synth --geometry tiny -o tiny-checkpoint     a Hugging Face folder
  yuan-quant synth --geometry m32 --router linear -o linear.gguf     with the router that Yuan's has replaced
  yuan-quant synth --geometry my/config.json -o my.gguf --experts q4_0 --seed 7
An output that ends in .gguf is a container, any other is a folder. The same seed gives the same file.")]
pub struct Synth {
    /// The shape of the model: m32, 3-flash, tiny, or a config.json
    #[arg(long, value_name = "m32|3-flash|tiny|FILE")]
    geometry: String,
    /// The container (.gguf) or the checkpoint folder to write
    #[arg(long, short, value_name = "FILE|DIR")]
    output: PathBuf,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of layers, instead of the geometry's
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// How experts are chosen, instead of the geometry's way: by Yuan's attention router, or by a linear one, which it has replaced
    #[arg(long, value_name = "attention|linear", value_parser = router)]
    router: Option<RouterKind>,
    #[command(flatten)]
    types: Types,
    /// Print the plan of a container and write nothing
    #[arg(long)]
    dry_run: bool,
}

impl Synth {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut config = geometry(&self.geometry)?;
        config.layers = self.layers.unwrap_or(config.layers);
        config.router = self.router.unwrap_or(config.router);
        config.validate().map_err(anyhow::Error::msg)?;
        let vocab = Vocab::of(config.family, pieces(&config));
        if self.output.extension().is_some_and(|e| e == "gguf") {
            let (wishes, _) = within_size(&self.types.wishes(), &config)?;
            let plan = Plan::new(config, &wishes.options())?;
            let job = Job::of(Conversion::synth(plan, self.seed, &vocab)?);
            return if self.dry_run { job.print_plan() } else { job.run(&self.output) };
        }
        ensure!(!self.dry_run, "--dry-run prints the plan of a container: give -o FILE.gguf");
        self.write_checkpoint(&config, &vocab)
    }

    /// Writes config, tokenizer and bf16 safetensors shards beside `output`, then renames the folder.
    fn write_checkpoint(&self, config: &ModelConfig, vocab: &Vocab) -> anyhow::Result<()> {
        if self.output.exists() {
            bail!("{} is there already: remove it or choose another folder", self.output.display());
        }
        let folder = self.output.with_added_extension("partial");
        let was_there = folder.exists();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let written = self.write_folder(&folder, config, vocab).and_then(|written| {
            fs::rename(&folder, &self.output)
                .with_context(|| format!("cannot make {}", self.output.display()))?;
            Ok(written)
        });
        if written.is_err() && !was_there {
            // The error that comes first says more than one of this.
            let _ = fs::remove_dir_all(&folder);
        }
        let (total, files) = written?;
        tell!("{}: {} in {files} files", self.output.display(), size(total));
        Ok(())
    }

    /// The files of the checkpoint. Bytes of its weights, and in how many files they are.
    fn write_folder(
        &self,
        folder: &Path,
        config: &ModelConfig,
        vocab: &Vocab,
    ) -> anyhow::Result<(u64, usize)> {
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        write("config.json", &serde_json::to_vec_pretty(&config_json(config))?)?;
        write("tokenizer.model", &sentencepiece(vocab))?;

        let source = synth::Random::new(config, self.seed);
        let shards = shards(names::tensors(config));
        let total = shards.iter().flatten().map(bytes).sum();
        let bar = byte_bar(total, "synth");
        let mut map = Map::new();
        for (i, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => "model.safetensors".to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            map.extend(shard.iter().map(|spec| (spec.source.tensor.clone(), Value::from(name.as_str()))));
            let path = folder.join(name);
            write_shard(&path, shard, &source, &|done| bar.inc(done))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        bar.finish_and_clear();
        if shards.len() > 1 {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            write("model.safetensors.index.json", &serde_json::to_vec_pretty(&index)?)?;
        }
        Ok((total, shards.len()))
    }
}

fn router(name: &str) -> Result<RouterKind, String> {
    RouterKind::from_name(name).ok_or_else(|| "it is attention or linear".into())
}

fn bytes(spec: &TensorSpec) -> u64 {
    2 * spec.shape.iter().map(|&d| d as u64).product::<u64>()
}

/// The tensors, cut into shards. Parts of one tensor stand side by side, and stay together.
fn shards(specs: Vec<TensorSpec>) -> Vec<Vec<TensorSpec>> {
    let (mut shards, mut room) = (Vec::<Vec<TensorSpec>>::new(), 0);
    for spec in specs {
        let bytes = bytes(&spec);
        match shards.last_mut() {
            Some(shard) if bytes <= room || spec.source.first_row > 0 => shard.push(spec),
            _ => {
                room = SHARD_BYTES;
                shards.push(vec![spec]);
            }
        }
        room = room.saturating_sub(bytes);
    }
    shards
}

fn write_shard(
    path: &Path,
    specs: &[TensorSpec],
    source: &dyn Weights,
    progress: &dyn Fn(u64),
) -> anyhow::Result<()> {
    let (mut header, mut at) = (Map::new(), 0);
    for spec in specs {
        // The first part of a tensor that has several describes all of it.
        if spec.source.first_row == 0 {
            let end = at + 2 * spec.source.shape.iter().map(|&d| d as u64).product::<u64>();
            header.insert(
                spec.source.tensor.clone(),
                json!({ "dtype": "BF16", "shape": spec.source.shape, "data_offsets": [at, end] }),
            );
            at = end;
        }
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for spec in specs {
        let elements: usize = spec.shape.iter().product();
        for start in (0..elements).step_by(PIECE) {
            ensure!(!stopped(), "stopped on request");
            let piece = bf16(source, &spec.hf, start..elements.min(start + PIECE))?;
            file.write_all(&piece)?;
            progress(piece.len() as u64);
        }
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}

/// A piece of a tensor in bf16, made by two threads a core's worth at a time.
fn bf16(source: &dyn Weights, name: &str, range: Range<usize>) -> anyhow::Result<Vec<u8>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = range.len().div_ceil(threads).max(1);
    let parts: Vec<_> = range.clone().step_by(share).map(|s| s..range.end.min(s + share)).collect();
    let make = |part: Range<usize>| -> yuan::Result<Vec<u8>> {
        let mut weights = Vec::with_capacity(part.len());
        source.read_f32(name, part, &mut weights)?;
        Ok(weights.iter().flat_map(|w| half::bf16::from_f32(*w).to_le_bytes()).collect())
    };
    let made: Vec<_> = thread::scope(|scope| {
        let start = |part| thread::Builder::new().spawn_scoped(scope, move || make(part));
        let workers = parts.into_iter().map(start).collect::<io::Result<Vec<_>>>();
        let workers = workers.context("cannot start a thread")?;
        anyhow::Ok(workers.into_iter().map(|w| w.join().expect("making weights does not panic")).collect())
    })?;
    Ok(made.into_iter().collect::<yuan::Result<Vec<_>>>()?.concat())
}

/// The config of a geometry, with the keys of the published ones.
fn config_json(c: &ModelConfig) -> Value {
    let mut config = json!({
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": c.vocab, "hidden_size": c.hidden, "intermediate_size": c.ffn, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "attention_projection_size": c.projection, "rms_norm_eps": c.rms_eps,
        "max_position_embeddings": c.context, "rotary_base": c.rope_base, "rope_precision": c.rope_precision.name(),
        "tie_word_embeddings": c.tied_embeddings,
    });
    if c.architecture == Architecture::Moe {
        config["use_moe"] = true.into();
        config["moe_config"] = json!({
            "moe_num_experts": c.experts, "moe_top_k": c.experts_used, "norm_topk_prob": c.norm_topk,
            "gated_linear_unit": true, "ffn_hidden_size": c.ffn,
        });
    }
    // Yuan 3.0 has no default.
    if c.architecture == Architecture::Moe && (c.family == Family::Yuan3 || c.router == RouterKind::Linear) {
        config["moe_config"]["router_type"] = match c.router {
            RouterKind::Attention => "attn_router",
            RouterKind::Linear => "linear",
        }
        .into();
    }
    if c.family == Family::Yuan3 {
        config["head_dim"] = c.head_dim().into();
        config["rotary_percent"] = (c.rope_dims as f64 / c.head_dim() as f64).into();
        config["use_lfa_bias"] = true.into();
    }
    if let Some(yarn) = c.yarn {
        config["use_yarn"] = true.into();
        config["yarn_scale_factor"] = yarn.factor.into();
        config["max_position_embeddings"] = yarn.original.into();
        config["scaled_max_position_embeddings"] = c.context.into();
    }
    config
}

/// A vocabulary for tests: bytes, the special strings, ASCII letter by letter, and made-up words for the rest.
fn pieces(config: &ModelConfig) -> Vec<Piece> {
    let fixed = [("<unk>", PieceKind::Unknown), ("<s>", PieceKind::Control), ("</s>", PieceKind::Control)];
    let fixed = fixed.map(|(text, kind)| (text.to_owned(), kind));
    let bytes = (0..256).map(|b| (format!("<0x{b:02X}>"), PieceKind::Byte));
    let special =
        ["<eod>", "<n>", "<sep>", "<pad>", "\u{2581}"].map(|text| (text.to_owned(), PieceKind::Normal));
    let ascii = ('!'..='~').map(|c| (c.to_string(), PieceKind::Normal));
    let of_family = if config.family == Family::Yuan3 { &SPECIAL_OF_YUAN3[..] } else { &[] };
    let of_family = of_family.iter().map(|text| ((*text).to_owned(), PieceKind::Normal));
    let words = (0..).map(|i| (format!("\u{2581}w{i}"), PieceKind::Normal));
    let all = fixed.into_iter().chain(bytes).chain(special).chain(ascii).chain(of_family).chain(words);
    let score = |i: usize| -(i as f32);
    all.take(config.vocab)
        .enumerate()
        .map(|(i, (text, kind))| Piece { text, score: score(i), kind })
        .collect()
}

/// The vocabulary as a SentencePiece model: the protobuf message with its pieces (field 1) and the model type BPE
/// (field 3 of field 2).
fn sentencepiece(vocab: &Vocab) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in &vocab.pieces {
        let mut message = vec![0x0A];
        varint(piece.text.len(), &mut message);
        message.extend(piece.text.as_bytes());
        message.push(0x15);
        message.extend(piece.score.to_le_bytes());
        message.extend([0x18, piece.kind as u8]);
        out.push(0x0A);
        varint(message.len(), &mut out);
        out.extend(message);
    }
    out.extend([0x12, 2, 0x18, 2]);
    out
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
