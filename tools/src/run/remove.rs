//! `yuan rm`: removes a model of this machine.

use clap::Args;
use yuan_tools::{console::size, models::remove, say};

/// Remove a model of this machine
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan rm m32
  yuan rm OWNER/NAME
What has come of a model whose `yuan pull` has not ended is removed, too.")]
pub struct Remove {
    /// Names of `yuan list`
    #[arg(required = true)]
    names: Vec<String>,
}

impl Remove {
    pub fn run(self) -> anyhow::Result<()> {
        for name in &self.names {
            say!("{name}: {} removed", size(remove(name)?))?;
        }
        Ok(())
    }
}
