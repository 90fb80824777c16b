//! What a container holds, for people and for programs.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;
use yuan::{config::Architecture, container::Container};

use crate::{console::size, models::Model, say};

/// Show what a container holds
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan inspect model.gguf
  yuan inspect model.gguf --tensors
  yuan inspect model.gguf --json")]
pub struct Show {
    #[command(flatten)]
    model: Model,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the description of a container.
///
/// # Errors
/// When it cannot be opened.
pub fn run(show: &Show) -> anyhow::Result<()> {
    let path = show.model.path()?;
    let container = Container::open(&path)?;
    let config = container.config();
    let mut types = BTreeMap::<String, (usize, u64)>::new();
    for tensor in container.tensors() {
        let total = types.entry(tensor.stored.name()).or_default();
        *total = (total.0 + 1, total.1 + tensor.bytes);
    }
    if show.json {
        let tensors: Vec<_> = container
            .tensors()
            .iter()
            .map(|t| json!({ "name": t.name, "type": t.stored.name(), "dims": t.dims, "offset": t.offset, "bytes": t.bytes }))
            .collect();
        let object = json!({
            "file": path, "config": config, "layout": container.layout_name(), "arithmetic": container.arithmetic(), "kernels": yuan::kernel_names(),
            "prefetch": yuan::measured_prefetch(), "data_bytes": container.data_bytes(), "tensors": tensors,
        });
        return say!("{object}");
    }
    let kind = match config.architecture {
        Architecture::Moe => format!(
            "mixture of experts: {} a layer, {} used, {} neurons each, {} router",
            config.experts,
            config.experts_used,
            config.ffn,
            config.router.name()
        ),
        Architecture::Dense => format!("dense, {} neurons a layer", config.ffn),
    };
    say!("file        {}", path.display())?;
    say!("model       {}, {kind}", config.family.name())?;
    say!("shape       {} layers, hidden {}, vocabulary {}", config.layers, config.hidden, config.vocab)?;
    say!("attention   {} heads of {}, {} dims rotate", config.heads, config.head_dim(), config.rope_dims)?;
    say!("rotary      base {}, {} precision", config.rope_base, config.rope_precision.name())?;
    if let Some(yarn) = config.yarn {
        say!("yarn        factor {}, from a context of {} tokens", yarn.factor, yarn.original)?;
    }
    say!("context     {} tokens", config.context)?;
    say!("layout      {}", container.layout_name())?;
    say!("arithmetic  written by version {}, run by version {}", container.arithmetic(), yuan::ARITHMETIC)?;
    say!("data        {}", size(container.data_bytes()))?;
    for (name, (count, bytes)) in types {
        say!("  {name:<12} {count:>5} tensors, {}", size(bytes))?;
    }
    say!("kernels     {} (this machine has: {})", yuan::kernel_names()[0], yuan::kernel_names().join(", "))?;
    if let Some(ahead) = yuan::measured_prefetch() {
        say!("prefetch    {ahead} bytes ahead for one token, as was measured on this machine")?;
    }
    if show.tensors {
        say!()?;
        for t in container.tensors() {
            say!("{:<36} {:<12} {:>12} {:?}", t.name, t.stored.name(), t.bytes, t.dims)?;
        }
    }
    Ok(())
}
