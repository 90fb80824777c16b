//! The two programs, run as a person or a script runs them.

mod common;

use std::{fs, path::Path};

use common::{Folder, complaint, demo_model, json, program, run, text, usage};
use serde_json::Value;

#[test]
fn the_demo_streams_english_and_chinese() {
    let folder = Folder::new();
    let out = text("yuan", &["demo", "--cache", &folder.path("cache"), "-n", "40"]);
    for part in [
        "Converted",
        "kernels on",
        "> Psalms 151:1-4<sep>",
        "> 春日山中 李白<sep>",
        "of experts read a token",
    ] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    let poem = out.split("李白<sep>").nth(1).unwrap();
    assert!(poem.contains('，') && poem.contains('。'), "the Chinese prompt gives no verse: {poem}");
    assert!(!out.contains('\u{FFFD}'));
}

#[test]
fn greedy_text_is_the_same_on_every_path() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    for prompt in ["1 Chronicles 27:7-12<sep>", "十五夜观灯 王维<sep>"] {
        let args = ["generate", &model, "-p", prompt, "-n", "24", "--json"];
        let best = json("yuan", &args);
        assert_eq!(best["tokens"].as_array().unwrap().len(), 24);
        let scalar = program("yuan").args(args).env("YUAN_KERNELS", "scalar").output().unwrap();
        let scalar: Value = serde_json::from_slice(&scalar.stdout).unwrap();
        let one = json("yuan", &[&args[..], &["--threads", "1"]].concat());
        assert_eq!(best["tokens"], scalar["tokens"], "scalar kernels");
        for distance in ["0", "64", "1048576"] {
            let ahead = program("yuan").args(args).env("YUAN_PREFETCH", distance).output().unwrap();
            let ahead: Value = serde_json::from_slice(&ahead.stdout).unwrap();
            assert_eq!(best["tokens"], ahead["tokens"], "{distance} bytes ahead");
        }
        assert_eq!(best["tokens"], one["tokens"], "one thread");
        let streamed = text("yuan", &args[..6]);
        assert_eq!(streamed.trim_end_matches('\n'), best["text"].as_str().unwrap());
    }
}

#[test]
fn a_seed_gives_the_same_text_again() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &["--experts", "q4_0", "--dense", "q6_k"]);
    let sample = |seed| {
        let args =
            ["generate", &model, "-p", "Psalms 151:1-4<sep>", "-n", "30", "--temp", "0.9", "--top-k", "50"];
        text("yuan", &[&args[..], &["--top-p", "0.95", "--seed", seed]].concat())
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

#[test]
fn a_prompt_may_come_from_a_file_or_a_pipe() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let file = folder.path("prompt.txt");
    fs::write(&file, "秋夜 杜甫<sep>").unwrap();
    let args = ["generate", &model, "-n", "8", "--json"];
    let given = json("yuan", &[&args[..], &["-p", "秋夜 杜甫<sep>"]].concat());
    assert_eq!(given["text"], json("yuan", &[&args[..], &["--file", &file]].concat())["text"]);
    let piped =
        program("yuan").args(args).args(["--file", "-"]).stdin(fs::File::open(&file).unwrap()).output();
    let piped: Value = serde_json::from_slice(&piped.unwrap().stdout).unwrap();
    assert_eq!(given["text"], piped["text"]);
}

#[test]
fn a_question_is_put_into_the_models_chat_form() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let args = ["generate", &model, "-n", "1", "--json"];
    let chat = json("yuan", &[&args[..], &["--chat", "-p", "秋夜 杜甫"]].concat());
    let raw = json("yuan", &[&args[..], &["-p", "秋夜 杜甫<sep>"]].concat());
    assert_eq!(chat["prompt_tokens"], raw["prompt_tokens"]);
    // A special string in the question is text.
    let sly = json("yuan", &[&args[..], &["--chat", "-p", "a<sep>b"]].concat());
    let sep = raw["prompt_tokens"].as_array().unwrap().last().unwrap();
    let ids = sly["prompt_tokens"].as_array().unwrap();
    assert_eq!(ids.iter().filter(|id| *id == sep).count(), 1);
    assert_eq!(ids.last(), Some(sep));
}

