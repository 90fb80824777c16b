//! Files that are written whole or not at all: beside their place, flushed to the disk, and renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf, is_separator},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::error::{Error, Result};

/// Writes what `write` gives to a file that then takes the name `path`. One that is there is replaced only when the new one is whole and on the
/// disk; what cannot be finished is removed. `needed` bytes must be free.
///
/// # Errors
/// [`Error::DiskFull`]; [`Error::Argument`] where `path` is something else than a file; [`Error::Io`] for a folder that is not there or may not be
/// written, and for the errors of `write`.
pub fn write_whole(
    path: &Path,
    needed: u64,
    write: impl FnOnce(&mut NewFile) -> io::Result<()>,
) -> Result<()> {
    let mut file = NewFile::create(path, needed)?;
    write(&mut file).map_err(|e| file.failed(e))?;
    file.finish()
}

/// Whether a file of at least `needed` bytes can be written to `path`, for outputs whose making takes long: it is better known before. The name is
/// that of a file, the folder is there and may be written, and none of `inputs` would be written over. `example` is a usual name of such a file.
///
/// # Errors
/// As [`write_whole`]; [`Error::Argument`] for a `path` that is an input.
pub fn check_output(path: &Path, needed: u64, inputs: &[PathBuf], example: &str) -> Result<()> {
    check_name(path, example)?;
    check_not_read(path, inputs)?;
    NewFile::create(path, needed).map(drop)
}

/// Whether `path` may name a file: a folder or a device would be replaced, or be in the way.
///
/// # Errors
/// [`Error::Argument`], which for a folder names the file `example` in it.
pub(crate) fn check_name(path: &Path, example: &str) -> Result<()> {
    let ends_as_folder = path.as_os_str().as_encoded_bytes().last().is_some_and(|&b| is_separator(b.into()));
    let problem = match fs::metadata(path) {
        Ok(there) if there.is_file() => return Ok(()),
        Ok(there) if !there.is_dir() => format!("{} is not a file; give the name of a file", path.display()),
        Err(_) if path.file_name().is_some() && !ends_as_folder => return Ok(()),
        _ => {
            let inside = path.join(example);
            format!("{} is a folder; give the name of a file, as {}", path.display(), inside.display())
        }
    };
    Err(Error::Argument(problem))
}

/// Whether `path` is none of the files that are read, by whatever name or link.
///
/// # Errors
/// [`Error::Argument`].
pub fn check_not_read(path: &Path, inputs: &[PathBuf]) -> Result<()> {
    // What is not there is not the same as anything.
    let is_input = |input: &&PathBuf| same_file::is_same_file(path, input).unwrap_or(false);
    match inputs.iter().find(is_input) {
        None => Ok(()),
        Some(input) => Err(Error::Argument(format!(
            "{} would be written over {}, which is read; give the output another name",
            path.display(),
            input.display()
        ))),
    }
}

/// A file that is being written under a name of its own; removed unless it is finished.
///
/// The file is locked while it is being written. An unlocked one is left over from a killed process, and is removed when its target is written again.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
}

impl NewFile {
    /// Begins a file for `path`.
    ///
    /// # Errors
    /// As [`write_whole`].
    pub fn create(path: &Path, needed: u64) -> Result<Self> {
        check_name(path, "NAME")?;
        remove_abandoned(path);
        check_space(path, needed)?;
        let (partial, file) = create_beside(path)?;
        Ok(Self { path: path.into(), partial, out: BufWriter::with_capacity(1 << 20, file) })
    }

    /// What an error of writing means: [`Error::DiskFull`] where the disk says so.
    pub fn failed(&self, error: io::Error) -> Error {
        let folder = folder_of(&self.path);
        match (error.kind(), free_bytes(folder)) {
            (io::ErrorKind::StorageFull, Ok(free)) => {
                let written = self.out.get_ref().metadata().map_or(0, |m| m.len());
                let needed = written + self.out.buffer().len() as u64;
                Error::DiskFull { path: folder.into(), needed: needed.max(free + 1), free }
            }
            _ => Error::io("write", &self.partial)(error),
        }
    }

    /// Brings what was written to the disk. Returns where it can be read until the file is finished or dropped.
    ///
    /// # Errors
    /// As [`write_whole`].
    pub fn flushed(&mut self) -> Result<&Path> {
        let flushed = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        flushed.map_err(|e| self.failed(e))?;
        Ok(&self.partial)
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// As [`write_whole`].
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(|e| self.failed(e))?;
        put_in_place(self.out.get_ref(), &self.partial, &self.path)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Not there any more when all went well.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Flushes the finished `file` at `partial` to the disk, and gives it the name `path`.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn put_in_place(file: &File, partial: &Path, path: &Path) -> Result<()> {
    file.sync_all().map_err(Error::io("write", partial))?;
    rename(partial, path).map_err(Error::io("rename the finished file to", path))?;
    // The new name is on the disk too when the folder is. A folder that cannot be opened or flushed has no more to give.
    if let Ok(folder) = File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Gives `from` the name of `to`.
#[cfg(not(windows))]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Gives `from` the name of `to`. Windows refuses it while the file that is replaced is open: for a moment, where another thread or a virus scanner has just
/// looked at it, and for long, where it is mapped. Such a file may have another name, by which it is found and removed when it is open no more.
#[cfg(windows)]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    for _ in 0..50 {
        match fs::rename(from, to) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            done => return done,
        }
    }
    let old = to.with_added_extension(format!("{}.old", own_number()));
    fs::rename(to, &old)?;
    let renamed = fs::rename(from, to);
    match &renamed {
        Ok(()) => drop(fs::remove_file(&old)),
        Err(_) => drop(fs::rename(&old, to)),
    }
    renamed
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Asks the disk for room for so many bytes beside `path`.
///
/// # Errors
/// [`Error::DiskFull`]; [`Error::Io`] for a folder that is not there.
pub(crate) fn check_space(path: &Path, needed: u64) -> Result<()> {
    let folder = folder_of(path);
    let free = free_bytes(folder)?;
    if free < needed { Err(Error::DiskFull { path: folder.into(), needed, free }) } else { Ok(()) }
}

/// Bytes that are free for us on the disk of a folder.
///
/// # Errors
/// [`Error::Io`] for a folder that is not there.
pub fn free_bytes(folder: &Path) -> Result<u64> {
    fs4::available_space(folder).map_err(Error::io("ask for the free space of", folder))
}

/// `PROCESS-NUMBER`, another one at every call.
fn own_number() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed))
}

