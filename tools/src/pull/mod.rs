//! From a repository of a hub to a container: what is fetched, where it lies meanwhile, and what a run that was killed has left.
//!
//! All of it lies in `OUTPUT.pull`, which one process holds at a time. Once the container has its name the folder goes, or, if it is to be kept, becomes
//! `OUTPUT.checkpoint`.

mod choose;
mod meanwhile;
mod room;
mod shards;
mod stream;
mod watch;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Args;
use yuan::{container::Container, quantize::Wishes};
use yuan_hub::{Remote, Repository, download::download};

use crate::{
    console::{byte_bar, stopped},
    convert::{Input, Job},
    models::{COMING, ENDING, lock},
    tell,
};
use choose::{Chosen, choose};
pub use meanwhile::WhilePulling;
use room::check_room;
use watch::Bar;

/// In the folder of what comes: all of the container is there but its name.
const DONE: &str = "done";
/// In it: which files these are.
const LISTING: &str = "listing";

/// How the hub is asked, and what stays.
#[derive(Args, Clone, Debug)]
pub struct Hub {
    /// Address of a mirror in place of the hub's own, huggingface.co or modelscope.cn; by default what HF_ENDPOINT or MODELSCOPE_DOMAIN
    /// names. The token is that of the hub's own tools: HF_TOKEN, or ~/.cache/huggingface/token; MODELSCOPE_API_TOKEN
    #[arg(long, value_name = "URL", help_heading = "Hub")]
    pub endpoint: Option<String>,
    /// Parts of a file that come side by side
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64), help_heading = "Hub")]
    pub connections: u8,
    /// The file to take of a repository that has several GGUF files
    #[arg(long, value_name = "FILE", help_heading = "Hub")]
    pub file: Option<String>,
    /// Keep the checkpoint when its container is written, in the folder OUTPUT.checkpoint
    #[arg(long, help_heading = "Hub")]
    pub keep: bool,
}

/// The repository that a command line names with `hf:` or `ms:`; none for a path.
///
/// # Errors
/// It is no name of a repository.
pub fn repository(text: &Path) -> anyhow::Result<Option<Repository>> {
    match text.to_str() {
        Some(name) if (name.starts_with("hf:") || name.starts_with("ms:")) && !text.exists() => {
            Repository::parse(name).map(Some)
        }
        _ => Ok(None),
    }
}

/// What is to be fetched, and what becomes of it.
pub struct Pull<'a> {
    /// From where.
    pub repository: Repository,
    /// How.
    pub hub: Hub,
    /// The container.
    pub output: &'a Path,
    /// Its types.
    pub wishes: Wishes,
}

/// What has come.
#[derive(Clone, Copy, Debug)]
pub struct Pulled {
    /// Bytes of the container.
    pub bytes: u64,
}

