//! A file that comes, in blocks over several connections: from where a killed run has stopped, and checked before it has its name.

use std::{
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use sha2::{Digest, Sha256};

use crate::{
    download::Watch,
    hub::{Hub, Remote},
    journal::Journal,
    queue::{Queue, Run, Why},
    retry::Failure,
};

/// Bytes of a block: what a killed run loses of each connection at most.
const BLOCK: u64 = 1 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 18;
/// How often those who wait look whether they should go on.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// A file that comes to its place beside `path`, where it has its full length from the beginning on.
#[derive(Debug)]
pub struct Coming {
    hub: Hub,
    remote: Remote,
    url: String,
    path: PathBuf,
    part: PathBuf,
    list: PathBuf,
    file: File,
    state: Mutex<State>,
    /// Something has come, or is wanted, or has failed.
    pub(crate) changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub queue: Queue,
    journal: Journal,
    /// Bytes that have come.
    pub there: u64,
    /// How often it was given up, and why the last time.
    pub failures: (u64, String),
    /// Whether somebody has asked for bytes that are not there.
    pub is_asked: bool,
    /// Nothing more will come, whatever is asked for.
    pub is_over: bool,
}

impl Coming {
    /// A file of `hub` for `path`: what has come of it is there, and nothing is asked for yet.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn begin(hub: &Hub, remote: &Remote, path: &Path) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let (part, list) = (beside(path, ".part"), beside(path, ".blocks"));
        let blocks = usize::try_from(remote.size.div_ceil(BLOCK))?;
        let identity = hub.identity(remote);
        let on_disk = || format!("cannot write {}", part.display());
        let mut journal = Journal::open(&list, &identity, blocks).with_context(on_disk)?;
        if fs::metadata(&part).map_or(0, |there| there.len()) != remote.size
            && journal.there().contains(&true)
        {
            // Somebody has taken away what the list tells of.
            drop(journal);
            fs::remove_file(&list).with_context(on_disk)?;
            journal = Journal::open(&list, &identity, blocks).with_context(on_disk)?;
        }
        let file =
            File::options().write(true).create(true).truncate(false).open(&part).with_context(on_disk)?;
        file.set_len(remote.size).with_context(on_disk)?;
        let queue = Queue::new(journal.there());
        let is_there = |block: &usize| journal.there()[*block];
        let there = (0..blocks).filter(is_there).map(|block| bytes_of(block, remote.size)).sum();
        let state =
            State { queue, journal, there, failures: (0, String::new()), is_asked: false, is_over: false };
        Ok(Self {
            hub: hub.clone(),
            remote: remote.clone(),
            url: hub.url(&remote.path),
            path: path.into(),
            part,
            list,
            file,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Where its bytes are before all of it is there.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.remote.size
    }

    /// Bytes that are there.
    pub fn there(&self) -> u64 {
        self.lock().there
    }

    /// Brings all that is missing over so many connections, and one more for what somebody waits for; checks it, and gives it its name.
    ///
    /// # Errors
    /// It does not come, or is another than the hub says; what has come is kept for the next run. When `watch` says so.
    pub fn run(&self, connections: usize, watch: &dyn Watch) -> anyhow::Result<()> {
        let done = self.complete(connections, watch);
        if let Err(error) = &done {
            let mut state = self.lock();
            state.failures.0 += 1;
            state.failures.1 = format!("{error:#}");
        }
        self.changed.notify_all();
        done
    }

    fn complete(&self, connections: usize, watch: &dyn Watch) -> anyhow::Result<()> {
        loop {
            self.bring_all(connections, watch)?;
            let Err(error) = check(&self.remote, &self.part, watch) else { break };
            if !watch.go_on() {
                return Err(error);
            }
            // Otherwise somebody has found out meanwhile what is wrong, and it comes again.
            if self.lock().queue.has_all() {
                self.lock().is_over = true;
                // Nothing of it can be believed.
                watch.went(self.remote.size);
                let gone = fs::remove_file(&self.list).and_then(|()| fs::remove_file(&self.part));
                gone.with_context(|| format!("cannot remove {}, which is damaged", self.part.display()))?;
                return Err(error);
            }
        }
        self.file.sync_all().with_context(|| format!("cannot write {}", self.part.display()))?;
        fs::rename(&self.part, &self.path)
            .with_context(|| format!("cannot give {} its name", self.path.display()))?;
        // Without it, the next run would look at the file alone.
        let _ = fs::remove_file(&self.list);
        Ok(())
    }

    fn bring_all(&self, connections: usize, watch: &dyn Watch) -> anyhow::Result<()> {
        let failed = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let go_on = || watch.go_on() && !stop.load(Relaxed);
        let work = |urgent_only| {
            if let Err(error) = self.work(urgent_only, watch, &go_on) {
                stop.store(true, Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        };
        thread::scope(|scope| {
            for connection in 0..=connections.max(1) {
                let work = &work;
                let begin = move || work(connection == 0);
                if let Err(error) = thread::Builder::new().spawn_scoped(scope, begin) {
                    stop.store(true, Relaxed);
                    let error = anyhow::Error::new(error).context("cannot start a thread for a connection");
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    break;
                }
            }
        });
        ensure!(watch.go_on(), "stopped; run the same again to go on");
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes what is missing, or what is waited for, until all is there.
    fn work(&self, urgent_only: bool, watch: &dyn Watch, go_on: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let mut patience = self.hub.patience();
        while let Some(run) = self.next(urgent_only, go_on) {
            let mut run = Begun { run, begun: Vec::new() };
            let mut failed = Ok(());
            while failed.is_ok()
                && !run.run.blocks.is_empty()
                && go_on()
                && !self.lock().queue.yields(&run.run)
            {
                let before = run.reached();
                let failure = self.bring(&mut run, watch, go_on);
                if run.reached() > before {
                    patience.renew();
                }
                if let Err(failure) = failure {
                    failed = patience.after(failure, go_on);
                }
            }
            self.lock().queue.give_back(&run.run);
            self.changed.notify_all();
            failed?;
        }
        Ok(())
    }

    /// What a connection does next; nothing when all is there.
    fn next(&self, urgent_only: bool, go_on: &dyn Fn() -> bool) -> Option<Run> {
        let mut state = self.lock();
        while go_on() && !state.queue.has_all() {
            if let Some(run) = state.queue.next(urgent_only) {
                return Some(run);
            }
            state = self.wait(state);
        }
        None
    }

    /// Brings blocks, and takes those that are there from `run`. It ends early where somebody waits for others.
    fn bring(&self, run: &mut Begun, watch: &dyn Watch, go_on: &dyn Fn() -> bool) -> Result<(), Failure> {
        let (start, end) = (run.reached(), (run.run.blocks.end as u64 * BLOCK).min(self.remote.size));
        let mut response = self.hub.get(&self.url, (run.run.why != Why::All).then_some(start..end))?;
        let wrong = |what: String| Failure::Never(anyhow!("{}: {what}", self.url));
        if response.status() == 200 && run.run.why != Why::All {
            // All of it from the beginning on, then, and by one connection; what is there is passed over.
            let Some(all) = self.lock().queue.take_all(&mut run.run) else { return Ok(()) };
            *run = Begun { run: all, begun: Vec::new() };
        } else if response.status() != 200 {
            let said =
                response.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or("");
            let wanted = format!("bytes {start}-{}/{}", end - 1, self.remote.size);
            if said != wanted {
                return Err(wrong(format!(
                    "the server sends {said:?} and not {wanted:?}: the file is another than its list says"
                )));
            }
        }
        let mut skip = if response.status() == 200 { run.reached() } else { 0 };
        let mut body = io::BufReader::with_capacity(PIECE, response.body_mut().as_reader());
        let breaks =
            |e: io::Error| Failure::Later(format!("{}: the connection breaks off: {e}", self.url), None);
        let mut buffer = vec![0; PIECE];
        while skip > 0 && go_on() {
            let most = skip.min(PIECE as u64) as usize;
            body.read_exact(&mut buffer[..most]).map_err(breaks)?;
            skip -= most as u64;
        }
        while !run.run.blocks.is_empty() {
            let bytes = bytes_of(run.run.blocks.start, self.remote.size) as usize;
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
            self.keep(run.run.blocks.start, &run.begun, watch).map_err(Failure::Never)?;
            run.begun.clear();
            run.run.blocks.start += 1;
            if self.lock().queue.yields(&run.run) {
                break;
            }
        }
        Ok(())
    }

    /// This block has come.
    fn keep(&self, block: usize, bytes: &[u8], watch: &dyn Watch) -> anyhow::Result<()> {
        if !self.lock().queue.begin_writing(block) {
            return Ok(());
        }
        let full = || format!("cannot write {}", self.part.display());
        let on_disk = write_at(&self.file, bytes, block as u64 * BLOCK);
        let mut state = self.lock();
        let on_disk = on_disk.and_then(|()| state.journal.add(block));
        state.queue.end_writing(block, on_disk.is_ok());
        on_disk.with_context(full)?;
        state.there += bytes.len() as u64;
        drop(state);
        self.changed.notify_all();
        watch.came(bytes.len() as u64);
        Ok(())
    }

    /// What has come in this range is not the file's, and is brought again. Returns the bytes that are not there any more.
    pub fn reject(&self, range: Range<u64>) -> Range<u64> {
        let blocks = self.blocks(range);
        let mut state = self.lock();
        for block in blocks.clone() {
            if state.queue.take_back(block) {
                state.there -= bytes_of(block, self.remote.size);
                if let Err(error) = state.journal.take_back(block) {
                    // This run brings it again; one that does not know finds it at the end.
                    tracing::warn!("cannot write {}: {error}", self.list.display());
                }
            }
        }
        self.changed.notify_all();
        blocks.start as u64 * BLOCK..(blocks.end as u64 * BLOCK).min(self.remote.size)
    }

    /// The blocks that have these bytes, as far as the file goes.
    pub(crate) fn blocks(&self, range: Range<u64>) -> Range<usize> {
        let end = range.end.min(self.remote.size);
        (range.start.min(end) / BLOCK) as usize..end.div_ceil(BLOCK) as usize
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until something has changed, or it is time to look whether to go on.
    pub(crate) fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What a connection is bringing.
struct Begun {
    run: Run,
    /// Of the first block.
    begun: Vec<u8>,
}

impl Begun {
    /// The first byte that has not come.
    fn reached(&self) -> u64 {
        self.run.blocks.start as u64 * BLOCK + self.begun.len() as u64
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

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
