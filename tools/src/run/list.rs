//! `yuan list`: the models of this machine.

use std::{fs, io, path::Path};

use clap::Args;
use serde_json::json;
use yuan::container::Container;
use yuan_tools::{
    console::size,
    models::{coming, folder, list},
    say, tell,
};

/// Show the models of this machine
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan list
  yuan list --json
  YUAN_MODELS=/mnt/models yuan list
Models are files NAME.gguf of one folder: that of YUAN_MODELS, or else the place that the system has for data of programs. A file that is put there is a model, too.")]
pub struct List {
    /// Print JSON: a list of objects
    #[arg(long)]
    json: bool,
}

impl List {
    pub fn run(self) -> anyhow::Result<()> {
        let (models, coming) = (list()?, coming()?);
        if self.json {
            let there = models.iter().map(|model| {
                let what = what(&model.path);
                json!({ "name": model.name, "file": model.path, "bytes": bytes(&model.path).ok(), "model": what.ok(), "complete": true })
            });
            let unfinished = coming
                .iter()
                .map(|model| json!({ "name": model.name, "file": model.path, "complete": false }));
            return say!("{}", there.chain(unfinished).collect::<serde_json::Value>());
        }
        if models.is_empty() && coming.is_empty() {
            tell!("{} has no models; `yuan pull m32` fetches one", folder()?.display());
        }
        let width = models.iter().chain(&coming).map(|model| model.name.chars().count()).max().unwrap_or(0);
        for model in &models {
            let size = bytes(&model.path).map_or_else(|_| "?".into(), size);
            let what = what(&model.path).unwrap_or_else(|error| error.to_string());
            say!("{:<width$}  {size:>10}  {what}", model.name)?;
        }
        for model in &coming {
            say!(
                "{:<width$}  {:>10}  `yuan pull` of it goes on where it has stopped",
                model.name,
                "unfinished"
            )?;
        }
        Ok(())
    }
}

fn bytes(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|file| file.len())
}

/// `Yuan2.0-M32, neuron tiles`, for people.
fn what(path: &Path) -> yuan::Result<String> {
    let container = Container::open(path)?;
    let config = container.config();
    Ok(format!("{}, {} layers, {}", config.family.name(), config.layers, container.layout_name()))
}
