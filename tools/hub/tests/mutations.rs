//! Answers of a hub that are not what they should be: an error, and no panic, whatever they are.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use yuan_hub::{
    Hub, Repository,
    download::{Watch, download},
};

/// Mutated answers. `YUAN_HUB_MUTATIONS` has another number.
const CASES: usize = 1200;

const HUGGING_FACE: &str = r#"{"sha": "c0ffee", "siblings": [{"rfilename": "config.json", "size": 12}, {"rfilename": "m.bin", "size": 12, "lfs": {"sha256": "7509e5bda0c762d2bac7f90d758b5b2263fa01ccbc542ab5e3df163be08e6ca9", "size": 12}}]}"#;
const MODEL_SCOPE: &str = r#"{"Code": 200, "Data": {"Files": [{"Path": "config.json", "Size": 12, "Sha256": "", "Type": "blob"}, {"Path": "x", "Size": 0, "Type": "tree"}]}}"#;
const FILE: &str = "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: 12\r\nContent-Range: bytes 0-11/12\r\n\r\nhello world!";

/// A generator of numbers, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    /// One to three changes: bytes, pieces left out or twice, and numbers and words as attackers like them.
    fn mutate(&mut self, text: &str) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "0",
            "-1",
            "18446744073709551615",
            "18446744073709551616",
            "1e308",
            "null",
            "[]",
            "{}",
            "\"\"",
            "\"../../x\"",
            "\"/etc/passwd\"",
            "\"a\\u0000b\"",
            "true",
            "\r\n",
            "\"C:\\\\x\"",
            "9223372036854775807",
        ];
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=self.below(3) {
            let (at, end) = (self.below(bytes.len()), self.below(12));
            let range = at..(at + end).min(bytes.len());
            match self.below(5) {
                0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = self.below(256) as u8),
                1 => drop(bytes.drain(range)),
                2 => {
                    let piece = bytes[range].to_vec();
                    drop(bytes.splice(at..at, piece));
                }
                3 => bytes.truncate(at),
                // In the place of a whole number or text.
                _ => {
                    let is_value = |byte: &u8| byte.is_ascii_alphanumeric();
                    let begin = bytes[..at].iter().rposition(|byte| !is_value(byte)).map_or(0, |i| i + 1);
                    let end =
                        bytes[at..].iter().position(|byte| !is_value(byte)).map_or(bytes.len(), |i| at + i);
                    let word = WORDS[self.below(WORDS.len())].bytes();
                    drop(bytes.splice(begin..end.max(begin), word));
                }
            }
        }
        bytes
    }
}

/// What the server says next: to questions for the list, and for files.
type Said = Arc<Mutex<(Vec<u8>, Vec<u8>)>>;

fn server() -> (String, Said) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let said = Said::default();
    let saying = said.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let _ = lines.take_while(|line| !line.is_empty()).count();
            let said = saying.lock().unwrap();
            let reply = if first.contains("/api/models/") || first.contains("/repo/files") {
                &said.0
            } else {
                &said.1
            };
            let _ = stream.write_all(reply);
        }
    });
    (address, said)
}

fn list(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

struct Nobody;

impl Watch for Nobody {
    fn came(&self, _: u64) {}
    fn went(&self, _: u64) {}
    fn go_on(&self) -> bool {
        true
    }
}

#[test]
fn a_strange_answer_is_an_error() {
    let cases = std::env::var("YUAN_HUB_MUTATIONS").map_or(CASES, |cases| cases.parse().unwrap());
    let (address, said) = server();
    let mut random = Random(1);
    let (mut sound, mut refused) = (0, 0);
    for case in 0..cases {
        let (name, text) = if case % 2 == 0 { ("hf:a/b", HUGGING_FACE) } else { ("ms:a/b", MODEL_SCOPE) };
        // A third of them is of the list's text, a third of its head too, a third of the file.
        let (answer, file) = match case / 2 % 3 {
            0 => (list(&random.mutate(text)), FILE.as_bytes().to_vec()),
            1 => {
                (random.mutate(&String::from_utf8(list(text.as_bytes())).unwrap()), FILE.as_bytes().to_vec())
            }
            _ => (list(text.as_bytes()), random.mutate(FILE)),
        };
        *said.lock().unwrap() = (answer, file);
        let repository = Repository::parse(name).unwrap();
        let hub = Hub::new(&repository, Some(&address));
        let mut hub = hub.hurried(Duration::from_micros(1), Duration::from_millis(300));
        let folder = tempfile::tempdir().unwrap();
        match hub.files() {
            Err(error) => {
                refused += 1;
                assert!(!format!("{error:#}").is_empty());
            }
            Ok(files) => {
                // A size beyond all disks is refused by whoever asks for room.
                for remote in files.iter().filter(|remote| remote.size < 1 << 20) {
                    let path = folder.path().join("inside").join("file");
                    match download(&hub, remote, &path, 1, &Nobody) {
                        Err(_) => refused += 1,
                        Ok(()) => {
                            sound += 1;
                            let there = std::fs::read(&path).unwrap();
                            assert_eq!(there.len() as u64, remote.size, "case {case}");
                            let _ = std::fs::remove_file(&path);
                        }
                    }
                }
            }
        }
        assert!(
            std::fs::read_dir(folder.path()).unwrap().all(|entry| entry.unwrap().file_name() == "inside")
        );
    }
    assert!(sound > cases / 20 && refused > cases / 20, "{sound} were sound, {refused} were refused");
}
