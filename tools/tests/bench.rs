//! Tables of `yuan bench`: every form, and a row for each combination.

mod common;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use common::{Folder, complaint, json, skip, text, usage};
use serde_json::Value;

/// Two prompts and two answers behind two depths, and a pair.
const TESTS: [&str; 11] = ["-p", "0,8,16", "-n", "2", "-n", "3", "-pg", "8,2", "-d", "0,70", "--repetitions"];
const NAMES: [&str; 10] = [
    "pp8",
    "pp16",
    "tg2",
    "tg3",
    "pp8+tg2",
    "pp8 @ d70",
    "pp16 @ d70",
    "tg2 @ d70",
    "tg3 @ d70",
    "pp8+tg2 @ d70",
];

fn table(model: &str, form: &[&str]) -> String {
    text("yuan", &[&["bench", model], &TESTS[..], &["2"], form].concat())
}

/// What a Python program says to `input`; `None` without Python.
fn python(program: &str, input: &str) -> Option<String> {
    let child =
        Command::new("python3").args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.ok()?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{input}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// `n_prompt, n_gen, n_depth` by the name of a test.
fn sizes(name: &str) -> [u64; 3] {
    let mut sizes = [0; 3];
    for part in name.split(['+', ' ']) {
        for (size, kind) in sizes.iter_mut().zip(["pp", "tg", "d"]) {
            *size += part.strip_prefix(kind).map_or(0, |n| n.parse().unwrap());
        }
    }
    sizes
}

fn check(rows: &[Value]) {
    assert_eq!(rows.len(), NAMES.len());
    for (row, name) in rows.iter().zip(NAMES) {
        let found = ["n_prompt", "n_gen", "n_depth"].map(|key| row[key].as_u64().unwrap());
        assert_eq!(found, sizes(name), "{row}");
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(number("avg_ns") > 0.0 && number("avg_ts") > 0.0 && number("stddev_ts") >= 0.0, "{row}");
        assert!(number("model_n_params") > 1e7 && number("model_size") > 1e7 && number("n_threads") == 2.0);
        for key in
            ["build_commit", "cpu_info", "model_filename", "model_type", "test_time", "type_k", "kernels"]
        {
            assert!(!row[key].as_str().unwrap().is_empty(), "{key}: {row}");
        }
        assert_eq!(row["backends"], "CPU");
    }
}

#[test]
fn every_form_of_a_table_has_a_row_for_each_combination() {
    let folder = Folder::new();
    // No name has a double quote on Windows.
    let model = folder.converted(if cfg!(windows) { "m'春.gguf" } else { "m'春\".gguf" }, &[]);
    let model = model.as_str();
    let form = |form: &str| table(model, &["-t", "2", "-o", form]);

    let array: Value = serde_json::from_str(&form("json")).unwrap();
    check(array.as_array().unwrap());
    for row in array.as_array().unwrap() {
        let samples = |key: &str| -> Vec<f64> {
            row[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let (ns, speeds) = (samples("samples_ns"), samples("samples_ts"));
        assert!(ns.len() == 2 && speeds.len() == 2, "{row}");
        let tokens = row["n_prompt"].as_f64().unwrap() + row["n_gen"].as_f64().unwrap();
        assert!((speeds[0] - tokens * 1e9 / ns[0]).abs() < 1e-6 * speeds[0], "{row}");
        let mean = (speeds[0] + speeds[1]) / 2.0;
        let deviation = (speeds[0] - speeds[1]).abs() / 2f64.sqrt();
        assert!((row["avg_ts"].as_f64().unwrap() - mean).abs() < 1e-9 * mean, "{row}");
        assert!((row["stddev_ts"].as_f64().unwrap() - deviation).abs() < 1e-6 * mean, "{row}");
        assert_eq!(row["model_filename"], model);
    }

    let lines: Vec<Value> = form("jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    check(&lines);

    let shown = form("md");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 2 + NAMES.len(), "{shown}");
    for (line, name) in lines[2..].iter().zip(NAMES) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert!(cells.len() == 9 && cells[4] == "CPU" && cells[5] == "2" && cells[6] == name, "{line}");
        assert!(cells[7].contains(" ± "), "{line}");
    }
    // Several values are a table by themselves, and a pair is one.
    assert_eq!(table(model, &["-t", "2"]).lines().count(), 2 + NAMES.len());

    let csv = form("csv");
    assert_eq!(csv.lines().count(), 1 + NAMES.len(), "{csv}");
    let read = "import csv, json, sys; print(json.dumps([{k: int(v) if v.isdigit() else float(v) if k in ('avg_ts', 'stddev_ts') else v \
        for k, v in row.items()} for row in csv.DictReader(sys.stdin)]))";
    let sql = form("sql");
    assert_eq!(sql.matches("INSERT INTO yuan_bench (").count(), NAMES.len(), "{sql}");
    // Twice, as who measures again fills the same table.
    let query = "import json, sqlite3, sys; text = sys.stdin.read(); c = sqlite3.connect(':memory:'); c.row_factory = sqlite3.Row; \
        c.executescript(text); c.executescript(text); rows = [dict(row) for row in c.execute('select * from yuan_bench')]; \
        half = len(rows) // 2; assert rows[:half] == rows[half:]; print(json.dumps(rows[:half]))";
    for (program, input) in [(read, csv), (query, sql)] {
        let Some(rows) = python(program, &input) else { return skip("no python3 to read a table") };
        let rows: Value = serde_json::from_str(&rows).unwrap();
        check(rows.as_array().unwrap());
        assert_eq!(rows[0]["model_filename"], model);
    }
}

#[test]
fn a_table_that_cannot_be_is_refused() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    for (options, said) in [
        (&["-p", "1,2", "--json"][..], "--json"),
        (&["-n", "1-3", "--sequences", "2"], "--sequences"),
        (&["-n", "1,3", "--draft", "auto"], "--draft"),
        (&["-p", "0", "-n", "0", "-o", "csv"], "raise -p or -n"),
        (&["-p", "1-1000", "-d", "0-100"], "fewer values"),
    ] {
        let found = complaint("yuan", &[&["bench", &model], options].concat());
        assert!(found.contains(said), "{options:?}: {found}");
    }
    for options in [
        &["-o", "xml"][..],
        &["-o", "json", "--json"],
        &["-pg", "5"],
        &["-pg", "5,100000000"],
        &["-p", "0-100000"],
        &["-p", "4-1"],
        &["-n", "1,x"],
        &["-d", "1,-2"],
        &["-r", "0", "-o", "md"],
    ] {
        let found = usage("yuan", &[&["bench", "no-such-model.gguf"], options].concat());
        assert!(found.contains("error: "), "{options:?}: {found}");
    }
}

#[test]
fn phases_are_written_for_chrome_and_say_what_one_thread_does_alone() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("phases.json");
    for threads in ["1", "2"] {
        let bench = ["bench", &model, "-p", "40", "-n", "20", "-r", "1", "-t", threads, "--phases", &file];
        let object = json("yuan", &[&bench[..], &["--json"]].concat());
        for (name, passes, rows) in [("prompt", 1, 40), ("decode", 8, 8)] {
            let of = &object["phases"][name];
            assert_eq!((&of["passes"], &of["rows"]), (&passes.into(), &rows.into()), "{of}");
            let share = of["alone_share"].as_f64().unwrap();
            assert!(share > 0.0 && share < 1.0, "{of}");
            let sum = |key: &str| -> f64 {
                of["phases"].as_array().unwrap().iter().map(|phase| phase[key].as_f64().unwrap()).sum()
            };
            for key in ["ms", "work_ms", "alone_ms", "one_ms", "none_ms"] {
                assert!((sum(key) - of["all"][key].as_f64().unwrap()).abs() < 1e-6, "{key}: {of}");
            }
            let phases = of["phases"].as_array().unwrap();
            let experts = phases.iter().find(|phase| phase["name"] == "experts").unwrap();
            // Even one thread shares them out to itself, in pieces that others could take.
            assert!(experts["alone_ms"].as_f64().unwrap() < experts["ms"].as_f64().unwrap(), "{experts}");
            if threads == "1" {
                assert_eq!(of["all"]["one_ms"], 0.0, "nobody waits for the only thread");
            }
        }
        let trace: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let named = events.iter().filter(|e| e["name"] == "thread_name").count();
        assert_eq!(named, 1 + threads.parse::<usize>().unwrap());
        for event in events.iter().filter(|e| e["ph"] != "M") {
            assert!(event["ph"] == "X" && event["dur"].as_f64().unwrap() >= 0.0, "{event}");
            assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["tid"].as_u64().unwrap() < named as u64);
        }
        for name in ["norm", "filter", "q k v", "attention", "router", "experts", "experts, down", "logits"] {
            assert!(events.iter().any(|e| e["name"] == name && e["tid"] == 0), "no {name}");
            assert!(events.iter().any(|e| e["name"] == name && e["tid"] != 0), "no work for {name}");
        }
        let shown = text("yuan", &bench);
        assert!(shown.contains("prompt of 40 rows") && shown.contains("decode of 8 rows"), "{shown}");
    }
    let together =
        ["bench", &model, "-p", "8", "-n", "12", "-r", "1", "--sequences", "1,3", "--phases", &file];
    let object = json("yuan", &[&together[..], &["--json"]].concat());
    for (n, rows) in [(1, 8), (3, 24)] {
        let of = &object["phases"][format!("sequences {n}")];
        assert_eq!((&of["passes"], &of["rows"]), (&8.into(), &rows.into()), "{of}");
    }
    assert!(text("yuan", &together).contains("sequences 3 of 24 rows"));
    let over = complaint("yuan", &["bench", &model, "--phases", &model]);
    assert!(over.contains("written over"), "{over}");
    assert!(complaint("yuan", &["bench", &model, "-p", "1,2", "--phases", &file]).contains("--phases"));
}

