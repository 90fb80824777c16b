//! From a name to a model: fetched, converted while it comes, killed, and gone on with.

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Folder, demo_model, err, out, program, text};
use hub::{FAST, Hub, sha256};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// A checkpoint of random weights, cut into so many shards, whose tensors do not lie in the order of the model.
fn sharded(folder: &Folder, geometry: &str, layers: &str, shards: usize) -> String {
    let (whole, cut) = (folder.path("whole"), folder.path("shards"));
    text("yuan-quant", &["synth", "--geometry", geometry, "--layers", layers, "-o", &whole]);
    fs::create_dir(&cut).unwrap();
    let mut map = BTreeMap::new();
    let mut number = 0;
    for entry in fs::read_dir(&whole).unwrap() {
        let (path, name) = {
            let entry = entry.unwrap();
            (entry.path(), entry.file_name().into_string().unwrap())
        };
        if !name.ends_with(".safetensors") {
            if !name.ends_with(".index.json") {
                fs::copy(&path, Path::new(&cut).join(&name)).unwrap();
            }
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        // By name: layer 10 comes before layer 2.
        let mut tensors = file.tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let total: usize = tensors.iter().map(|(_, view)| view.data().len()).sum();
        let mut parts = vec![Vec::new()];
        let mut room = total / shards;
        for (name, view) in tensors {
            if room < view.data().len() && !parts.last().unwrap().is_empty() {
                parts.push(Vec::new());
                room = total / shards;
            }
            room = room.saturating_sub(view.data().len());
            parts.last_mut().unwrap().push((name, view));
        }
        for part in parts {
            number += 1;
            let name = format!("model-{number:05}.safetensors");
            map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
            safetensors::serialize_to_file(part, None, &Path::new(&cut).join(name)).unwrap();
        }
    }
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(Path::new(&cut).join("model.safetensors.index.json"), index).unwrap();
    fs::remove_dir_all(whole).unwrap();
    cut
}

fn pull(models: &str, hub: &Hub, options: &[&str]) -> Command {
    let mut command = program("yuan");
    command.args(["pull", "a/b", "--endpoint", &hub.address]).args(options).env("YUAN_MODELS", models);
    command
}

fn ends_well(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", err(&output));
    output
}

fn names(folder: &str) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn yuan(models: &str, args: &[&str]) -> Output {
    program("yuan").args(args).env("YUAN_MODELS", models).output().unwrap()
}

/// Bytes that the files of a folder take on the disk; elsewhere than on Unix their lengths, as if they had no holes.
fn disk(folder: &Path) -> u64 {
    #[cfg(unix)]
    let of = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).map_or(0, |file| file.blocks() * 512)
    };
    #[cfg(not(unix))]
    let of = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.map(|path| if path.is_dir() { disk(&path) } else { of(&path) }).sum()
}

