//! A server that cuts, stalls, lies and leads away: in the end the file is the hub's, or there is none.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};
use yuan_hub::{
    Hub, Remote, Repository,
    download::{Watch, download},
};

const SIZE: usize = 21_000_123;

/// What a server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
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
}

struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
}

fn contents() -> Vec<u8> {
    let mut state = 7u64;
    let word = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..SIZE).map(word).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    fn new(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (requests, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let server = Self { address: address.clone(), requests: requests.clone(), sent: sent.clone() };
        thread::spawn(move || {
            let bytes = Arc::new(contents());
            for stream in listener.incoming().map_while(Result::ok) {
                let (bytes, address) = (bytes.clone(), address.clone());
                let (requests, sent) = (requests.clone(), sent.clone());
                thread::spawn(move || answer(stream, fault, &bytes, &address, &requests, &sent));
            }
        });
        server
    }

    fn hub(&self) -> Hub {
        let repository = Repository::parse("hf:a/b").unwrap();
        Hub::new(&repository, Some(&self.address))
            .hurried(Duration::from_millis(5), Duration::from_millis(400))
    }
}

/// Answers one request; the connection ends behind it.
fn answer(
    mut stream: TcpStream,
    fault: Fault,
    bytes: &[u8],
    address: &str,
    requests: &AtomicUsize,
    sent: &AtomicU64,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let number = requests.fetch_add(1, Relaxed);
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
    if fault == Fault::Busy && !number.is_multiple_of(3) {
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
    let mut body = bytes[range].to_vec();
    if fault == Fault::Other {
        body[0] ^= 1;
    }
    let cut = match fault {
        Fault::Cuts if !number.is_multiple_of(4) => body.len() * (number % 7 + 3) / 10,
        Fault::Stalls if number.is_multiple_of(5) => body.len() / 2,
        _ => body.len(),
    };
    sent.fetch_add(cut as u64, Relaxed);
    stream.write_all(&body[..cut]).ok()?;
    if fault == Fault::Stalls && cut < body.len() {
        thread::sleep(Duration::from_secs(5));
    }
    Some(())
}

/// Counts what came, and stops after so many bytes.
struct Seen {
    bytes: AtomicU64,
    most: u64,
}

impl Watch for Seen {
    fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    fn went(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    fn go_on(&self) -> bool {
        self.bytes.load(Relaxed) < self.most
    }
}

fn fetch(
    hub: &Hub,
    remote: &Remote,
    folder: &Path,
    connections: usize,
    most: u64,
) -> (anyhow::Result<()>, u64) {
    let seen = Seen { bytes: AtomicU64::new(0), most };
    let result = download(hub, remote, &folder.join("x"), connections, &seen);
    (result, seen.bytes.into_inner())
}

#[test]
fn whatever_the_server_does_the_file_is_the_hubs() {
    let bytes = contents();
    for fault in [Fault::None, Fault::Cuts, Fault::Stalls, Fault::Busy, Fault::Leads, Fault::Whole] {
        let server = Server::new(fault);
        let mut hub = server.hub();
        let files = hub.files().unwrap();
        assert_eq!((&*files[0].path, files[0].size, &files[0].sha256), ("config.json", 2, &None));
        assert_eq!((files[1].size, files[1].sha256.as_deref()), (SIZE as u64, Some(&*sha256(&bytes))));
        let folder = tempfile::tempdir().unwrap();
        let (result, came) = fetch(&hub, &files[1], folder.path(), 4, u64::MAX);
        result.unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
        assert_eq!(came, SIZE as u64, "{fault:?}");
        assert!(fs::read(folder.path().join("x")).unwrap() == bytes, "{fault:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{fault:?}: nothing lies beside it");
        // What is there is not asked for again.
        let before = server.requests.load(Relaxed);
        assert_eq!(fetch(&hub, &files[1], folder.path(), 1, u64::MAX).1, SIZE as u64);
        assert_eq!(server.requests.load(Relaxed), before);
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_where_it_was() {
    let server = Server::new(Fault::None);
    let mut hub = server.hub();
    let remote = hub.files().unwrap().pop().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut last = 0;
    for most in (1..).map(|n| n * 5_000_000).take_while(|most| *most < SIZE as u64) {
        let (result, came) = fetch(&hub, &remote, folder.path(), 2, most);
        assert!(result.unwrap_err().to_string().contains("run the same again"));
        assert!(came >= most && came >= last && !folder.path().join("x").exists());
        last = came;
    }
    let (result, _) = fetch(&hub, &remote, folder.path(), 2, u64::MAX);
    result.unwrap();
    assert!(fs::read(folder.path().join("x")).unwrap() == contents());
    // A run that is stopped loses less than a request of each connection.
    let sent = server.sent.load(Relaxed);
    assert!(sent < SIZE as u64 + 5 * 2 * 9 * (4 << 20), "{sent}");
}

#[test]
fn what_is_not_the_hubs_file_never_gets_its_name() {
    for (fault, part) in
        [(Fault::Other, "damaged"), (Fault::Shorter, "another than"), (Fault::Closed, "HF_TOKEN")]
    {
        let server = Server::new(fault);
        let mut hub = server.hub();
        let remote = hub.files().unwrap().pop().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (result, _) = fetch(&hub, &remote, folder.path(), 3, u64::MAX);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains(part), "{fault:?}: {error}");
        assert!(!folder.path().join("x").exists());
    }
    let nobody = Hub::new(&Repository::parse("hf:a/b").unwrap(), Some("http://127.0.0.1:9"));
    let mut nobody = nobody.hurried(Duration::from_millis(1), Duration::from_millis(100));
    assert!(nobody.files().unwrap_err().to_string().contains("tried 6 times"));
}
