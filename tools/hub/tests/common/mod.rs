//! A hub on this machine that does one thing wrong.
#![allow(dead_code)]

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};
use yuan_hub::{Hub, Repository};

pub const SIZE: usize = 21_000_123;

/// What a server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Three of four replies break off somewhere.
    Cuts,
    /// Every fifth reply stops coming.
    Stalls,
    /// Two of three requests are refused for now.
    Busy,
    /// Files are elsewhere, where no token may be sent.
    Leads,
    /// It knows no parts.
    Whole,
    /// The file has other bytes than the list says.
    Other,
    /// The file is shorter than the list says.
    Shorter,
    /// It is not given to anybody.
    Closed,
    /// The first reply with the first byte has another one, and nothing else comes before there is a second such reply.
    LiesOnce,
    /// Nothing comes of what begins before [`HELD`].
    Holds,
}

/// See [`Fault::Holds`].
pub const HELD: usize = 16 << 20;

pub struct Server {
    address: String,
    done: Arc<Done>,
}

#[derive(Default)]
struct Done {
    requests: AtomicUsize,
    sent: AtomicU64,
    /// Replies with the first byte.
    beginnings: AtomicUsize,
    /// Requests by what they asked for.
    asked: Mutex<HashMap<String, usize>>,
}

pub fn contents() -> Vec<u8> {
    let mut state = 7u64;
    let word = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..SIZE).map(word).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    pub fn new(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let done: Arc<Done> = Arc::default();
        let server = Self { address: address.clone(), done: done.clone() };
        thread::spawn(move || {
            let bytes = Arc::new(contents());
            for stream in listener.incoming().map_while(Result::ok) {
                let (bytes, address, done) = (bytes.clone(), address.clone(), done.clone());
                thread::spawn(move || answer(stream, fault, &bytes, &address, &done));
            }
        });
        server
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.done.requests.load(Relaxed)
    }

    /// Bytes of files that were sent.
    pub fn sent(&self) -> u64 {
        self.done.sent.load(Relaxed)
    }

    pub fn hub(&self) -> Hub {
        let repository = Repository::parse("hf:a/b").unwrap();
        Hub::new(&repository, Some(&self.address))
            .hurried(Duration::from_millis(5), Duration::from_millis(400))
    }
}

/// Answers one request; the connection ends behind it.
fn answer(mut stream: TcpStream, fault: Fault, bytes: &[u8], address: &str, done: &Done) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let number = done.requests.fetch_add(1, Relaxed);
    let mut head = |status: &str, more: &str, length: usize| {
        write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n")
            .ok()
    };
    if path.starts_with("/api/models/a/b/revision/main") {
        let list = format!(
            r#"{{"sha": "c0ffee", "siblings": [{{"rfilename": "config.json", "size": 2}}, {{"rfilename": "x y.bin", "size": 99, "lfs": {{"sha256": "{}", "size": {SIZE}}}}}]}}"#,
            sha256(bytes)
        );
        head("200 OK", "", list.len())?;
        return stream.write_all(list.as_bytes()).ok();
    }
    if fault == Fault::Leads && path.starts_with("/a/b/resolve/") {
        // Another host by its name.
        let elsewhere = address.replace("127.0.0.1", "localhost");
        return head("302 Found", &format!("Location: {elsewhere}/elsewhere\r\n"), 0);
    }
    assert!(
        path == "/a/b/resolve/c0ffee/x%20y.bin" || (fault == Fault::Leads && path == "/elsewhere"),
        "{path}"
    );
    if fault == Fault::Closed {
        return head("403 Forbidden", "", 0);
    }
    // Twice for each part: counted over all parts, whoever asks for many at once could be unlucky as often as it likes.
    let part = headers.get("range").cloned().unwrap_or_default();
    let asked = *done.asked.lock().unwrap().entry(part).and_modify(|n| *n += 1).or_insert(0);
    if fault == Fault::Busy && asked % 3 < 2 {
        return head("503 Service Unavailable", "Retry-After: 0\r\n", 0);
    }
    let size = if fault == Fault::Shorter { SIZE - 5 } else { SIZE };
    let range = headers.get("range").filter(|_| fault != Fault::Whole);
    let range = range.and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse::<usize>().ok()?..end.parse::<usize>().ok()?.min(size - 1) + 1)
    });
    let (range, status, said) = match range {
        Some(range) => {
            let said = format!("Content-Range: bytes {}-{}/{size}\r\n", range.start, range.end - 1);
            (range, "206 Partial Content", said)
        }
        None => (0..size, "200 OK", String::new()),
    };
    head(status, &said, range.len())?;
    let start = range.start;
    let mut body = bytes[range].to_vec();
    let beginnings = done.beginnings.fetch_add(usize::from(start == 0), Relaxed);
    if fault == Fault::Other || (fault, start, beginnings) == (Fault::LiesOnce, 0, 0) {
        body[0] ^= 1;
    }
    if fault == Fault::Holds && start < HELD || fault == Fault::LiesOnce && start > 0 && beginnings < 2 {
        thread::sleep(Duration::from_secs(5));
        return Some(());
    }
    let cut = match fault {
        Fault::Cuts if !number.is_multiple_of(4) => body.len() * (number % 7 + 3) / 10,
        Fault::Stalls if number.is_multiple_of(5) => body.len() / 2,
        _ => body.len(),
    };
    done.sent.fetch_add(cut as u64, Relaxed);
    stream.write_all(&body[..cut]).ok()?;
    if fault == Fault::Stalls && cut < body.len() {
        thread::sleep(Duration::from_secs(5));
    }
    Some(())
}