#[test]
fn tokens_of_a_container_equal_those_of_its_checkpoint() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let demo = demo_model();
    for input in ["In the beginning God created", "床前明月光，疑是地上霜。", "emoji 🍕 <sep> x"]
    {
        for special in [&["--special"][..], &[]] {
            let of = |from: &str| json("yuan", &[&["tokenize", from, "--json", input], special].concat());
            assert_eq!(of(&model), of(demo.to_str().unwrap()));
            let has_sep = of(&model)["pieces"].as_array().unwrap().iter().any(|p| p == "<sep>");
            assert_eq!(has_sep, input.contains("<sep>") && !special.is_empty());
        }
    }
}

/// What a NumPy file has.
fn floats(file: &str) -> Vec<f32> {
    let npy = fs::read(file).unwrap();
    let header = 10 + u16::from_le_bytes([npy[8], npy[9]]) as usize;
    npy[header..].chunks_exact(4).map(|w| f32::from_le_bytes(w.try_into().unwrap())).collect()
}

#[test]
fn logits_are_the_goldens() {
    let folder = Folder::new();
    let model = folder.converted("exact.gguf", &["--experts", "f32", "--dense", "f32"]);
    let goldens = fs::read(demo_model().join("goldens.safetensors")).unwrap();
    let goldens = safetensors::SafeTensors::deserialize(&goldens).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        goldens.tensor(name).unwrap().data().chunks_exact(4).map(|w| w.try_into().unwrap()).collect()
    };
    let ids: Vec<String> =
        words("p2.input_ids").into_iter().map(|w| i32::from_le_bytes(w).to_string()).collect();
    let npy = folder.path("logits.npy");
    text("yuan", &["logits", &model, "--tokens", &ids.join(","), "--output", &npy, "--kv", "f32"]);
    let found = floats(&npy);
    let golden: Vec<f32> = words("f32.p2.logits").into_iter().map(f32::from_le_bytes).collect();
    assert_eq!(found.len(), golden.len());
    let error = found.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-3, "logits differ by {error}");
}

/// As llama-perplexity does: the whole text in chunks, and of each the tokens behind its first half.
#[test]
fn perplexity_in_chunks_is_that_of_the_second_halves() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let heldout = demo_model().join("heldout.txt");
    let text: String = fs::read_to_string(&heldout).unwrap().chars().take(1500).collect();
    let file = folder.path("text.txt");
    fs::write(&file, &text).unwrap();
    let ids = json("yuan", &["tokenize", &model, &text, "--special", "--json"])["ids"].clone();
    let ids: Vec<u64> = serde_json::from_value(ids).unwrap();
    let args = ["perplexity", &model, "--file", &file, "-c", "64", "--json"];
    let report = json("yuan", &args);
    let chunks = ids.len() / 64;
    assert!(chunks >= 4, "{chunks}");
    assert_eq!(report["chunks"], chunks);
    assert_eq!(report["tokens"], chunks * 31);
    let so_far = report["perplexity_so_far"].as_array().unwrap();
    assert_eq!(so_far.len(), chunks);
    assert_eq!(so_far[chunks - 1], report["perplexity"]);

    // By hand: the logits of each chunk from an empty state.
    let (mut loss, mut count) = (0.0, 0);
    for chunk in ids.chunks_exact(64) {
        let list = chunk.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let npy = folder.path("logits.npy");
        self::text("yuan", &["logits", &model, "--tokens", &list, "--output", &npy]);
        let logits = floats(&npy);
        let vocab = logits.len() / 64;
        for position in 32..63 {
            let row = &logits[position * vocab..][..vocab];
            let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            loss += sum.ln() - f64::from(row[chunk[position + 1] as usize]);
            count += 1;
        }
    }
    let wanted = (loss / f64::from(count)).exp();
    let found = report["perplexity"].as_f64().unwrap();
    assert!((found - wanted).abs() < 1e-5 * wanted, "{found} {wanted}");

    let first = json("yuan", &[&args[..], &["--chunks", "2"]].concat());
    assert_eq!(first["perplexity"], so_far[1]);
    let shown = self::text("yuan", &args[..args.len() - 1]);
    assert!(
        shown.starts_with("chunk ") && shown.contains("\nchunks      ") && shown.contains("\nperplexity  "),
        "{shown}"
    );
    assert!(
        shown.lines().nth(2).is_some_and(|line| line.starts_with("2 ") && line.contains(" ± ")),
        "{shown}"
    );
    for (wrong, part) in [(&["-c", "4096"][..], "made for 1024"), (&["-c", "1024"], "fewer than a chunk")] {
        let said = complaint("yuan", &[&["perplexity", &model, "--file", &file], wrong].concat());
        assert!(said.contains(part), "{said}");
    }
    for wrong in [&["-c", "2"][..], &["--chunks", "2"], &["-c", "64", "--documents", "1"]] {
        usage("yuan", &[&["perplexity", &model, "--file", &file], wrong].concat());
    }
}

