//! What a shell and `man` are told of a program: completions, manual pages.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::{Shell, generate};
use yuan::files::write_whole;

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
        let mut command = command.disable_help_subcommand(true);
        command.build();
        write_pages(command, &self.folder).with_context(cannot)
    }
}

/// A page for each command below this one, then its own, each of them whole or not at all.
fn write_pages(command: Command, folder: &Path) -> anyhow::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below.clone(), folder)?;
    }
    let (page, mut text) = (clap_mangen::Man::new(command), Vec::new());
    page.render(&mut text)?;
    write_whole(&folder.join(page.get_filename()), text.len() as u64, |file| file.write_all(&text))?;
    Ok(())
}