/// The most memory that a process has had, in kB, where the system tells.
fn largest_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Kills many runs at random moments. `YUAN_PULL_KILLS` has their number and `YUAN_PULL_GEOMETRY` a config.json for the full form.
#[test]
fn however_often_it_is_killed_the_container_is_the_same() {
    let named = |name: &str| env::var(name).ok();
    let kills = named("YUAN_PULL_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let geometry = named("YUAN_PULL_GEOMETRY").unwrap_or_else(|| "tiny".into());
    let (layers, shards) = (named("YUAN_PULL_LAYERS").unwrap_or_else(|| "3".into()), 8);
    let folder = Folder::new();
    let checkpoint = sharded(&folder, &geometry, &layers, shards);
    let (plain, models) = (folder.path("plain.gguf"), folder.path("models"));
    let began = Instant::now();
    text("yuan-quant", &[&checkpoint, "-o", &plain, "--rope-base", "10000"]);
    let conversion = began.elapsed();
    let weights = || fs::read_dir(&checkpoint).unwrap().map(|entry| entry.unwrap());
    let sizes: Vec<u64> = weights()
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "safetensors"))
        .map(|entry| entry.metadata().unwrap().len())
        .collect();
    let (total, largest) = (sizes.iter().sum::<u64>(), *sizes.iter().max().unwrap());
    // So slow that a run that nobody kills takes about as long as two conversions, and a second.
    let time = conversion.as_secs_f64() * 2.0 + 1.0;
    let hub = Hub::new(Path::new(&checkpoint), (total as f64 / time) as u64);
    let options = ["--rope-base", "10000", "--json"];
    let (mut random, mut killed, mut peak, mut memory) = (1u64, 0, 0, 0);
    let mut watch = |models: &str| peak = disk(Path::new(models)).max(peak);
    let mut runs = 0;
    let said = loop {
        runs += 1;
        assert!(runs < kills + 60, "it does not come to an end");
        let mut child =
            pull(&models, &hub, &options).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Short enough that most of them are killed before they are done.
        let most = (1.6 * time / kills as f64).max(0.3);
        let life = Duration::from_secs_f64(most * ((random >> 33) as f64 / (1u64 << 31) as f64));
        let until = Instant::now() + if killed < kills { life } else { Duration::from_secs(3600) };
        let status = loop {
            watch(&models);
            memory = memory.max(largest_memory(child.id()));
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() >= until => break None,
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        match status {
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
            }
            Some(status) => {
                assert!(status.success());
                break out(&child.wait_with_output().unwrap());
            }
        }
    };
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["name"], "a/b");
    assert!(killed >= kills.min(3), "{killed} of {runs} runs were killed");
    let container = fs::metadata(&plain).unwrap().len();
    assert_eq!(said["bytes"], container);
    let made = Path::new(&models).join("a--b.gguf");
    assert!(same(&made, Path::new(&plain)), "another container");
    assert_eq!(names(&models), ["a--b.gguf"]);
    // The container and two shards, the third of which the first is just making room for.
    let sent: u64 = weights().map(|entry| hub.sent(&entry.file_name().into_string().unwrap())).sum();
    eprintln!(
        "{killed} kills of {runs} runs; {total} bytes in shards of {largest} to a container of {container}: {peak} on the disk, {sent} sent, {memory} kB of memory"
    );
    // Where a file that is coming counts as whole, as many of them count as are fetched at once.
    assert!(cfg!(not(unix)) || peak < container + 3 * largest + (64 << 20), "{peak} bytes on the disk");
}

fn same(a: &Path, b: &Path) -> bool {
    sha256(a) == sha256(b)
}

#[test]
fn a_model_has_a_name_and_goes_by_it() {
    let folder = Folder::new();
    let models = folder.path("models");
    let demo = demo_model();
    let hub = Hub::new(&demo, FAST);
    assert!(out(&yuan(&models, &["list", "--json"])).trim() == "[]");
    let none = yuan(&models, &["inspect"]);
    assert!(err(&none).contains("there is none") && err(&none).contains("yuan pull"), "{}", err(&none));

    ends_well(&mut pull(&models, &hub, &[]));
    let first = hub.sent("model.safetensors");
    let again = ends_well(&mut pull(&models, &hub, &["--json"]));
    assert_eq!(serde_json::from_str::<Value>(&out(&again)).unwrap()["was_there"], true);
    assert_eq!(hub.sent("model.safetensors"), first, "it is not fetched again");
    let plain = folder.converted("plain.gguf", &[]);
    assert!(same(&Path::new(&models).join("a--b.gguf"), Path::new(&plain)));

    // It is the only one, and so need not be named.
    let shapes: Vec<_> =
        [&["inspect"][..], &["inspect", "a/b"], &["inspect", "hf:a/b"], &["inspect", &plain]]
            .into_iter()
            .map(|args| {
                let output = yuan(&models, &[args, &["--json"]].concat());
                assert!(output.status.success(), "{}", err(&output));
                serde_json::from_str::<Value>(&out(&output)).unwrap()["config"].clone()
            })
            .collect();
    assert!(shapes.iter().all(|shape| *shape == shapes[0]));
    let listed: Value = serde_json::from_str(&out(&yuan(&models, &["list", "--json"]))).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["complete"]), (&json!("a/b"), &json!(true)));
    let answer = yuan(&models, &["generate", "-p", "1", "-n", "2"]);
    assert!(answer.status.success(), "{}", err(&answer));

    ends_well(&mut pull(&models, &hub, &["--as", "small", "--experts", "q4_0", "--keep"]));
    let several = err(&yuan(&models, &["inspect"]));
    assert!(several.contains("a/b, small"), "{several}");
    let unknown = err(&yuan(&models, &["inspect", "larger"]));
    assert!(unknown.contains("larger") && unknown.contains("a/b, small"), "{unknown}");
    let kept = Path::new(&models).join("small.gguf.checkpoint");
    assert!(kept.join("model.safetensors").exists() && !kept.join("lock").exists());

    for name in ["a/b", "small"] {
        let removed = yuan(&models, &["rm", name]);
        assert!(removed.status.success(), "{}", err(&removed));
    }
    assert_eq!(names(&models), ["small.gguf.checkpoint"]);
    assert!(!yuan(&models, &["rm", "a/b"]).status.success());
}

