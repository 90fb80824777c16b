//! A model that is used while its container comes from a hub that withholds, lies, and breaks off.

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    ops::Range,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Folder, demo_model, err, json, out, program, text};
use hub::{FAST, Hub, sha256};
use serde_json::{Value, json};
use yuan::{
    container::{Container, ExpertView},
    pager::trace::Trace,
};

/// What the program fetches as one, or not at all.
const BLOCK: u64 = 1 << 20;
const PROMPT: &str = "ab";

/// A repository with a container of random weights, of which a short answer touches a small part.
struct Published {
    /// Kept for its files.
    _folder: Folder,
    container: String,
    models: String,
    /// The answer to [`PROMPT`] of the whole model.
    answer: String,
    /// The experts that it touches, the first first, and all that it needs.
    touched: Vec<Range<u64>>,
    needed: Vec<Range<u64>>,
}

impl Published {
    fn new() -> Self {
        let folder = Folder::new();
        let (geometry, repository) = (folder.path("config.json"), folder.path("repository"));
        let config = fs::read_to_string(demo_model().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        // Experts of 8 tiles, which take most of a block.
        config["ffn_hidden_size"] = json!(2048);
        config["intermediate_size"] = json!(2048);
        config["moe_config"]["ffn_hidden_size"] = json!(2048);
        fs::write(&geometry, config.to_string()).unwrap();
        fs::create_dir(&repository).unwrap();
        let (container, trace) = (format!("{repository}/model.q4_k.gguf"), folder.path("trace"));
        text("yuan-quant", &["synth", "--geometry", &geometry, "-o", &container]);
        let run = ["-p", PROMPT, "-n", "2", "--temp", "0", "--ignore-eod"];
        let answer = text("yuan", &[&["generate", &container], &run[..]].concat());
        text("yuan", &[&["trace", &container, "-o", &trace], &run[..]].concat());
        let trace = Trace::read(Path::new(&trace)).unwrap();
        let opened = Container::open(Path::new(&container)).unwrap();
        let range = |layer, expert| {
            let ExpertView::Tiles { bytes, .. } = opened.expert(layer, expert).unwrap() else {
                panic!("experts in tiles")
            };
            let start = bytes.file_offset().unwrap();
            start..start + bytes.len() as u64
        };
        let touched: Vec<_> =
            trace.requests.iter().flat_map(|(l, chosen)| chosen.iter().map(|e| range(*l, *e))).collect();
        let of_tensors = opened.tensors().iter().map(|t| t.offset..t.offset + t.bytes);
        let experts: Vec<_> = (0..opened.config().layers)
            .flat_map(|l| (0..opened.config().experts).map(move |e| (l, e)))
            .map(|(l, e)| range(l, e))
            .collect();
        let mut needed: Vec<_> = of_tensors.filter(|r| !experts.contains(r) || touched.contains(r)).collect();
        needed.push(0..opened.tensors()[0].offset);
        let models = folder.path("models");
        Self { _folder: folder, container, models, answer, touched, needed }
    }

    fn hub(&self, rate: u64) -> Hub {
        Hub::new(Path::new(&self.container).parent().unwrap(), rate)
    }

    fn size(&self) -> u64 {
        fs::metadata(&self.container).unwrap().len()
    }

    /// The blocks of which an answer needs nothing.
    fn spare(&self) -> Vec<Range<u64>> {
        let blocks =
            (0..self.size()).step_by(BLOCK as usize).map(|start| start..self.size().min(start + BLOCK));
        let is_needed =
            |block: &Range<u64>| self.needed.iter().any(|n| n.start < block.end && block.start < n.end);
        blocks.filter(|block| !is_needed(block)).collect()
    }

    fn command(&self, command: &str, hub: &Hub, options: &[&str]) -> Command {
        let mut program = program("yuan");
        program.args([command, "a/b", "--endpoint", &hub.address]).args(options);
        program.env("YUAN_MODELS", &self.models);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        program
    }

    fn generate(&self, hub: &Hub) -> Command {
        let run = ["--while-pulling", "-p", PROMPT, "-n", "2", "--temp", "0", "--ignore-eod"];
        self.command("generate", hub, &run)
    }

    fn pull(&self, hub: &Hub) {
        let pulled = self.command("pull", hub, &[]).output().unwrap();
        assert!(pulled.status.success(), "{}", err(&pulled));
        self.is_whole();
    }

    fn is_whole(&self) {
        assert_eq!(self.there(), ["a--b.gguf"]);
        assert_eq!(sha256(&Path::new(&self.models).join("a--b.gguf")), sha256(Path::new(&self.container)));
    }

    fn there(&self) -> Vec<String> {
        let names =
            fs::read_dir(&self.models).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_answer_is_there_before_the_experts_that_it_does_not_touch() {
    let published = Published::new();
    let spare = published.spare();
    let held: u64 = spare.iter().map(|block| block.end - block.start).sum();
    assert!(held > published.size() / 3, "{held} of {} can be withheld", published.size());
    let hub = published.hub(FAST);
    hub.hold(spare.clone());
    let output = published.generate(&hub).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, err(&output));
    assert_eq!(out(&output), published.answer);
    assert!(err(&output).contains("the same again goes on with it"), "{}", err(&output));
    assert_eq!(published.there(), ["a--b.gguf.pull"]);
    let part = fs::read(format!("{}/a--b.gguf.pull/model.q4_k.gguf.part", published.models)).unwrap();
    for block in &spare {
        assert!(part[block.start as usize..block.end as usize].iter().all(|byte| *byte == 0), "{block:?}");
    }
    let sent = hub.sent("model.q4_k.gguf");

    // The same again answers at once, and `yuan pull` goes on where it has stopped.
    let again = published.generate(&hub).output().unwrap();
    assert_eq!(out(&again), published.answer, "{}", err(&again));
    hub.release();
    published.pull(&hub);
    let more = hub.sent("model.q4_k.gguf") - sent;
    assert!(more < held + published.size() / 3, "{more} bytes came a second time, and {held} were missing");
    let there = published.generate(&hub).output().unwrap();
    assert_eq!((out(&there), hub.sent("model.q4_k.gguf")), (published.answer, sent + more));
}

#[test]
fn a_conversation_goes_on_while_the_rest_comes_and_after_it_was_killed() {
    let published = Published::new();
    let hub = published.hub(FAST);
    hub.hold(published.spare());
    let run = ["--while-pulling", "-n", "2", "--temp", "0", "--ignore-eod", "--json"];
    let local = |lines: &str| {
        let mut child = program("yuan");
        child
            .args(["chat", &published.container])
            .args(&run[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        out(&child.wait_with_output().unwrap())
    };
    let texts = |lines: &str| -> Vec<Value> {
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].clone()).collect()
    };
    let wanted = texts(&local("ab\ncd\n"));
    // Killed in the midst of what is withheld.
    let mut child = published.command("chat", &hub, &run).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"ab\n").unwrap();
    until("something is withheld", || hub.waiting() > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    hub.release();

    let mut child = published.command("chat", &hub, &run).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    child.stdin.as_mut().unwrap().write_all(b"ab\n").unwrap();
    let first = lines.next().unwrap().unwrap();
    until("all of it comes beside the conversation", || published.there().contains(&"a--b.gguf".into()));
    child.stdin.as_mut().unwrap().write_all(b"cd\n").unwrap();
    let second = lines.next().unwrap().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && err(&output).contains("all of it is here"), "{}", err(&output));
    assert_eq!(texts(&format!("{first}\n{second}")), wanted);
    published.is_whole();
}

#[test]
fn an_expert_that_is_wrong_is_an_error_and_comes_again() {
    let published = Published::new();
    let hub = published.hub(FAST);
    // In its midst, so that it is nobody else's block.
    let expert = &published.touched[0];
    hub.lie(Some(expert.start + (expert.end - expert.start) / 2));
    let failed = published.generate(&hub).output().unwrap();
    assert_eq!((failed.status.code(), out(&failed)), (Some(1), String::new()));
    let said = err(&failed);
    assert!(said.contains("error: ") && said.contains("is damaged: BLAKE3"), "{said}");
    hub.lie(None);
    // It may have come once more before the program has ended, and is found out then.
    let runs = [(); 2].map(|()| published.generate(&hub).output().unwrap());
    assert!(runs[0].status.success() || err(&runs[0]).contains("is damaged"), "{}", err(&runs[0]));
    assert_eq!(out(&runs[1]), published.answer, "{}", err(&runs[1]));
    published.pull(&hub);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_wait_for_what_does_not_come() {
    let published = Published::new();
    let header = std::iter::once(0..BLOCK).collect();
    for held in [header, published.touched.clone()] {
        // What the run before has fetched would not be withheld.
        let _ = fs::remove_dir_all(&published.models);
        let hub = published.hub(FAST);
        hub.hold(held);
        let child = published.generate(&hub).spawn().unwrap();
        until("something is withheld", || hub.waiting() > 0);
        thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", err(&output));
        assert!(err(&output).contains("are here; the same again"), "{}", err(&output));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
}

#[test]
fn what_has_to_be_converted_or_is_not_there_is_said() {
    let folder = Folder::new();
    let demo = demo_model();
    let hub = Hub::new(&demo, FAST);
    let generate_of = |hub: &Hub, name: &str, more: &[&str]| {
        let mut command = program("yuan");
        command.args(["generate", name, "-p", "1", "--endpoint", &hub.address]).args(more);
        command.env("YUAN_MODELS", folder.path("models")).output().unwrap()
    };
    let generate = |name: &str, more: &[&str]| generate_of(&hub, name, more);
    let checkpoint = generate("a/b", &["--while-pulling"]);
    let said = err(&checkpoint);
    assert!(checkpoint.status.code() == Some(1) && said.contains("`yuan pull a/b`"), "{said}");
    assert!(!Path::new(&folder.path("models")).join("a--b.gguf.pull").exists());
    let nobody = err(&generate("a/c", &["--while-pulling"]));
    assert!(nobody.contains("check the name"), "{nobody}");
    let no_name = err(&generate("nothing", &["--while-pulling"]));
    assert!(no_name.contains("there is no model \"nothing\""), "{no_name}");
    assert_eq!(generate("a/b", &[]).status.code(), Some(2), "--endpoint is of no use alone");

    // In rows, without digests.
    let (whole, repository) = (folder.converted("m.gguf", &[]), folder.path("repository"));
    fs::create_dir(&repository).unwrap();
    text("yuan-quant", &["export", &whole, "-o", &format!("{repository}/standard.gguf")]);
    let rows = Hub::new(Path::new(&repository), FAST);
    let said = err(&generate_of(&rows, "a/b", &["--while-pulling"]));
    assert!(said.contains("error: ") && said.contains("yuan pull"), "{said}");
    // What is there is opened, and nothing is fetched.
    let plain = generate(&whole, &["--while-pulling", "-n", "3", "--json", "--temp", "0"]);
    let plain: Value = serde_json::from_str(&out(&plain)).unwrap();
    let same = json("yuan", &["generate", &whole, "-p", "1", "-n", "3", "--json", "--temp", "0"]);
    assert_eq!(plain["tokens"], same["tokens"]);
}