#[test]
fn perplexity_compares_with_another_model() {
    let folder = Folder::new();
    let (small, exact) = (
        folder.converted("q4.gguf", &[]),
        folder.converted("bf16.gguf", &["--experts", "bf16", "--dense", "bf16"]),
    );
    let heldout = demo_model().join("heldout.txt");
    let args = ["perplexity", &small, "--file", heldout.to_str().unwrap(), "--documents", "59-62", "--json"];
    let report = json("yuan", &[&args[..], &["--against", &exact]].concat());
    let of = |key: &str| report[key].as_f64().unwrap();
    assert_eq!(report["documents"], 4);
    assert!((of("loss").exp() - of("perplexity")).abs() < 1e-9 && of("perplexity") > 10.0);
    assert!(of("kl_divergence") > 0.0 && of("kl_divergence") < 0.05, "{report}");
    let percentiles = &report["kl_divergence_percentiles"];
    let mut before = of("kl_divergence_median");
    for percent in ["90", "95", "99", "99.9"] {
        let next = percentiles[percent].as_f64().unwrap();
        assert!(next >= before, "{report}");
        before = next;
    }
    assert!(of("kl_divergence_max") >= before && of("kl_divergence_max") > of("kl_divergence"));
    // The difference of two models that are near to each other is surer than each of them.
    assert!(of("ln_perplexity_ratio_error") < 0.2 * of("loss_error"), "{report}");
    let ratio = of("ln_perplexity_ratio").exp() * of("reference_perplexity");
    assert!((ratio - of("perplexity")).abs() < 1e-9 * ratio, "{report}");
    assert!((of("perplexity_error") - of("perplexity") * of("loss_error")).abs() < 1e-9);
    let positions = report["positions"].as_array().unwrap();
    assert_eq!((&positions[0]["first"], &positions[0]["last"]), (&0.into(), &63.into()));
    let tokens: u64 = positions.iter().map(|range| range["tokens"].as_u64().unwrap()).sum();
    assert_eq!(report["tokens"], tokens);
    let people = text("yuan", &[&args[..6], &["--against", &exact]].concat());
    for part in ["perplexity  ", " ± ", "ln ratio", "of 99.9 %", "same top-1", "0-63 "] {
        assert!(people.contains(part), "no {part:?} in {people}");
    }
    let same = json("yuan", &[&args[..1], &[&exact], &args[2..], &["--against", &exact]].concat());
    assert_eq!((same["kl_divergence"].as_f64(), same["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
}

#[test]
fn a_plan_names_every_tensor_and_writes_nothing() {
    let folder = Folder::new();
    let demo = demo_model();
    let plan = text("yuan-quant", &[demo.to_str().unwrap(), "--dry-run", "-o", &folder.path("m.gguf")]);
    for part in ["blk.1.ffn_expert.31", "q4_k tiles", "token_embd.weight", "q8_0", "in all", "of memory"] {
        assert!(plan.contains(part), "no {part:?} in {plan}");
    }
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 0);
}

#[test]
fn inspect_verify_and_export_agree() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    assert!(text("yuan-quant", &["verify", &model]).contains("as written"));
    let both = [("yuan", "inspect"), ("yuan-quant", "inspect")].map(|(name, command)| {
        let shown = json(name, &[command, &model, "--json"]);
        assert_eq!(shown["config"]["experts"], 32);
        // Measured on this machine before, or not yet.
        assert!(shown.get("prefetch").is_some_and(|bytes| bytes.is_null() || bytes.is_u64()));
        shown["tensors"].clone()
    });
    assert_eq!(both[0], both[1]);
    let rows = folder.path("rows.gguf");
    text("yuan-quant", &["export", &model, "-o", &rows]);
    assert!(text("yuan", &["inspect", &rows]).contains("standard GGUF"));
    let back = folder.path("back.gguf");
    text("yuan-quant", &[&rows, "-o", &back]);
    let generate = |m: &str| {
        json("yuan", &["generate", m, "-p", "Psalms 151:1<sep>", "-n", "12", "--json"])["tokens"].clone()
    };
    assert_eq!(generate(&rows), generate(&back));

    let mut bytes = fs::read(&model).unwrap();
    let (at, name) = both[0]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|t| {
            let name = t["name"].as_str()?;
            name.contains("ffn_expert.5").then(|| (t["offset"].as_u64().unwrap() as usize + 1000, name))
        })
        .unwrap();
    bytes[at] ^= 4;
    fs::write(&model, bytes).unwrap();
    assert!(complaint("yuan-quant", &["verify", &model]).contains(name));
}

