//! What a shell and `man` are told of a program: completions, manual pages.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::{Shell, generate};

use crate::say::print;

/// Print a script for your shell, by which Tab completes commands and options
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan completions bash > ~/.local/share/bash-completion/completions/yuan
  yuan completions zsh > ~/.zfunc/_yuan        # a folder of fpath
  yuan completions fish > ~/.config/fish/completions/yuan.fish
  yuan completions powershell >> $PROFILE")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script of `command`.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn run(self, mut command: Command) -> anyhow::Result<()> {
        let (name, mut script) = (command.get_name().to_owned(), Vec::new());
        generate(self.shell, &mut command, name, &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}

/// Write manual pages into a folder
#[derive(Args)]
#[command(after_help = "\
Example:
  yuan man ~/.local/share/man/man1")]
pub struct Man {
    /// The folder, which is made where it is not there
    folder: PathBuf,
}

impl Man {
    /// Writes a page for `command` and one for each of its own commands.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn run(self, command: Command) -> anyhow::Result<()> {
        let cannot = || format!("cannot write manual pages into {}", self.folder.display());
        fs::create_dir_all(&self.folder).with_context(cannot)?;
        clap_mangen::generate_to(command, &self.folder).with_context(cannot)
    }
}
