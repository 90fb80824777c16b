//! A hub on this machine, of one repository `a/b`: a folder's files, slowly, and with what goes wrong on the way.
#![allow(dead_code)]

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use serde_json::json;
use sha2::{Digest, Sha256};

/// Bytes that are sent at a time.
const PIECE: usize = 1 << 16;

/// No brake.
pub const FAST: u64 = 1 << 40;

pub struct Hub {
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    list: String,
    /// Bytes of a second over all connections.
    rate: u64,
    line: Mutex<()>,
    requests: AtomicU64,
    /// By file, the bytes that were sent of it.
    sent: Mutex<HashMap<String, u64>>,
    faults: Mutex<Faults>,
    released: Condvar,
}

/// What goes wrong with containers.
#[derive(Default)]
struct Faults {
    /// Bytes that are not sent.
    held: Vec<Range<u64>>,
    /// Replies that wait for them.
    waiting: usize,
    /// A byte that is another one.
    lie: Option<u64>,
}

impl Hub {
    /// Of the files in `folder`. One of four replies breaks off in its midst, and one of nine requests is refused for now.
    pub fn new(folder: &Path, rate: u64) -> Self {
        let mut siblings = Vec::new();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let name = name.into_string().unwrap();
            let size = fs::metadata(folder.join(&name)).unwrap().len();
            let lfs = json!({ "sha256": sha256(&folder.join(&name)), "size": size });
            // As on the hub: texts have no digest.
            let lfs = if name.ends_with(".json") { serde_json::Value::Null } else { lfs };
            siblings.push(json!({ "rfilename": name, "size": size, "lfs": lfs }));
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            folder: folder.into(),
            list: json!({ "sha": "c0ffee", "siblings": siblings }).to_string(),
            rate,
            line: Mutex::default(),
            requests: AtomicU64::new(0),
            sent: Mutex::default(),
            faults: Mutex::default(),
            released: Condvar::new(),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = serving.clone();
                thread::spawn(move || shared.answer(stream));
            }
        });
        Self { address, shared }
    }

    /// Replies stop before these bytes of a container.
    pub fn hold(&self, ranges: Vec<Range<u64>>) {
        self.shared.faults.lock().unwrap().held = ranges;
    }

    /// They go on.
    pub fn release(&self) {
        self.hold(Vec::new());
        self.shared.released.notify_all();
    }

    /// Replies that have stopped.
    pub fn waiting(&self) -> usize {
        self.shared.faults.lock().unwrap().waiting
    }

    /// This byte of a container is another one from now on; none is.
    pub fn lie(&self, at: Option<u64>) {
        self.shared.faults.lock().unwrap().lie = at;
    }

    /// The bytes that were sent of a file.
    pub fn sent(&self, name: &str) -> u64 {
        self.shared.sent.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let range = lines
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let number = self.requests.fetch_add(1, Relaxed);
        let mut head = |status: &str, more: &str, length: u64| {
            write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n")
                .ok()
        };
        if number % 9 == 8 {
            return head("503 Service Unavailable", "Retry-After: 0\r\n", 0);
        }
        if path == "/api/models/a/b/revision/main?blobs=true" {
            head("200 OK", "", self.list.len() as u64)?;
            return stream.write_all(self.list.as_bytes()).ok();
        }
        let Some(name) = path.strip_prefix("/a/b/resolve/c0ffee/") else {
            return head("404 Not Found", "", 0);
        };
        let mut file = File::open(self.folder.join(name)).ok()?;
        let size = file.metadata().ok()?.len();
        let (start, end) = match range.as_deref().and_then(|range| range.split_once('-')) {
            Some((start, end)) => (start.parse().ok()?, end.parse::<u64>().ok()?.min(size - 1) + 1),
            None => (0, size),
        };
        head(
            "206 Partial Content",
            &format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1),
            end - start,
        )?;
        let end = if number % 4 == 3 { start + (end - start) / 2 } else { end };
        file.seek(SeekFrom::Start(start)).ok()?;
        let mut left = file.take(end - start);
        let mut at = start;
        let mut piece = vec![0; PIECE];
        loop {
            let read = left.read(&mut piece).ok()?;
            if read == 0 {
                return Some(());
            }
            let line = self.line.lock().unwrap();
            thread::sleep(Duration::from_secs_f64(read as f64 / self.rate as f64));
            drop(line);
            if name.ends_with(".gguf") {
                self.spoil(&mut piece[..read], at);
            }
            at += read as u64;
            stream.write_all(&piece[..read]).ok()?;
            *self.sent.lock().unwrap().entry(name.to_owned()).or_default() += read as u64;
        }
    }
}

impl Shared {
    /// Waits until these bytes of a container may be sent, and changes what is to be wrong in them.
    fn spoil(&self, piece: &mut [u8], at: u64) {
        let end = at + piece.len() as u64;
        let mut faults = self.faults.lock().unwrap();
        faults.waiting += 1;
        let is_held = |faults: &mut Faults| faults.held.iter().any(|held| held.start < end && at < held.end);
        let mut faults = self.released.wait_while(faults, is_held).unwrap();
        faults.waiting -= 1;
        if let Some(lie) = faults.lie.filter(|lie| (at..end).contains(lie)) {
            piece[(lie - at) as usize] ^= 1;
        }
    }
}

pub fn sha256(path: &Path) -> String {
    let (mut file, mut digest) = (File::open(path).unwrap(), Sha256::new());
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).unwrap() {
            0 => break,
            read => digest.update(&piece[..read]),
        }
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
