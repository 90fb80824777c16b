//! Models by name: the folder that `yuan pull` fills, and the model that a command means.

use std::{
    env,
    fs::{self, File, Metadata, TryLockError},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use etcetera::BaseStrategy;

/// What the file of a model ends in.
pub const ENDING: &str = "gguf";
/// What the folder of a model that is still coming ends in, behind that.
pub const COMING: &str = "pull";

/// Which model a command is for.
#[derive(Args, Clone, Debug, Default)]
pub struct Model {
    /// The model: a container of yuan-quant, a GGUF file as published, or a name of `yuan list`; that of YUAN_MODEL, or the only one of the list, where none is given
    model: Option<PathBuf>,
    /// The same as an option
    #[arg(long = "model", short = 'm', value_name = "MODEL", conflicts_with = "model")]
    option: Option<PathBuf>,
}

impl From<PathBuf> for Model {
    fn from(path: PathBuf) -> Self {
        Self { model: Some(path), option: None }
    }
}

impl Model {
    /// What the command line says, where that is text.
    pub fn named(&self) -> Option<&str> {
        self.given().and_then(Path::to_str)
    }

    /// Whether the command line says one.
    pub fn is_named(&self) -> bool {
        self.given().is_some()
    }

    /// Its file. A path that is there goes before a name.
    ///
    /// # Errors
    /// There is no such file and no model of this name; none is named, and there are none or several.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        match self.given() {
            Some(text) => resolve(text),
            None => only(),
        }
    }

    /// The option goes before what a file of options may say in the place of the argument.
    fn given(&self) -> Option<&Path> {
        self.option.as_deref().or(self.model.as_deref())
    }
}

/// The file that a path or a name means, for a command line.
///
/// # Errors
/// As [`Model::path`].
pub fn resolve(text: &Path) -> anyhow::Result<PathBuf> {
    if text.exists() {
        return Ok(text.to_owned());
    }
    let folder = folder()?;
    if let Some(found) = text.to_str().and_then(|name| file_of(name, &folder)).filter(|path| path.exists()) {
        return Ok(found);
    }
    bail!(
        "{text:?} is neither a file nor a model of {}: {}; `yuan pull NAME` fetches one",
        folder.display(),
        names(&list()?)
    )
}

/// The model that is meant where none is named: that of `YUAN_MODEL`, or the only one.
fn only() -> anyhow::Result<PathBuf> {
    if let Some(usual) = env::var_os("YUAN_MODEL").filter(|usual| !usual.is_empty()) {
        return resolve(Path::new(&usual)).context("the model of YUAN_MODEL");
    }
    match <[Entry; 1]>::try_from(list()?) {
        Ok([one]) => Ok(one.path),
        Err(models) => bail!(
            "name a model, as a file or by its name; in {}: {}; `yuan pull NAME` fetches one",
            folder()?.display(),
            names(&models)
        ),
    }
}

/// What the system says of a file or folder, `None` where there is none.
///
/// # Errors
/// It does not say.
fn there(path: &Path) -> anyhow::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        said => said.map(Some).with_context(|| format!("cannot look at {}", path.display())),
    }
}

fn names(models: &[Entry]) -> String {
    match models {
        [] => "there is none".into(),
        models => {
            let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
            format!("there is {}", names.join(", "))
        }
    }
}

/// A model of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What people call it.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
}

/// The folder of models: `YUAN_MODELS`, or one in the place that the system has for data of programs.
///
/// # Errors
/// There is no home folder.
pub fn folder() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os("YUAN_MODELS").filter(|folder| !folder.is_empty()) {
        return Ok(named.into());
    }
    let places = etcetera::base_strategy::choose_native_strategy()
        .context("there is no home folder for models; name a folder in YUAN_MODELS")?;
    // On Windows the folder for data goes from machine to machine with its user, which models had better not.
    let data = if cfg!(windows) { places.cache_dir() } else { places.data_dir() };
    Ok(data.join("yuan").join("models"))
}

/// The models of the folder, by name.
///
/// # Errors
/// The folder cannot be read. One that is not there has no models.
pub fn list() -> anyhow::Result<Vec<Entry>> {
    entries(ENDING, &Metadata::is_file)
}

/// Models that are still coming, and their folders.
///
/// # Errors
/// As [`list`].
pub fn coming() -> anyhow::Result<Vec<Entry>> {
    entries(COMING, &Metadata::is_dir)
}