#[test]
fn a_container_on_a_hub_comes_as_it_is() {
    let folder = Folder::new();
    let repository = folder.path("repository");
    fs::create_dir(&repository).unwrap();
    let container = folder.converted("plain.gguf", &[]);
    fs::copy(&container, Path::new(&repository).join("model.q4_k.gguf")).unwrap();
    fs::write(Path::new(&repository).join("README.md"), "A model.").unwrap();
    let hub = Hub::new(Path::new(&repository), FAST);
    let models = folder.path("models");
    ends_well(&mut pull(&models, &hub, &[]));
    assert_eq!(names(&models), ["a--b.gguf"]);
    assert!(same(&Path::new(&models).join("a--b.gguf"), Path::new(&container)));
}

#[test]
fn yuan_quant_takes_a_repository_and_may_keep_it() {
    let folder = Folder::new();
    let checkpoint = sharded(&folder, "tiny", "2", 4);
    let hub = Hub::new(Path::new(&checkpoint), FAST);
    let (plain, fetched) = (folder.path("plain.gguf"), folder.path("fetched.gguf"));
    text("yuan-quant", &[&checkpoint, "-o", &plain]);
    text("yuan-quant", &["hf:a/b", "--endpoint", &hub.address, "-o", &fetched, "--keep"]);
    assert!(same(Path::new(&fetched), Path::new(&plain)));
    assert_eq!(names(&format!("{fetched}.checkpoint")), names(&checkpoint));
    let nobody = program("yuan-quant").args(["hf:a/c", "--endpoint", &hub.address, "-o", &fetched]).output();
    let said = err(&nobody.unwrap());
    assert!(said.contains("check the name"), "{said}");
}

#[test]
fn an_index_that_lies_is_an_error() {
    let folder = Folder::new();
    let checkpoint = sharded(&folder, "tiny", "1", 3);
    let (index, models) =
        (Path::new(&checkpoint).join("model.safetensors.index.json"), folder.path("models"));
    let text = fs::read_to_string(&index).unwrap();
    let refused = |index_text: &str| {
        fs::write(&index, index_text).unwrap();
        let hub = Hub::new(Path::new(&checkpoint), FAST);
        let output = pull(&models, &hub, &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!Path::new(&models).join("a--b.gguf").exists());
        err(&output)
    };
    let elsewhere = text.replacen("00001", "00002", 1);
    assert!(refused(&elsewhere).contains("the index names it"), "{}", refused(&elsewhere));
    let other = text.replacen("lm_head.weight", "lm_tail.weight", 1);
    let said = refused(&other);
    assert!(said.contains("missing") && said.contains("lm_tail.weight"), "{said}");
    // What has come is of use when the index is right.
    fs::write(&index, &text).unwrap();
    ends_well(&mut pull(&models, &Hub::new(Path::new(&checkpoint), FAST), &[]));
    assert_eq!(names(&models), ["a--b.gguf"]);
}