#[test]
fn a_synthetic_checkpoint_is_converted_and_runs() {
    let folder = Folder::new();
    let (checkpoint, model, direct) =
        (folder.path("tiny"), folder.path("tiny.gguf"), folder.path("direct.gguf"));
    text("yuan-quant", &["synth", "--geometry", "tiny", "-o", &checkpoint, "--seed", "3"]);
    text("yuan-quant", &[&checkpoint, "-o", &model]);
    text(
        "yuan-quant",
        &["synth", "--geometry", &format!("{checkpoint}/config.json"), "-o", &direct, "--seed", "3"],
    );
    for model in [&model, &direct] {
        text("yuan-quant", &["verify", model]);
        let bench = json("yuan", &["bench", model, "-p", "16", "-n", "4", "-r", "1", "--json"]);
        for key in ["prefill_tokens_per_second", "decode_tokens_per_second", "memory_gb_per_second"] {
            assert!(bench[key].as_f64().unwrap() > 0.0, "{bench}");
        }
        assert_eq!(
            json("yuan", &["generate", model, "-p", "hello", "-n", "5", "--ignore-eod", "--json"])["finish"],
            "length"
        );
    }
}

/// The router that Yuan's has replaced, from a random checkpoint to a container, to a standard file and back.
#[test]
fn a_linear_router_is_made_converted_shown_and_exported() {
    let folder = Folder::new();
    let [checkpoint, model, standard, again] =
        ["tiny", "m.gguf", "standard.gguf", "again.gguf"].map(|name| folder.path(name));
    text("yuan-quant", &["synth", "--geometry", "tiny", "--router", "linear", "-o", &checkpoint]);
    let exact = ["--experts", "f32", "--dense", "f32"];
    text("yuan-quant", &[&[checkpoint.as_str(), "-o", &model], &exact[..]].concat());
    let exported = run("yuan-quant", &["export", &model, "-o", &standard]);
    let said = String::from_utf8(exported.stderr).unwrap();
    assert!(
        exported.status.success() && said.contains("linear router") && said.contains("yuan3_moe"),
        "{said}"
    );
    text("yuan-quant", &[&[standard.as_str(), "-o", &again], &exact[..]].concat());
    let [expected, others @ ..] = [&model, &standard, &again].map(|model| {
        assert_eq!(json("yuan", &["inspect", model, "--json"])["config"]["router"], "linear");
        assert!(text("yuan", &["inspect", model]).contains("linear router"));
        let output = folder.path("logits.npy");
        text("yuan", &["logits", model, "--tokens", "1,2,3", "-o", &output]);
        let bytes = fs::read(output).unwrap();
        // Behind the header of a NumPy file.
        let numbers = bytes[bytes.len() - 4 * 3 * 512..].chunks_exact(4);
        numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    });
    // The taps of convolutions lie otherwise in a standard file, and are added up in another order.
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
    assert!(others.iter().all(|other| other.iter().zip(&expected).all(near)));
    assert!(
        usage("yuan-quant", &["synth", "--geometry", "tiny", "--router", "switch", "-o", "m.gguf"])
            .contains("attention or linear")
    );
    let config = format!("{checkpoint}/config.json");
    let other = fs::read_to_string(&config).unwrap().replace("\"linear\"", "\"switch\"");
    fs::write(&config, other).unwrap();
    let refused = complaint("yuan-quant", &[&checkpoint, "-o", &model]);
    assert!(refused.contains("router_type switch") && refused.contains("attn_router or linear"), "{refused}");
}