fn entries(ending: &str, wanted: &dyn Fn(&Metadata) -> bool) -> anyhow::Result<Vec<Entry>> {
    let folder = folder()?;
    let cannot = || format!("cannot read the folder of models, {}", folder.display());
    let found = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.with_context(cannot)?,
    };
    let mut entries = Vec::new();
    for entry in found {
        let path = entry.with_context(cannot)?.path();
        if path.extension().is_some_and(|its| its == ending) && there(&path)?.is_some_and(|it| wanted(&it)) {
            entries.push(Entry { name: shown(&path), path });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Removes a model of the folder, and what has come of one that is not whole. Returns how many bytes it had.
///
/// # Errors
/// There is none of this name, it is being fetched just now, or the system refuses.
pub fn remove(name: &str) -> anyhow::Result<u64> {
    let folder = folder()?;
    let file = file_of(name, &folder).with_context(|| format!("{name:?} is not the name of a model"))?;
    let coming = file.with_added_extension(COMING);
    let is_coming = there(&coming)?.is_some_and(|it| it.is_dir());
    if !is_coming && !there(&file)?.is_some_and(|it| it.is_file()) {
        bail!("there is no model {name:?} in {}: {}", folder.display(), names(&list()?));
    }
    // A run that is at work would go on in a folder that is gone.
    let _lock = if is_coming { Some(lock(&coming)?) } else { None };
    let mut bytes = 0;
    for path in [&file, &file.with_added_extension("partial"), &file.with_added_extension("journal")] {
        if let Some(it) = there(path)? {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            bytes += it.len();
        }
    }
    if is_coming {
        bytes += fs::read_dir(&coming)?
            .flatten()
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .sum::<u64>();
        fs::remove_dir_all(&coming).with_context(|| format!("cannot remove {}", coming.display()))?;
    }
    Ok(bytes)
}

/// Holds a folder in which a model comes, for one process.
///
/// # Errors
/// Another one has it, or the system refuses.
pub fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("another run is fetching to {}; wait for it, or stop it", folder.display())
        }
        // A file system without locks has nobody to be kept out.
        _ => Ok(file),
    }
}

/// What people call the model in this file: `m32`, `OWNER/NAME`, or that of the file, where it is none of the folder.
pub fn name_of(path: &Path) -> String {
    let stem = || path.file_stem().unwrap_or_else(|| "yuan".as_ref()).to_string_lossy().into_owned();
    match folder() {
        Ok(folder) if path.parent() == Some(&folder) => shown(path),
        _ => stem(),
    }
}

fn shown(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(COMING).and_then(|name| name.strip_suffix('.')).unwrap_or(&name);
    let name = name.strip_suffix(ENDING).and_then(|name| name.strip_suffix('.')).unwrap_or(name);
    name.replacen("--", "/", 1)
}

/// Where a model of this name lies in the folder, if it is a name: `m32`, `OWNER/NAME`, `hf:OWNER/NAME`.
pub fn file_of(name: &str, folder: &Path) -> Option<PathBuf> {
    let name = name.strip_prefix("hf:").or_else(|| name.strip_prefix("ms:")).unwrap_or(name);
    let known = yuan_hub::KNOWN.iter().find(|known| known.repository == name);
    let name = known.map_or(name, |known| known.name);
    let fine = |c: char| c.is_alphanumeric() || "-_.@/".contains(c);
    let parts_are_names = name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    let is_name = name.chars().all(fine) && parts_are_names;
    is_name.then(|| folder.join(format!("{}.{ENDING}", name.replace('/', "--"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_files_of_the_folder_and_of_no_other() {
        let folder = Path::new("models");
        let of = |name| file_of(name, folder).and_then(|path| path.to_str().map(str::to_owned));
        let in_folder = |file: &str| folder.join(file).to_str().map(str::to_owned);
        for name in ["a/b", "hf:a/b", "ms:a/b", "a--b"] {
            assert_eq!(of(name), in_folder("a--b.gguf"), "{name}");
        }
        assert_eq!(of("m32"), in_folder("m32.gguf"));
        assert_eq!(of("IEITYuan/Yuan2-M32-hf"), in_folder("m32.gguf"), "it is the one with the short name");
        for name in ["", "..", "../m32", "/m32", "a//b", "a\\b", "c:m32", ".m32", "a/../b"] {
            assert_eq!(of(name), None, "{name}");
        }
        assert_eq!(shown(Path::new("x/a--b--c@v1.gguf")), "a/b--c@v1");
        assert_eq!(shown(Path::new("x/a--b.gguf.pull")), "a/b");
        assert_eq!(name_of(Path::new("elsewhere/a--b.gguf")), "a--b");
    }
}
