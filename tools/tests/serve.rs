//! `yuan serve`: from the command to a served model and back.
#![cfg(unix)]

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    ops::{Deref, DerefMut},
    process::{Child, Command, Stdio},
};

use common::{Folder, complaint, program, usage};

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// A server that does not outlive its test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deref for Server {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// A server of the demo model, and where it is.
fn served(folder: &Folder, options: &[&str]) -> (Server, String) {
    let mut child = program("yuan")
        .args(["serve", "--demo", "--port", "0"])
        .args(options)
        .env("XDG_CACHE_HOME", folder.0.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("is served at")).expect("it is ready");
    std::thread::spawn(move || lines.for_each(drop));
    let address = line.split("http://").nth(1).unwrap().split(':').collect::<Vec<_>>()[..2].join(":");
    (Server(child), address)
}

fn request(address: &str, head: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    stream
}

fn reply(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

const ENDLESS: &str = r#"{"prompt": "Ruth 1:1<sep>", "ignore_eos": true, "stream": true}"#;

#[test]
fn the_demo_model_is_served_until_it_is_told_to_stop() {
    let folder = Folder::new();
    let (mut child, address) = served(&folder, &["--sequences", "2"]);
    let found = reply(request(&address, "GET /v1/models", ""));
    assert!(found.starts_with("HTTP/1.1 200") && found.contains("\"demo-model.q4_k\""), "{found}");
    // An answer that runs is ended when the server is told to stop, and its client has all of it.
    let mut stream = BufReader::new(request(&address, "POST /v1/completions", ENDLESS));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    signal(&child, "-TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(&address).is_err());
}

#[test]
fn a_drain_of_nothing_cuts_what_runs_and_a_second_signal_does_not_wait() {
    let folder = Folder::new();
    for second in [false, true] {
        let (mut child, address) = served(&folder, &["--drain", if second { "1000" } else { "0" }]);
        // As many as keep it busy for minutes.
        let body = ENDLESS.replace("\"Ruth 1:1<sep>\"", &format!("{:?}", vec!["Ruth 1:1<sep>"; 4000]));
        let mut stream = BufReader::new(request(&address, "POST /v1/completions", &body));
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        signal(&child, "-TERM");
        if second {
            // The first has arrived when there is no new connection.
            while TcpStream::connect(&address).is_ok() {}
            signal(&child, "-TERM");
            assert_eq!(child.wait().unwrap().code(), Some(130));
        } else {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            assert!(rest.contains("the server is stopping") && !rest.contains("[DONE]"));
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
    }
}

#[test]
fn what_cannot_be_served_is_said() {
    let folder = Folder::new();
    assert!(complaint("yuan", &["serve", "--port", "0"]).contains("name a model"));
    assert!(usage("yuan", &["serve", "m.gguf", "--sequences", "0"]).contains("--sequences"));
    let none = folder.path("none.gguf");
    assert!(complaint("yuan", &["serve", &none, "--port", "0"]).contains("none.gguf"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert!(complaint("yuan", &["serve", "--demo", "--port", &port]).contains("--port"));
    let keys = folder.path("keys");
    std::fs::write(&keys, "\n").unwrap();
    assert!(
        complaint("yuan", &["serve", "--demo", "--port", "0", "--api-key-file", &keys]).contains("no key")
    );
    assert!(complaint("yuan", &["serve", &none, "--port", "0", "--cors", "example.org"]).contains("origin"));
}

/// The options that `yuan serve` prints.
fn printed(arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let mut command = program("yuan");
    command.arg("serve").args(arguments).arg("--print-config").envs(variables.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn options_stand_in_a_file_in_the_environment_and_on_the_command_line() {
    let folder = Folder::new();
    let file = folder.path("serve.toml");
    let text = "model = \"m.gguf\"\nsequences = 3\nqueue = 5\ndrain = 7\nlook-ahead = true\nmemory = \"8G\"\ncors = [\"http://a.org\", \"http://b.org\"]\n";
    std::fs::write(&file, text).unwrap();
    let from_file = printed(&["--config", &file], &[]);
    for line in text.lines() {
        assert!(from_file.iter().any(|printed| printed == line), "{line} in {from_file:?}");
    }
    assert!(from_file.contains(&"port = 8080".into()), "what nobody has said");
    let variables =
        [("YUAN_QUEUE", "6"), ("YUAN_DRAIN", "8"), ("YUAN_THREADS_BATCH", "2"), ("YUAN_CONFIG", &file)];
    let all = printed(&["--drain", "9", "other.gguf"], &variables);
    for line in ["model = \"other.gguf\"", "sequences = 3", "queue = 6", "drain = 9", "threads-batch = 2"] {
        assert!(all.iter().any(|printed| printed == line), "{line} in {all:?}");
    }
    // What is printed is such a file.
    let again = folder.path("again.toml");
    std::fs::write(&again, all.join("\n")).unwrap();
    assert_eq!(printed(&["--config", &again], &[]), all);

    for (text, word) in [
        ("sequence = 3", "there is no option \"sequence\""),
        ("config = \"a\"", "config"),
        ("queue = [1]", "queue"),
        ("queue =", "TOML"),
    ] {
        std::fs::write(&file, text).unwrap();
        let said = complaint("yuan", &["serve", "m.gguf", "--config", &file]);
        assert!(said.contains(word) && said.contains("serve.toml"), "{said}");
    }
    std::fs::write(&file, "sequences = 0").unwrap();
    assert!(usage("yuan", &["serve", "m.gguf", "--config", &file]).contains("--sequences"));
    assert!(complaint("yuan", &["serve", "--config=none.toml"]).contains("none.toml"));
    // A model that is named in the file needs none on the command line, and neither does the demo.
    std::fs::write(&file, "demo = true\nport = 0").unwrap();
    assert!(printed(&["--config", &file], &[]).contains(&"demo = true".into()));
    std::fs::write(&file, "model = \"none.gguf\"\nport = 0").unwrap();
    assert!(complaint("yuan", &["serve", "--config", &file]).contains("none.gguf"));
}

#[test]
fn requests_are_logged_without_what_is_said_in_them() {
    let folder = Folder::new();
    let log = folder.path("log");
    let mut child = program("yuan")
        .args(["serve", "--demo", "--port", "0", "--log", "json"])
        .env("XDG_CACHE_HOME", folder.0.path())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .map(Server)
        .unwrap();
    let lines = || std::fs::read_to_string(&log).unwrap();
    let address = loop {
        if let Some(found) = lines().split_once("is served at http://") {
            break found.1.split(':').take(2).collect::<Vec<_>>().join(":");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let head = "POST /v1/completions HTTP/1.1\r\nX-Request-Id: mine-7";
    let body = r#"{"prompt": "Ruth 1:1<sep>", "max_tokens": 9, "ignore_eos": true}"#;
    let length = body.len();
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(
        stream,
        "{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    assert!(reply(stream).contains("x-request-id: mine-7"));
    assert!(reply(request(&address, "GET /none", "")).contains("x-request-id: req-"));
    signal(&child, "-TERM");
    child.wait().unwrap();
    let text = lines();
    assert!(!text.contains("Ruth"), "{text}");
    let entries = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let entries: Vec<_> = entries.collect();
    let of = |message: &str| entries.iter().find(|entry| entry["message"] == message).expect(message);
    let (answered, replied) = (of("answered"), of("replied"));
    assert_eq!((&answered["answer"], &answered["span"]["id"]), (&9.into(), &"mine-7".into()));
    assert!(answered["prompt"].as_u64() > Some(1) && answered["timestamp"].is_string());
    assert_eq!((&replied["path"], &replied["status"]), (&"/v1/completions".into(), &200.into()));
    assert!(entries.iter().any(|entry| entry["path"] == "/none" && entry["status"] == 404));
}

/// What `yuan chat` prints for these lines, with a server.
fn talked(address: &str, options: &[&str], lines: &[&str]) -> std::process::Output {
    let mut child = program("yuan")
        .args(["chat", "--server", &format!("http://{address}/v1/")])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_conversation_with_a_server_is_the_one_without() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let (mut child, address) = served(&folder, &[]);
    let file = folder.path("talk.json");
    let (save, load) = (format!("/save {file}"), format!("/load {file}"));
    let options = [
        "-n",
        "24",
        "--temp",
        "0.8",
        "--seed",
        "5",
        "--top-k",
        "30",
        "--stop",
        "never",
        "--logit-bias",
        "7-inf",
    ];
    let lines = ["/system 用诗回答。", "Psalms 151:1", "Ruth 1:1", "/undo", "秋夜 杜甫", &save];
    // A seed is one of a request here, and one of a conversation there: only the first answer has the same.
    let first = common::out(&common::chat(&model, &options, &lines[..2]));
    let said = talked(&address, &options, &lines);
    assert!(said.status.success(), "{}", common::err(&said));
    assert!(common::err(&said).contains("[taken back: Ruth 1:1]"), "{}", common::err(&said));
    assert!(common::out(&said).starts_with(&first));
    let greedy = ["-n", "24", "--ignore-eod"];
    let questions = ["Psalms 151:1", "秋夜 杜甫", "Ruth 1:2"];
    let wanted = common::out(&common::chat(&model, &greedy, &questions));
    assert_eq!(common::out(&talked(&address, &greedy, &questions)), wanted);

    // Asked again with other settings, as by hand.
    let lines = [
        "Psalms 151:1",
        "/regenerate",
        "/set n 8",
        "/set temp 0.9",
        "/set seed 3",
        "/regen",
        "/edit Ruth 1:1",
    ];
    let again = common::out(&talked(&address, &greedy, &lines));
    let by_hand = |question| {
        let options = ["-n", "8", "--ignore-eod", "--temp", "0.9", "--seed", "3"];
        common::out(&talked(&address, &options, &[question]))
    };
    let first = common::out(&talked(&address, &greedy, &lines[..1]));
    assert_eq!(again, first.repeat(2) + &by_hand("Psalms 151:1") + &by_hand("Ruth 1:1"));

    let more = talked(
        &address,
        &["-n", "8", "--json", "--json-schema", r#"{"enum": ["x"]}"#],
        &[&load, "Ruth 2:1", "/stats"],
    );
    let answer: serde_json::Value = serde_json::from_str(common::out(&more).trim()).unwrap();
    assert_eq!((&answer["text"], &answer["finish"]), (&"\"x\"".into(), &"stop".into()));
    assert!(answer["usage"]["prompt_tokens"].as_u64() > Some(40), "{answer}");
    assert!(common::err(&more).contains("[loaded: 2 questions]") && common::err(&more).contains("tok/s"));

    let refused = talked(&address, &["--temp", "-1"], &["Ruth 1:1", "/load /no/such/file"]);
    let told = common::err(&refused);
    for part in ["the server says: a temperature of -1", "check the path", "lines that failed: 2"] {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
    signal(&child, "-TERM");
    child.wait().unwrap();
    assert!(common::err(&talked(&address, &[], &["Ruth 1:1"])).contains("is the server running?"));
    assert!(complaint("yuan", &["chat"]).contains("name a model"));
    let other = program("yuan").args(["chat", "--server", "https://example.org"]).output().unwrap();
    assert!(common::err(&other).contains("begins with http://"));
}

#[test]
fn ctrl_c_stops_the_answer_of_a_server() {
    let folder = Folder::new();
    let (_server, address) = served(&folder, &[]);
    let mut child = program("yuan")
        .args(["chat", "--server", &format!("http://{address}"), "--ignore-eod"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "Ruth 1:1").unwrap();
    let mut text = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(common::err(&output).contains("[stopped]"), "{}", common::err(&output));
}

/// Listens, hands the socket over as systemd does, and becomes the program: `python3 -c THIS PROGRAM ARGUMENTS`.
const ACTIVATE: &str = "
import os, socket, sys
s = socket.socket()
s.bind(('127.0.0.1', 0))
s.listen()
print(s.getsockname()[1], file=sys.stderr, flush=True)
if s.fileno() != 3:
    os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_socket_that_systemd_gives_is_where_it_listens() {
    let folder = Folder::new();
    let yuan = program("yuan");
    let child = Command::new("python3")
        .args(["-c", ACTIVATE])
        .arg(yuan.get_program())
        // Its own place is none of this machine's, so it must not be asked for.
        .args(["serve", "--demo", "--host", "192.0.2.1", "--port", "1"])
        .env("XDG_CACHE_HOME", folder.0.path())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(child) = child else { return common::skip("no python3 to hand a socket over") };
    let mut child = Server(child);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let address = format!("127.0.0.1:{}", lines.next().unwrap());
    assert!(lines.any(|line| line.contains(&format!("is served at http://{address}"))));
    assert!(reply(request(&address, "GET /v1/models", "")).starts_with("HTTP/1.1 200"));
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Killed while it saves again and again: what is there can always be restored, and nothing is beside it.
#[test]
fn a_server_that_is_killed_while_it_saves_loses_nothing() {
    let folder = Folder::new();
    let kept = folder.path("kept");
    let ask = |address: &str, path: &str, body: &str| reply(request(address, &format!("POST {path}"), body));
    let save = r#"{"filename": "talk"}"#;
    for round in 0..4 {
        let (mut child, address) = served(&folder, &["--sessions", &kept, "--sequences", "1"]);
        if round > 0 {
            let restored = ask(&address, "/slots/0?action=restore", save);
            assert!(restored.starts_with("HTTP/1.1 200"), "{restored}");
        }
        let body = r#"{"prompt": "Ruth 1:1<sep>", "max_tokens": 300, "ignore_eos": true}"#;
        assert!(ask(&address, "/v1/completions", body).starts_with("HTTP/1.1 200"));
        while !ask(&address, "/slots/0?action=save", save).starts_with("HTTP/1.1 200") {}
        let saving = std::thread::spawn({
            let address = address.clone();
            move || {
                // Until the server is gone.
                while let Ok(mut stream) = TcpStream::connect(&address) {
                    let head = "POST /slots/0?action=save HTTP/1.1\r\nHost: localhost\r\nConnection: close";
                    let sent = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{save}", save.len());
                    let mut answer = String::new();
                    if sent.is_err() || stream.read_to_string(&mut answer).is_err() {
                        break;
                    }
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(20 + 31 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        saving.join().unwrap();
    }
    let (_child, address) = served(&folder, &["--sessions", &kept]);
    assert!(ask(&address, "/slots/0?action=restore", save).starts_with("HTTP/1.1 200"));
    assert!(ask(&address, "/slots/0?action=save", save).starts_with("HTTP/1.1 200"));
    let names: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["talk"], "the next save clears away what a killed one has left");
}