#[test]
fn sequences_decode_together() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let bench = ["bench", &model, "-p", "8", "-n", "4", "-r", "1", "--sequences", "1,3,2"];
    let object = json("yuan", &[&bench[..], &["--json"]].concat());
    let speeds = object["together"].as_array().unwrap();
    let numbers: Vec<_> = speeds.iter().map(|s| s["sequences"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 3, 2]);
    for speed in speeds {
        let figure = |key: &str| speed[key].as_f64().unwrap();
        let (all, each) = (figure("tokens_per_second"), figure("tokens_per_second_each"));
        assert!(each > 0.0 && (each * figure("sequences") - all).abs() < 1e-6 * all, "{speed}");
    }
    let shown = text("yuan", &bench);
    let lines = shown.lines().filter(|line| line.starts_with("together"));
    assert_eq!(lines.count(), 3, "{shown}");
    assert!(usage("yuan", &["bench", &model, "--sequences", "0"]).contains("from 1 to 1024"));
    assert!(complaint("yuan", &["bench", &model, "--sequences", "2", "-n", "0"]).contains("raise -n"));
}

/// The smallest memory that a plan names, and so many bytes more.
fn memory(model: &str, more: u64) -> String {
    let plan =
        json("yuan", &["plan", model, "--json", "--context", "64", "--paging", "streamed", "--memory", "8G"]);
    (plan["smallest"].as_u64().unwrap() + more).to_string()
}

#[test]
fn a_model_in_little_memory_writes_the_same_text() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let generate = |options: &[&str]| {
        json(
            "yuan",
            &[&["generate", &model, "-p", "春日山中 李白<sep>", "-n", "40", "--json"], options].concat(),
        )
    };
    let (all, little) =
        (generate(&[]), generate(&["--paging", "streamed", "--memory", &memory(&model, 1_000_000)]));
    assert_eq!((&all["tokens"], &all["text"]), (&little["tokens"], &little["text"]));
    assert_eq!((&all["paging"]["mode"], &little["paging"]["mode"]), (&"mapped".into(), &"streamed".into()));
    let count = |key: &str| little["decode"][key].as_u64().unwrap();
    assert!(count("expert_hits") > 0 && count("expert_misses") > 0, "{little}");
    let expert = little["paging"]["expert_bytes"].as_u64().unwrap();
    assert_eq!(count("bytes_read"), count("expert_misses") * expert);
    assert!(
        little["paging"]["experts_resident"].as_u64().unwrap()
            < little["paging"]["experts"].as_u64().unwrap()
    );
    let shown = run("yuan", &["generate", &model, "-p", "Psalms 1:1<sep>", "-n", "8", "--stats"]);
    let stderr = String::from_utf8(shown.stderr).unwrap();
    for part in ["paging     mapped", "budget", "prefill", "decode", "major faults"] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    let refused =
        complaint("yuan", &["generate", &model, "-p", "x", "--paging", "streamed", "--memory", "1M"]);
    assert!(refused.contains("The smallest that works is --memory"), "{refused}");
    let unslowed = complaint("yuan", &["bench", &model, "-p", "4", "-n", "1", "--throttle", "1"]);
    assert!(unslowed.contains("--paging streamed"), "{unslowed}");
}

