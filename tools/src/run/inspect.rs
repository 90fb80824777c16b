//! `yuan inspect`: show what a container holds, and how this machine would run it.

use clap::Args;
use yuan_tools::inspect::{self, Show};

/// Show what a container holds
#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    show: Show,
}

impl Inspect {
    pub fn run(self) -> anyhow::Result<()> {
        inspect::run(&self.show)
    }
}