impl Pull<'_> {
    /// Fetches and converts, from where an earlier run has stopped.
    ///
    /// # Errors
    /// Those of the hub, the disk, and the conversion. What has come is there for the next run.
    pub fn run(mut self) -> anyhow::Result<Pulled> {
        if self.wishes.rope_base.is_none() {
            self.wishes.rope_base = self.repository.known().and_then(|known| known.rope_base);
        }
        let folder = self.output.with_added_extension(COMING);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let lock = lock(&folder)?;
        if !self.is_done(&folder) {
            self.fetch(&folder)?;
        }
        // Of a run that was killed behind its last step.
        let _ = fs::remove_file(self.output.with_added_extension("journal"));
        // Windows removes no file that is open.
        drop(lock);
        self.clean(&folder)?;
        Ok(Pulled { bytes: fs::metadata(self.output)?.len() })
    }

    /// Whether an earlier run has given the container its name, and was killed then.
    fn is_done(&self, folder: &Path) -> bool {
        let is_container = |path: PathBuf| path.extension().is_some_and(|ending| ending == ENDING);
        let waits =
            || fs::read_dir(folder).into_iter().flatten().flatten().any(|file| is_container(file.path()));
        let has_name = || !self.output.with_added_extension("partial").exists() && !waits();
        folder.join(DONE).exists() && self.output.is_file() && has_name()
    }

    /// Removes what has been fetched, or gives it the name that it keeps.
    fn clean(&self, folder: &Path) -> anyhow::Result<()> {
        let kept = self.output.with_added_extension("checkpoint");
        if self.hub.keep && folder.join("config.json").exists() && !kept.exists() {
            for name in [DONE, LISTING, "lock"] {
                let _ = fs::remove_file(folder.join(name));
            }
            fs::rename(folder, &kept).with_context(|| format!("cannot give {} its name", kept.display()))?;
            tell!("the checkpoint is in {}", kept.display());
            return Ok(());
        }
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
    }

    fn fetch(&self, folder: &Path) -> anyhow::Result<()> {
        let mut hub = yuan_hub::Hub::new(&self.repository, self.hub.endpoint.as_deref());
        let chosen = choose(&hub.files()?, self.hub.file.as_deref())
            .with_context(|| format!("in {}", self.repository.id))?;
        keep_what_is_the_same(&hub, folder, &chosen)?;
        match &chosen {
            Chosen::Container(file) => self.container(&hub, folder, file),
            Chosen::Checkpoint { beside, weights } => {
                for file in beside {
                    self.bring(&hub, folder, file, &Bar::none())?;
                }
                if !self.wishes.lossless
                    && let Some(arriving) = yuan::checkpoint::Arriving::open(folder)?
                {
                    return stream::run(self, &hub, folder, &arriving, weights);
                }
                self.whole(&hub, folder, weights)
            }
        }
    }

    fn bring(&self, hub: &yuan_hub::Hub, folder: &Path, file: &Remote, bar: &Bar<'_>) -> anyhow::Result<()> {
        download(hub, file, &folder.join(&file.path), self.hub.connections.into(), bar)
            .with_context(|| format!("fetching {} of {}", file.path, self.repository.id))
    }

    /// A file that can be run as it is.
    fn container(&self, hub: &yuan_hub::Hub, folder: &Path, file: &Remote) -> anyhow::Result<()> {
        check_room(self.output, folder, file.size)?;
        let bar = Bar::new(byte_bar(file.size, "fetch"));
        self.bring(hub, folder, file, &bar)?;
        bar.clear();
        let come = folder.join(&file.path);
        Container::open(&come).with_context(|| format!("{} is no model for this program", file.path))?;
        fs::write(folder.join(DONE), "")?;
        fs::rename(&come, self.output)
            .with_context(|| format!("cannot give {} its name", self.output.display()))
    }

    /// A checkpoint that is converted when all of it is there.
    fn whole(&self, hub: &yuan_hub::Hub, folder: &Path, weights: &[Remote]) -> anyhow::Result<()> {
        let total = weights.iter().map(|file| file.size).sum();
        check_room(self.output, folder, total)?;
        let bar = Bar::new(byte_bar(total, "fetch"));
        for file in weights {
            self.bring(hub, folder, file, &bar)?;
        }
        bar.clear();
        let input = Input::open(folder)?;
        let job = Job::new(&input, &self.wishes, None)?;
        job.warnings().iter().for_each(|warning| tell!("warning: {warning}"));
        check_room(self.output, folder, total + job.file_bytes())?;
        let bar = byte_bar(job.data_bytes(), "convert");
        job.write(self.output, &|bytes| {
            bar.inc(bytes);
            if bar.position() == job.data_bytes() {
                bar.finish_and_clear();
                let _ = fs::write(folder.join(DONE), "");
            }
            !stopped()
        })
    }
}

/// Removes from `folder` the files that were of another state of the repository than the chosen ones are.
fn keep_what_is_the_same(hub: &yuan_hub::Hub, folder: &Path, chosen: &Chosen) -> anyhow::Result<()> {
    let path = folder.join(LISTING);
    let before = fs::read_to_string(&path).unwrap_or_default();
    let now: Vec<String> =
        chosen.files().map(|file| format!("{} {}", hub.identity(file), file.path)).collect();
    for (file, line) in chosen.files().zip(&now) {
        let there = folder.join(&file.path);
        if there.exists() && !before.lines().any(|known| known == line) {
            fs::remove_file(&there).with_context(|| format!("cannot remove {}", there.display()))?;
        }
    }
    let new = folder.join(format!("{LISTING}.new"));
    fs::write(&new, now.join("\n")).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))?;
    ensure!(!stopped(), "stopped on request");
    Ok(())
}
