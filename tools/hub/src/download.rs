//! One file, in blocks side by side: from where a killed run has stopped, and checked before it has its name.

use std::{
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use anyhow::{Context, anyhow, ensure};
use sha2::{Digest, Sha256};

use crate::{
    hub::{Hub, Remote},
    journal::Journal,
    retry::Failure,
};

/// Bytes of a block: what a killed run loses of each connection at most.
const BLOCK: u64 = 4 << 20;
/// Blocks of one request.
const BLOCKS: usize = 8;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 18;

/// What is heard while a file comes.
pub trait Watch: Sync {
    /// So many more bytes are there. Those of an earlier run are told of at once.
    fn came(&self, bytes: u64);
    /// So many bytes are there no more: they were not those of the file.
    fn went(&self, bytes: u64);
    /// Whether to go on.
    fn go_on(&self) -> bool;
}

/// Brings a file of `hub` to `path` over so many connections. One that is there is not asked for again.
///
/// # Errors
/// It does not come, is another than the hub says, or there is no room; what has come is kept for the next run. When `watch` says so.
pub fn download(
    hub: &Hub,
    remote: &Remote,
    path: &Path,
    connections: usize,
    watch: &dyn Watch,
) -> anyhow::Result<()> {
    if fs::metadata(path).is_ok_and(|there| there.len() == remote.size) {
        watch.came(remote.size);
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let (part, list) = (beside(path, ".part"), beside(path, ".blocks"));
    let blocks = usize::try_from(remote.size.div_ceil(BLOCK))?;
    let url = hub.url(&remote.path);
    let identity = hub.identity(remote);
    let on_disk = || format!("cannot write {}", part.display());
    let mut journal = Journal::open(&list, &identity, blocks).with_context(on_disk)?;
    if fs::metadata(&part).map_or(0, |there| there.len()) != remote.size && journal.there().contains(&true) {
        // Somebody has taken away what the list tells of.
        fs::remove_file(&list).with_context(on_disk)?;
        journal = Journal::open(&list, &identity, blocks).with_context(on_disk)?;
    }
    let file = File::options().write(true).create(true).truncate(false).open(&part).with_context(on_disk)?;
    file.set_len(remote.size).with_context(on_disk)?;
    let here: u64 =
        (0..blocks).filter(|block| journal.there()[*block]).map(|block| bytes_of(block, remote.size)).sum();
    watch.came(here);

    let coming = Coming {
        hub,
        remote,
        url: &url,
        file: &file,
        part: &part,
        queue: Mutex::new(Queue { runs: runs(journal.there()), journal }),
        whole_only: AtomicBool::new(false),
        came: AtomicU64::new(here),
        watch,
    };
    coming.run(connections)?;
    drop(coming);
    if let Err(error) = check(remote, &part, watch) {
        // Nothing of it can be believed.
        watch.went(remote.size);
        let gone = fs::remove_file(&list).and_then(|()| fs::remove_file(&part));
        gone.with_context(|| format!("cannot remove {}, which is damaged", part.display()))?;
        return Err(error);
    }
    file.sync_all().with_context(on_disk)?;
    fs::rename(&part, path).with_context(|| format!("cannot give {} its name", path.display()))?;
    // Without it, the next run would look at the file alone.
    let _ = fs::remove_file(&list);
    Ok(())
}

/// A file that comes.
struct Coming<'a> {
    hub: &'a Hub,
    remote: &'a Remote,
    url: &'a str,
    file: &'a File,
    part: &'a Path,
    queue: Mutex<Queue>,
    /// The server has no parts: all of the file comes at once.
    whole_only: AtomicBool,
    came: AtomicU64,
    watch: &'a dyn Watch,
}

/// What one connection brings.
struct Run {
    blocks: Range<usize>,
    /// Of the first of them.
    begun: Vec<u8>,
}

impl Run {
    /// The first byte that has not come.
    fn reached(&self) -> u64 {
        self.blocks.start as u64 * BLOCK + self.begun.len() as u64
    }
}

struct Queue {
    /// Of blocks that are missing, the last first.
    runs: Vec<Range<usize>>,
    journal: Journal,
}

impl Coming<'_> {
    fn run(&self, connections: usize) -> anyhow::Result<()> {
        let failed = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let go_on = || self.watch.go_on() && !stop.load(Relaxed);
        thread::scope(|scope| {
            for _ in 0..connections.max(1) {
                scope.spawn(|| {
                    if let Err(error) = self.work(&go_on) {
                        stop.store(true, Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        ensure!(self.watch.go_on(), "stopped; run the same again to go on");
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes what is missing until nothing is.
    fn work(&self, go_on: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let mut patience = self.hub.patience();
        while go_on() {
            let blocks = self.lock().runs.pop();
            let Some(blocks) = blocks else { return Ok(()) };
            let mut run = Run { blocks, begun: Vec::with_capacity(BLOCK as usize) };
            while run.blocks.start < run.blocks.end && go_on() {
                let before = run.reached();
                let failure = self.bring(&mut run, go_on);
                if run.reached() > before {
                    patience.renew();
                }
                if let Err(failure) = failure {
                    patience.after(failure, go_on)?;
                }
            }
        }
        Ok(())
    }

    /// Brings blocks, and takes those that are there from `run`.
    fn bring(&self, run: &mut Run, go_on: &dyn Fn() -> bool) -> Result<(), Failure> {
        let (start, end) = (run.reached(), (run.blocks.end as u64 * BLOCK).min(self.remote.size));
        let is_whole = self.whole_only.load(Relaxed);
        let range = (!is_whole).then_some(start..end);
        let mut response = self.hub.get(self.url, range)?;
        let wrong = |what: String| Failure::Never(anyhow!("{}: {what}", self.url));
        if response.status() == 200 {
            // All of it from the beginning on, then: what is behind these blocks comes by the same connection, and what is there is passed over.
            self.whole_only.store(true, Relaxed);
            self.lock().runs.clear();
            run.blocks.end = usize::try_from(self.remote.size.div_ceil(BLOCK)).unwrap_or(usize::MAX);
        } else {
            let said =
                response.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or("");
            let wanted = format!("bytes {start}-{}/{}", end - 1, self.remote.size);
            if said != wanted {
                return Err(wrong(format!(
                    "the server sends {said:?} and not {wanted:?}: the file is another than its list says"
                )));
            }
        }
        let mut skip = if response.status() == 200 { start } else { 0 };
        let body = response.body_mut().as_reader();
        let mut body = io::BufReader::with_capacity(PIECE, body);
        let breaks =
            |e: io::Error| Failure::Later(format!("{}: the connection breaks off: {e}", self.url), None);
        let mut buffer = vec![0; PIECE];
        while skip > 0 && go_on() {
            let most = skip.min(PIECE as u64) as usize;
            body.read_exact(&mut buffer[..most]).map_err(breaks)?;
            skip -= most as u64;
        }
        while run.blocks.start < run.blocks.end {
            let bytes = bytes_of(run.blocks.start, self.remote.size) as usize;
            while run.begun.len() < bytes {
                if !go_on() {
                    return Ok(());
                }
                // What has come of a block before its connection breaks off is not asked for again.
                let most = buffer.len().min(bytes - run.begun.len());
                let read = body.read(&mut buffer[..most]).map_err(breaks)?;
                if read == 0 {
                    return Err(breaks(io::ErrorKind::UnexpectedEof.into()));
                }
                run.begun.extend_from_slice(&buffer[..read]);
            }
            self.keep(run.blocks.start, &run.begun).map_err(Failure::Never)?;
            run.begun.clear();
            run.blocks.start += 1;
        }
        Ok(())
    }

    /// This block is here.
    fn keep(&self, block: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let full = || format!("cannot write {}", self.part.display());
        if self.lock().journal.there()[block] {
            return Ok(());
        }
        write_at(self.file, bytes, block as u64 * BLOCK).with_context(full)?;
        let mut queue = self.lock();
        if queue.journal.there()[block] {
            return Ok(());
        }
        queue.journal.add(block).with_context(full)?;
        drop(queue);
        self.came.fetch_add(bytes.len() as u64, Relaxed);
        self.watch.came(bytes.len() as u64);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the whole file is the one that the hub has.
fn check(remote: &Remote, part: &Path, watch: &dyn Watch) -> anyhow::Result<()> {
    let Some(wanted) = &remote.sha256 else { return Ok(()) };
    let mut digest = Sha256::new();
    let mut file = File::open(part)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        ensure!(watch.go_on(), "stopped; run the same again to go on");
    }
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        found.eq_ignore_ascii_case(wanted),
        "{} is damaged: its SHA-256 is {found}, and the hub says {wanted}; it is fetched anew when the same is run again",
        remote.path
    );
    Ok(())
}

/// Runs of missing blocks, as long as one request asks for, the last first.
fn runs(there: &[bool]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for block in (0..there.len()).filter(|block| !there[*block]) {
        match runs.last_mut() {
            Some(run) if run.end == block && run.len() < BLOCKS => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs.reverse();
    runs
}

/// Bytes of a block of a file of this size.
fn bytes_of(block: usize, size: u64) -> u64 {
    BLOCK.min(size - block as u64 * BLOCK)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    // Each connection has a place of its own in the file only where the system has such a call.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
    io::Write::write_all(&mut file, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_asked_for_in_runs() {
        let there = [true, false, false, true, false];
        assert_eq!(runs(&there), [4..5, 1..3]);
        assert_eq!(runs(&[false; 17]), [16..17, 8..16, 0..8]);
        assert!(runs(&[true; 3]).is_empty() && runs(&[]).is_empty());
        assert_eq!((bytes_of(0, 10), bytes_of(1, BLOCK + 1)), (10, 1));
    }
}