/// Logits of a large vocabulary are more than all else: they are never there all at once.
#[cfg(target_os = "linux")]
#[test]
fn perplexity_and_logits_stay_within_the_memory() {
    use yuan::model::LOGIT_ROWS;

    let folder = Folder::new();
    let (geometry, model, file) = (folder.path("config.json"), folder.path("m.gguf"), folder.path("text"));
    let demo = fs::read_to_string(demo_model().join("config.json")).unwrap();
    fs::write(&geometry, demo.replace("\"vocab_size\": 4096", "\"vocab_size\": 100000")).unwrap();
    text("yuan-quant", &["synth", "--geometry", &geometry, "-o", &model]);
    fs::write(&file, "a b ".repeat(300)).unwrap();
    let memory = memory(&model, 100_000_000);
    let limited = ["--paging", "streamed", "--memory", &memory];
    let report = json("yuan", &[&["perplexity", &model, "--file", &file, "--json"], &limited[..]].concat());
    let (tokens, paging) = (report["tokens"].as_u64().unwrap(), &report["paging"]);
    let logits = tokens * 100_000 * 4;
    assert!(logits > paging["budget"].as_u64().unwrap(), "{report}");
    assert!(paging["batch"].as_u64() > Some(LOGIT_ROWS as u64), "{report}");
    assert!(paging["peak_memory"].as_u64() < paging["budget"].as_u64(), "{report}");

    let ids = vec!["7"; 600].join(",");
    let script = "\"$@\" & id=$!; while [ -d /proc/$id ]; do cat /proc/$id/status; done | grep VmHWM | sort -n -k2 | tail -1; wait $id";
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_yuan"),
            "logits",
            &model,
            "--tokens",
            &ids,
            "-o",
            &folder.path("l.npy"),
        ])
        .args(limited)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let peak: u64 = said.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(1024 * peak < memory.parse().unwrap(), "{said}");
}

#[test]
fn a_trace_replays_to_the_hits_of_the_run() {
    let folder = Folder::new();
    let (model, trace, svg) = (folder.converted("m.gguf", &[]), folder.path("t.trace"), folder.path("t.svg"));
    let memory = memory(&model, 1_000_000);
    let run =
        ["-p", "Genesis 1:1-4<sep>", "-n", "40", "--ignore-eod", "--paging", "streamed", "--memory", &memory];
    let generated = json("yuan", &[&["generate", &model, "--json"], &run[..]].concat());
    text("yuan", &[&["trace", &model, "-o", &trace], &run[..]].concat());
    let resident = generated["paging"]["experts_resident"].to_string();
    let replayed = json("yuan", &["replay", &trace, "--resident", &resident, "--svg", &svg, "--json"]);
    for kind in ["prefill", "decode"] {
        assert_eq!(replayed[kind]["hits"], generated[kind]["expert_hits"]);
        assert_eq!(replayed[kind]["misses"], generated[kind]["expert_misses"]);
    }
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("layer 1, expert 31: "));
    let table = text("yuan", &["replay", &trace, "--eviction", "lfu,lru"]);
    assert_eq!(table.lines().count(), 1 + 2 * 9, "{table}");
    let bench = [
        "bench",
        &model,
        "-p",
        "16",
        "-n",
        "8",
        "-r",
        "1",
        "--paging",
        "streamed",
        "--memory",
        &memory,
        "--throttle",
        "0.5",
        "--json",
    ];
    let bench = json("yuan", &bench);
    assert!(bench["drive_gb_per_second"].as_f64().unwrap() < 0.6, "{bench}");
    assert_eq!(bench["decode"]["tokens"], 8);
    // A run that follows a trace is routed as the trace was, and is written down as it was run.
    let (again, kept) = (folder.path("again.trace"), bench["paging"]["experts_resident"].to_string());
    let scripted = ["-p", "16", "-n", "8", "-r", "1", "--routing", &trace, "--trace", &again, "--json"];
    let bench = json(
        "yuan",
        &[&["bench", &model, "--paging", "streamed", "--memory", &memory], &scripted[..]].concat(),
    );
    let replayed = json("yuan", &["replay", &again, "--resident", &kept, "--json"]);
    for kind in ["prefill", "decode"] {
        assert_eq!(replayed[kind]["hits"], bench[kind]["expert_hits"]);
        assert_eq!(replayed[kind]["misses"], bench[kind]["expert_misses"]);
    }
    let of_layer = |path: &str, layer: &str| -> Vec<String> {
        let lines = fs::read_to_string(path).unwrap();
        let experts = lines.lines().filter_map(|l| l.strip_prefix(layer)).flat_map(str::split_whitespace);
        experts.take(2 * 24).map(String::from).collect()
    };
    assert_eq!(of_layer(&trace, "0 "), of_layer(&again, "0 "));
    let plan = json(
        "yuan",
        &[
            "plan",
            &model,
            "--context",
            "64",
            "--trace",
            &trace,
            "--paging",
            "streamed",
            "--memory",
            &memory,
            "--json",
        ],
    );
    assert!(plan["tokens_per_second"].as_f64().unwrap() > 0.0, "{plan}");
    fs::write(&trace, "nonsense").unwrap();
    assert!(complaint("yuan", &["replay", &trace]).contains("line 1"));
}

