//! Shapes of models by their names, and what a container of such a model takes.

use std::{fs, path::Path};

use anyhow::Context;
use yuan::{
    checkpoint::config::parse_config,
    config::ModelConfig,
    model::Sizes,
    quantize::{Options, Plan, SourceOf, synth},
};

/// The model of this name, or that of a config.json.
pub fn geometry(name: &str) -> anyhow::Result<ModelConfig> {
    let config = match name {
        "m32" => synth::m32(),
        "3-flash" => synth::flash(),
        "tiny" => synth::tiny(),
        file => {
            let text = fs::read_to_string(file).with_context(|| {
                format!("the geometry {file} is neither m32, 3-flash nor tiny, nor a file that can be read")
            })?;
            parse_config(&text, Path::new(file))?.config
        }
    };
    Ok(config)
}

/// What a container of this model takes with the types that yuan-quant chooses where nobody says otherwise.
pub fn sizes(config: &ModelConfig) -> anyhow::Result<Sizes> {
    let plan = Plan::new(config.clone(), &Options::default())?;
    let tiles = plan.items.iter().find(|item| matches!(item.source, SourceOf::Tiles { .. }));
    let embedding = plan.items.iter().find(|item| item.name == "token_embd.weight");
    Ok(Sizes {
        data: plan.data_bytes(),
        expert: tiles.map_or(0, |item| item.bytes()),
        embedding: embedding.filter(|_| !config.tied_embeddings).map_or(0, |item| item.bytes()),
        unused: 0,
        streams: tiles.is_some(),
    })
}
