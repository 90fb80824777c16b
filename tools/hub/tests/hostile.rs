//! A server that cuts, stalls, lies and leads away: in the end the file is the hub's, or there is none.

mod common;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use common::{Fault, SIZE, Server, contents, sha256};
use yuan_hub::{
    Hub, Remote, Repository,
    download::{Watch, download},
};

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
        let before = server.requests();
        assert_eq!(fetch(&hub, &files[1], folder.path(), 1, u64::MAX).1, SIZE as u64);
        assert_eq!(server.requests(), before);
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
    let sent = server.sent();
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