#[test]
fn complaints_say_what_where_and_the_remedy() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let nowhere = folder.path("nowhere.gguf");
    assert!(complaint("yuan", &["generate", &nowhere, "-p", "x"]).contains("nowhere.gguf"));
    let text_file = folder.path("text.gguf");
    fs::write(&text_file, "hello").unwrap();
    assert!(complaint("yuan", &["inspect", &text_file]).contains("convert a checkpoint with yuan-quant"));
    assert!(complaint("yuan", &["generate", &model, "-p", ""]).contains("give some text"));
    assert!(complaint("yuan", &["generate", &model, "-p", "x", "--temp", "-1"]).contains("temperature"));
    assert!(
        complaint("yuan", &["generate", &model, "-p", "x y z", "--context", "2"]).contains("raise --context")
    );
    assert!(
        complaint("yuan", &["logits", &model, "--tokens", "99999", "--output", &nowhere]).contains("99999")
    );
    assert!(complaint("yuan-quant", &[folder.path("").as_str(), "-o", &nowhere]).contains("config.json"));
    let again = complaint("yuan-quant", &[&model, "-o", &nowhere, "--experts", "q4_0"]);
    assert!(again.contains("already"), "{again}");
    fs::write(folder.path("cut.gguf"), &fs::read(&model).unwrap()[..1_000_000]).unwrap();
    assert!(complaint("yuan", &["inspect", &folder.path("cut.gguf")]).contains("fetch or convert it again"));
    let kernels =
        program("yuan").args(["generate", &model, "-p", "x"]).env("YUAN_KERNELS", "abacus").output().unwrap();
    assert!(String::from_utf8_lossy(&kernels.stderr).contains("choose from"));
    for distance in ["far", "-1", "1048577"] {
        let run = program("yuan")
            .args(["generate", &model, "-p", "x"])
            .env("YUAN_PREFETCH", distance)
            .output()
            .unwrap();
        assert!(!run.status.success());
        assert!(String::from_utf8_lossy(&run.stderr).contains("YUAN_PREFETCH"), "{distance}");
    }
    assert!(!Path::new(&nowhere).exists());
}

#[test]
fn the_version_names_the_commit_where_the_build_knows_it() {
    let (number, commit) = yuan::VERSION.split_once(' ').unwrap_or((yuan::VERSION, "()"));
    assert_eq!(number, env!("CARGO_PKG_VERSION"));
    assert!(commit.starts_with('(') && commit.ends_with(')'), "{commit}");
    for name in ["yuan", "yuan-quant"] {
        assert_eq!(text(name, &["--version"]), format!("{name} {}\n", yuan::VERSION));
    }
}