#[test]
fn more_threads_than_there_are_can_be_simulated_and_drawn() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("phases.svg");
    let bench = ["bench", &model, "-p", "40", "-n", "10", "-r", "2", "-t", "1", "--simulate", "1,5"];
    let object =
        json("yuan", &[&bench[..], &["--simulate-memory", "100", "--phases", &file, "--json"]].concat());
    let simulated = object["simulated"].as_array().unwrap();
    let of = |i: usize| (simulated[i]["name"].as_str().unwrap(), simulated[i]["threads"].as_u64().unwrap());
    assert_eq!([0, 1, 2, 3].map(of), [("prompt", 1), ("decode", 1), ("prompt", 5), ("decode", 5)]);
    for simulated in simulated {
        let number = |key: &str| simulated[key].as_f64().unwrap();
        // The pieces' times are the same, and nobody gains more than there are threads.
        assert!(number("gain") > 0.1 && number("gain") <= number("threads") + 1e-6, "{simulated}");
        assert!(number("ms") > 0.0 && number("weights_gb_per_second") > 0.0, "{simulated}");
    }
    for (name, passes) in [("prompt on 5 simulated threads", 2), ("decode on 5 simulated threads", 10)] {
        assert_eq!(object["phases"][name]["passes"], passes, "{object}");
    }
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("decode on 5 simulated threads"));
    assert_eq!(svg.matches(">thread ").count(), 2 * (1 + 5));
    let shown = text("yuan", &bench);
    assert!(shown.contains("simulated  decode on 5 threads: "), "{shown}");
    let two = ["bench", &model, "-t", "2", "--simulate", "16"];
    assert!(complaint("yuan", &two).contains("give -t 1"));
}
