//! `yuan pull`: from a name to a model that runs.

use std::fs;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use yuan_hub::{KNOWN, Repository};
use yuan_tools::{
    console::size,
    models::{COMING, ENDING, file_of, folder, name_of},
    pull::{self, Hub},
    say, tell,
    types::Types,
};

/// Fetch a published model, by its name, and convert it
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  yuan pull m32
  yuan pull ms:OWNER/NAME
  yuan pull OWNER/NAME --endpoint https://hf-mirror.com --experts q4_0 --as small
Names:
{}
Shards of a checkpoint are fetched, converted and dropped one after another, so that the disk holds the container and two of them. \
            (One of GPTQ, and any with --lossless, has to be there first as a whole.) Each file is checked by its size, and by its SHA-256 where the hub has one. \
            What was stopped or killed goes on when the same is run again.", known()))]
pub struct Pull {
    /// A short name, OWNER/NAME[@REVISION] of Hugging Face, or ms:OWNER/NAME of ModelScope
    name: String,
    /// The name that the model gets here
    #[arg(long = "as", value_name = "NAME")]
    named: Option<String>,
    #[command(flatten)]
    types: Types,
    /// Stop unless every weight of the container is exactly the checkpoint's
    #[arg(long)]
    lossless: bool,
    #[command(flatten)]
    hub: Hub,
    /// Print JSON: what has come, and where it is
    #[arg(long)]
    json: bool,
}

fn known() -> String {
    KNOWN.iter().map(|known| format!("  {:<10} {}: {}\n", known.name, known.what, known.repository)).collect()
}

impl Pull {
    pub fn run(self) -> anyhow::Result<()> {
        let repository = Repository::parse(&self.name)?;
        let folder = folder()?;
        let name = self.named.clone().unwrap_or_else(|| repository.name());
        let output = file_of(&name, &folder).with_context(|| {
            format!("{name:?} is no name; give letters, digits, and - _ . @ between them")
        })?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let was_there = output.is_file() && !output.with_added_extension(COMING).exists();
        let bytes = if was_there {
            fs::metadata(&output)?.len()
        } else {
            let mut wishes = self.types.wishes();
            wishes.lossless = self.lossless;
            pull::Pull { repository, hub: self.hub, output: &output, wishes }.run()?.bytes
        };
        let name = name_of(&output);
        if self.json {
            return say!(
                "{}",
                json!({ "name": name, "file": output, "bytes": bytes, "was_there": was_there })
            );
        }
        if was_there {
            tell!("{name} is here already ({}); `yuan rm {name}` makes way for another", size(bytes));
        }
        debug_assert!(output.extension().is_some_and(|ending| ending == ENDING));
        say!("{name}: {}, {}; yuan chat {name}", output.display(), size(bytes))
    }
}