/// The table of a plan, of a model that is not there: what it says of a context is what a sequence of it takes, and more memory never holds less.
#[test]
fn a_plan_says_which_contexts_fit() {
    let table = |memory: &str| {
        let speeds = ["--memory-speed", "50", "--drive-speed", "2"];
        let arguments = ["plan", "--geometry", "3-flash", "--memory", memory, "--json"];
        json("yuan", &[&arguments[..], &speeds].concat())["table"].take()
    };
    let mut before = 0;
    for memory in ["8G", "16G", "24G", "32G", "64G"] {
        let table = table(memory);
        let per_token = &table["kv_bytes_per_token"];
        assert_eq!((&per_token["f16"], &per_token["q8_0:q4_0"]), (&393_216.into(), &159_744.into()));
        let all = table["contexts"].as_array().unwrap();
        assert_eq!(all.len(), 6 * 4);
        let fits: Vec<_> = all.iter().filter(|fit| fit["fits"] == true).collect();
        for fit in &fits {
            let context = fit["context"].as_u64().unwrap();
            let bytes = per_token[fit["kv"].as_str().unwrap()].as_u64().unwrap();
            assert_eq!(fit["kv_bytes"], context * bytes);
            assert!(fit["tokens_per_second"].as_f64().unwrap() > 0.0, "{fit}");
        }
        assert!(fits.len() >= before, "{memory}");
        before = fits.len();
    }
    assert_eq!(before, 24, "64 GB hold every context");
    let people = text("yuan", &["plan", "--geometry", "tiny", "--memory", "1G", "--memory-speed", "10"]);
    assert!(people.contains("q8_0:q4_0") && people.contains("2.0 GB/s, assumed"), "{people}");
    assert!(complaint("yuan", &["plan", "none"]).contains("--geometry"));
}

#[test]
fn help_has_examples() {
    for (name, command) in [
        ("yuan", &[][..]),
        ("yuan", &["demo"]),
        ("yuan", &["generate"]),
        ("yuan", &["chat"]),
        ("yuan", &["tokenize"]),
        ("yuan", &["logits"]),
        ("yuan", &["perplexity"]),
        ("yuan", &["compare"]),
        ("yuan", &["inspect"]),
        ("yuan", &["bench"]),
        ("yuan", &["plan"]),
        ("yuan", &["trace"]),
        ("yuan", &["replay"]),
        ("yuan-quant", &[]),
        ("yuan-quant", &["synth"]),
        ("yuan-quant", &["verify"]),
        ("yuan-quant", &["export"]),
        ("yuan-quant", &["inspect"]),
    ] {
        let help = text(name, &[command, &["--help"]].concat());
        assert!(help.contains("Example"), "{name} {command:?} has no example:\n{help}");
    }
}

/// A size chooses types that fit it, for the demo model as for the published one.
#[test]
fn a_size_chooses_types() {
    let folder = Folder::new();
    let demo = demo_model();
    let demo = demo.to_str().unwrap();
    let mut last = u64::MAX;
    for (size, types) in [("40M", ["q8_0 tiles", "q8_0"]), ("17M", ["q4_k tiles", "q8_0"])] {
        let model = folder.path(size);
        let plan = text("yuan-quant", &[demo, "--size", size, "--dry-run"]);
        assert!(types.iter().all(|t| plan.contains(t)) && plan.contains("expected mean KL"), "{plan}");
        text("yuan-quant", &[demo, "--size", size, "-o", &model]);
        let bytes = fs::metadata(&model).unwrap().len();
        assert!(bytes <= size.trim_end_matches('M').parse::<u64>().unwrap() * 1_000_000 && bytes < last);
        last = bytes;
    }
    let refusal = complaint("yuan-quant", &[demo, "--size", "1M", "--dry-run"]);
    assert!(refusal.contains("--size"), "{refusal}");
    usage("yuan-quant", &[demo, "--size", "50%", "--dry-run"]);
}