/// A new file `NAME.PROCESS-NUMBER.partial`, locked.
fn create_beside(path: &Path) -> Result<(PathBuf, File)> {
    loop {
        let partial = path.with_added_extension(format!("{}.partial", own_number()));
        let file = match OpenOptions::new().write(true).create_new(true).open(&partial) {
            // In another container a process of the same number may be at work.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            file => file.map_err(Error::io("create", &partial))?,
        };
        // A file system without locks has no others that clean up either.
        let locked = file.lock().is_ok();
        // Another process may have taken it for abandoned before it was locked. Where the system does not say, it was not.
        if !locked || !matches!(partial.try_exists(), Ok(false)) {
            return Ok((partial, file));
        }
    }
}

/// Removes what killed processes have left beside `path`: files with our kind of name that nobody has locked. On Windows, too, what `path` was before, where
/// it was in use (`rename`), and is there again.
fn remove_abandoned(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let Ok(entries) = fs::read_dir(folder_of(path)) else { return };
    for entry in entries.map_while(io::Result::ok) {
        let file_name = entry.file_name();
        let numbers = file_name.to_str().and_then(|n| n.strip_prefix(name)?.strip_prefix('.'));
        let is_old = |n: &&str| cfg!(windows) && path.exists() && n.ends_with(".old");
        let numbers = numbers.and_then(|n| {
            let ending = if is_old(&n) { ".old" } else { ".partial" };
            n.strip_suffix(ending)?.split_once('-')
        });
        let is_number = |n: &str| n.parse::<u64>().is_ok();
        if !numbers.is_some_and(|(process, number)| is_number(process) && is_number(number)) {
            continue;
        }
        let file = OpenOptions::new().write(true).open(entry.path());
        if file.as_ref().is_ok_and(|file| file.try_lock().is_ok()) {
            tracing::info!("{} was left by a process that was killed: removed", entry.path().display());
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_by_a_whole_one_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_whole(&path, 1, |out| out.write_all(b"old")).unwrap();
        let failed = write_whole(&path, 1, |out| {
            out.write_all(&[0; 3 << 20])?;
            Err(io::Error::other("no more"))
        });
        assert!(failed.unwrap_err().to_string().contains("no more"));
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"old".to_vec(), vec!["a".into()]));
        write_whole(&path, 1, |out| out.write_all(b"new")).unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"new".to_vec(), vec!["a".into()]));
    }

    #[test]
    fn what_is_too_large_for_the_disk_is_not_begun() {
        let folder = tempfile::tempdir().unwrap();
        let full = write_whole(&folder.path().join("a"), u64::MAX, |_| Ok(()));
        assert!(matches!(full, Err(Error::DiskFull { needed: u64::MAX, .. })));
        assert!(names(folder.path()).is_empty());
        assert!(matches!(write_whole(folder.path(), 0, |_| Ok(())), Err(Error::Argument(_))));
    }

    #[test]
    fn what_a_killed_process_has_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let others = [
            "a.7-1.partial",
            "a.b.7-0.partial",
            "a.partial",
            "a.x-0.partial",
            "b.7-0.partial",
            "ab.7-0.partial",
        ];
        for name in ["a.7-0.partial", "a.4294967295-12.partial"].iter().chain(&others) {
            fs::write(at(name), "x").unwrap();
        }
        // Still being written.
        let busy = OpenOptions::new().write(true).open(at(others[0])).unwrap();
        busy.lock().unwrap();
        write_whole(&at("a"), 0, |_| Ok(())).unwrap();
        let mut left = others.map(str::to_owned).to_vec();
        left.push("a".into());
        left.sort();
        assert_eq!(names(folder.path()), left);
    }

    #[test]
    fn threads_may_write_one_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let write = |byte: u8| {
            for _ in 0..100 {
                write_whole(&path, 0, |out| out.write_all(&[byte; 5000])).unwrap();
                let read = fs::read(&path).unwrap();
                assert!(read.len() == 5000 && read.iter().all(|&b| b == read[0]));
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|byte| drop(scope.spawn(move || write(byte)))));
        assert_eq!(names(folder.path()), ["a"]);
    }
}
