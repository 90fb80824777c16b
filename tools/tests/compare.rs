//! `yuan compare`, as a person runs it.

mod common;

use std::fs;

use common::{Folder, complaint, demo_model, json, text};
use serde_json::Value;

/// The containers of the tests: the reference first, then with fewer bits each.
fn containers(folder: &Folder) -> [String; 3] {
    [
        folder.converted("bf16.gguf", &["--experts", "bf16", "--dense", "bf16"]),
        folder.converted("q4_k.gguf", &["--experts", "q4_k"]),
        folder.converted("三位.gguf", &["--experts", "q3_k"]),
    ]
}

/// Documents of the held-out text: English ones, or Chinese ones.
const LANGUAGES: [&str; 2] = ["1-6", "59-90"];

#[test]
fn fewer_bits_are_smaller_and_further_away_in_both_languages() {
    let folder = Folder::new();
    let [exact, four, three] = containers(&folder);
    let heldout = demo_model().join("heldout.txt");
    let heldout = heldout.to_str().unwrap();
    for documents in LANGUAGES {
        let shape = ["--text", heldout, "--documents", documents, "--memory-speed", "10", "--json"];
        let report = json("yuan", &[&["compare", &exact, &four, &three][..], &shape].concat());
        let models = report["models"].as_array().unwrap();
        let names: Vec<_> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["bf16", "q4_k", "三位"]);
        let of = |model: usize, key: &str| {
            models[model][key].as_f64().unwrap_or_else(|| panic!("{key} of {model}: {report}"))
        };
        assert_eq!(models[0].get("kl_divergence"), None, "{report}");
        assert!(of(1, "kl_divergence") > 0.0 && of(2, "kl_divergence") > of(1, "kl_divergence"), "{report}");
        assert!(of(1, "top1_agreement") > of(2, "top1_agreement"), "{report}");
        for (model, bits) in [16.0, 4.5, 3.4375].into_iter().enumerate() {
            assert_eq!(of(model, "expert_bits_per_weight"), bits);
            assert!(of(model, "perplexity") > 10.0 && of(model, "perplexity_error") > 0.0);
            assert_eq!(models[model]["tokens"], report["tokens"]);
            let file = fs::metadata(models[model]["file"].as_str().unwrap()).unwrap();
            assert_eq!(of(model, "bytes"), file.len() as f64);
        }
        for (more, fewer) in [(0, 1), (1, 2)] {
            for key in ["bits_per_weight", "bytes_per_token"] {
                assert!(of(more, key) > of(fewer, key), "{key}: {report}");
            }
            assert!(of(fewer, "tokens_per_second") > of(more, "tokens_per_second"), "{report}");
        }
        assert!((of(0, "tokens_per_second") * of(0, "bytes_per_token") / 10e9 - 1.0).abs() < 0.1, "{report}");

        // What `yuan perplexity` says of the pair.
        let one = [
            "perplexity",
            &three,
            "--file",
            heldout,
            "--documents",
            documents,
            "--against",
            &exact,
            "--json",
        ];
        let one = json("yuan", &one);
        for key in ["perplexity", "kl_divergence", "kl_divergence_max", "top1_agreement", "positions"] {
            assert_eq!(one[key], models[2][key], "{key}");
        }
        assert_eq!(one["reference_perplexity"], models[0]["perplexity"]);
    }
}

#[test]
fn a_table_and_a_picture_name_every_container() {
    let folder = Folder::new();
    let [exact, four, three] = containers(&folder);
    let (file, picture) = (folder.path("文.txt"), folder.path("kl.svg"));
    fs::write(
        &file,
        "春日山中 李白<sep>我心常自适，天子若何行。\n<eod>\nAnd it came to pass in those days\n",
    )
    .unwrap();
    // The reference is among the others, as in `*.gguf`.
    let args = ["compare", &four, &exact, &three, "--against", &exact, "--text", &file, "--svg", &picture];
    let said = text("yuan", &[&args[..], &["--memory-speed", "10"]].concat());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    for (line, name) in lines.iter().zip(["model", "bf16", "q4_k", "三位", ""]) {
        assert!(line.ends_with(name), "{said}");
    }
    assert!(
        lines[1].contains("reference") && lines[2].contains(" ± ") && lines[3].contains("3.44"),
        "{said}"
    );
    assert!(lines[4].contains("from bf16"), "{said}");
    let svg = fs::read_to_string(&picture).unwrap();
    assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
    for part in [">q4_k</text>", ">三位</text>", "Distance from bf16", "文.txt, ", "bits a weight", "nats"]
    {
        assert!(svg.contains(part), "no {part:?} in {svg}");
    }

    // At no distance there is no place on a logarithmic axis; two of one name have their folders' names.
    fs::create_dir(folder.path("a")).unwrap();
    let copy = folder.path("a/bf16.gguf");
    fs::copy(&exact, &copy).unwrap();
    let same =
        ["compare", &exact, &copy, "--text", &file, "--svg", &picture, "--memory-speed", "10", "--json"];
    let report = json("yuan", &same);
    assert_eq!(report["models"][1]["kl_divergence"], 0.0);
    assert_eq!(report["models"][1]["name"], Value::from(copy.as_str()));
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.contains(&format!("at no distance: {copy}")) && !svg.contains("<circle"), "{svg}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let folder = Folder::new();
    let model = folder.converted("m.gguf", &[]);
    let (file, empty) = (folder.path("text.txt"), folder.path("empty.txt"));
    fs::write(&file, "床前明月光，疑是地上霜。").unwrap();
    fs::write(&empty, "\n").unwrap();
    let said = |args: &[&str]| complaint("yuan", &[&["compare"], args, &["--memory-speed", "10"]].concat());
    assert!(said(&[&model, "--text", &file]).contains("name two models"));
    assert!(said(&[&model, "--against", &model, "--text", &file]).contains("name two models"));
    assert!(said(&[&model, "nothing.gguf", "--text", &file]).contains("nothing.gguf"));
    assert!(said(&[&model, &model, "--text", "nothing.txt"]).contains("nothing.txt"));
    assert!(said(&[&model, &model, "--text", &empty]).contains("has no text"));
    assert!(said(&[&model, &model, "--text", &file, "--documents", "2"]).contains("has 1 documents"));
    assert!(said(&[&model, &model, "--text", &file, "--svg", &file]).contains("would be written over"));
    let other = folder.path("other.gguf");
    let geometry = folder.path("config.json");
    let demo = fs::read_to_string(demo_model().join("config.json")).unwrap();
    fs::write(&geometry, demo.replace("\"vocab_size\": 4096", "\"vocab_size\": 5000")).unwrap();
    text("yuan-quant", &["synth", "--geometry", &geometry, "-o", &other]);
    assert!(said(&[&model, &other, "--text", &file]).contains("cannot be compared"));
}
