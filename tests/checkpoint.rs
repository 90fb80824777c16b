//! Hugging Face folders: the fixtures, what is refused and how, and damaged files by the ten thousand.

mod common;

use std::{fs, io::Cursor, path::Path};

use common::{
    demo, fixture, mutate,
    weights::{self, Tensor, pickle},
};
use serde_json::{Value, json};
use yuan::{
    checkpoint::{
        Checkpoint,
        archive::parse_archive,
        config::parse_config,
        layout::parse_index,
        names,
        pickle::parse_pickle,
        safetensors::{header_len, parse_header},
        sentencepiece::parse_pieces,
        vocab::{read_vocab, read_vocab_of},
    },
    config::{Family, ModelConfig},
    error::{Error, TensorProblems},
    vocab::PieceKind,
};
use zip::CompressionMethod;

const MUTATIONS: u64 = 10_000;

/// A model of a few kilobytes.
fn small_config() -> Value {
    json!({
        "architectures": ["YuanForCausalLM"], "model_type": "yuan", "vocab_size": 6, "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 3, "attention_projection_size": 8, "max_position_embeddings": 16,
        "rotary_base": 10_000, "moe_config": { "moe_num_experts": 2, "moe_top_k": 1, "gated_linear_unit": true },
    })
}

fn small_tensors() -> Vec<Tensor> {
    let config = parse_config(&small_config().to_string(), Path::new("config.json")).unwrap().config;
    let dtypes = ["BF16", "F32", "F16"].into_iter().cycle();
    let tensor = |(i, (spec, dtype)): (usize, (names::TensorSpec, _))| {
        Tensor::new(&spec.hf, dtype, &spec.shape, i as u8)
    };
    names::tensors(&config).into_iter().zip(dtypes).enumerate().map(tensor).collect()
}

/// A folder with the small config and these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), small_config().to_string()).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
    folder
}

fn open_error(files: &[(&str, &[u8])]) -> Error {
    Checkpoint::open(folder(files).path()).expect_err("the folder is refused")
}

fn problems(files: &[(&str, &[u8])]) -> TensorProblems {
    match open_error(files) {
        Error::Tensors { problems, .. } => problems,
        other => panic!("{other}"),
    }
}

fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<_, _> = map.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string().into_bytes()
}

fn read(checkpoint: &Checkpoint, name: &str, len: usize) -> Vec<f32> {
    let mut out = Vec::new();
    checkpoint.read_f32(name, 0..len, &mut out).unwrap();
    out
}

/// Every weight of the small model, in the order of the table.
fn check_small(files: &[(&str, &[u8])]) {
    let folder = folder(files);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for tensor in small_tensors() {
        let values = tensor.values();
        assert_eq!(read(&checkpoint, &tensor.name, values.len()), values, "{}", tensor.name);
    }
    assert_eq!(checkpoint.data_bytes(), small_tensors().iter().map(|t| t.bytes.len() as u64).sum::<u64>());
}

#[test]
fn the_same_weights_come_from_every_format() {
    let tensors = small_tensors();
    let (a, b) = tensors.split_at(7);
    let (st, bin) = (weights::safetensors, weights::torch);
    check_small(&[("model.safetensors", &st(&tensors))]);
    check_small(&[("model-1.safetensors", &st(a)), ("model-2.safetensors", &st(b))]);
    check_small(&[("pytorch_model.bin", &bin(&tensors))]);
    check_small(&[("pytorch_model-1.bin", &bin(b)), ("pytorch_model-2.bin", &bin(a))]);
    let map =
        tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), if i < 7 { "x.bin" } else { "y.bin" }));
    let map = index(&map.collect::<Vec<_>>());
    check_small(&[("x.bin", &bin(a)), ("y.bin", &bin(b)), ("pytorch_model.bin.index.json", &map)]);
}

#[test]
fn every_problem_with_tensors_is_in_one_error() {
    let mut tensors = small_tensors();
    let duplicate = tensors[3].clone();
    let missing = tensors.remove(5).name;
    tensors[1].shape = vec![2, 2];
    tensors.push(Tensor::new("model.extra.weight", "F32", &[1], 0));
    tensors.push(Tensor::new("model.layers.0.self_attn.rotary_emb.inv_freq", "I8", &[1], 0));
    for (first, second, file) in [
        ("model-1.safetensors", "model-2.safetensors", weights::safetensors as fn(&[Tensor]) -> Vec<u8>),
        ("pytorch_model-1.bin", "pytorch_model-2.bin", weights::torch),
    ] {
        let found = problems(&[(first, &file(&tensors)), (second, &file(std::slice::from_ref(&duplicate)))]);
        let expected = TensorProblems {
            missing: vec![missing.clone()],
            unexpected: vec!["model.extra.weight".into()],
            misshapen: vec![format!("{}: found [2, 2], expected [4]", tensors[1].name)],
            duplicate: vec![duplicate.name.clone()],
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn a_name_that_stands_twice_in_one_file_is_a_duplicate() {
    let mut tensors = small_tensors();
    tensors.push(tensors[0].clone());
    for (name, bytes) in [
        ("model.safetensors", weights::safetensors(&tensors)),
        ("pytorch_model.bin", weights::torch(&tensors)),
    ] {
        assert_eq!(problems(&[(name, &bytes)]).duplicate, [tensors[0].name.clone()]);
    }
}

#[test]
fn a_type_that_weights_cannot_have_is_named_with_its_tensor() {
    let mut tensors = small_tensors();
    tensors[2] = Tensor::new(&tensors[2].name, "I8", &tensors[2].shape, 0);
    for (name, bytes, dtype) in [
        ("model.safetensors", weights::safetensors(&tensors), "I8"),
        ("pytorch_model.bin", weights::torch(&tensors), "CharStorage"),
    ] {
        let e = open_error(&[(name, &bytes)]);
        assert!(matches!(e, Error::Unsupported { .. }));
        assert!(e.to_string().contains(&tensors[2].name) && e.to_string().contains(dtype), "{e}");
    }
}

/// A config alone may be that of either family without a vision tower; the names of the tensors tell.
#[test]
fn the_names_of_the_tensors_tell_the_family() {
    let folder = folder(&[("model.safetensors", &weights::safetensors(&small_tensors()))]);
    let mut config = small_config();
    config["rotary_percent"] = json!(0.5);
    config["moe_config"]["router_type"] = json!("attn_router");
    let path = folder.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config().family, Family::Yuan2);
    config["rms_norm_eps"] = json!(1e-6);
    assert_eq!(parse_config(&config.to_string(), &path).unwrap().config.family, Family::Yuan3);
}

#[test]
fn index_and_shards_must_agree() {
    let tensors = small_tensors();
    let (a, b) = tensors.split_at(7);
    let (a, b) = (weights::safetensors(a), weights::safetensors(b));
    let names = || tensors.iter().map(|t| t.name.as_str());
    let right: Vec<_> = names().enumerate().map(|(i, n)| (n, if i < 7 { "a.st" } else { "b.st" })).collect();
    let open = |map: &[(&str, &str)]| {
        open_error(&[("a.st", &a), ("b.st", &b), ("model.safetensors.index.json", &index(map))]).to_string()
    };
    let mut wrong = right.clone();
    wrong[0].1 = "b.st";
    assert!(open(&wrong).contains("it is in a.st, not in b.st"));
    let e = open(&right[1..]);
    assert!(e.contains("not listed") && e.contains(right[0].0), "{e}");
    let more = [&right[..], &[("model.extra", "a.st")]].concat();
    assert!(open(&more).contains("model.extra"));
    let gone = [&right[..], &[("model.extra", "c.st")]].concat();
    assert!(open(&gone).contains("c.st"));
}

#[test]
fn reading_is_bounded_by_the_tensor() {
    let folder = folder(&[("model.safetensors", &weights::safetensors(&small_tensors()))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let name = "model.embed_tokens.weight";
    let mut out = vec![7.0];
    checkpoint.read_f32(name, 3..5, &mut out).unwrap();
    checkpoint.read_f32(name, 24..24, &mut out).unwrap();
    assert_eq!(out, [7.0, 3.0, 4.0]);
    #[allow(clippy::reversed_empty_ranges)]
    for range in [23..25, 5..4, 0..usize::MAX] {
        assert!(matches!(checkpoint.read_f32(name, range, &mut out), Err(Error::Argument(_))));
    }
    assert!(checkpoint.read_f32("model.nothing", 0..1, &mut out).is_err());
    // A file that shrinks while it is read.
    let file = fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_len(100).unwrap();
    assert!(matches!(checkpoint.read_f32("lm_head.weight", 0..1, &mut out), Err(Error::Io { .. })));
}

#[test]
fn identity_changes_with_the_files_and_the_config() {
    let folder = folder(&[("model.safetensors", &weights::safetensors(&small_tensors()))]);
    let identity = || Checkpoint::open(folder.path()).unwrap().identity();
    let first = identity();
    assert_eq!(first, identity());
    let model = fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
    model
        .set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_000_000_700))
        .unwrap();
    let second = identity();
    assert_ne!(first, second);
    let mut config = small_config();
    config["rotary_base"] = 40_890.into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    assert_ne!(identity(), second);
}

#[test]
fn files_that_are_something_else_are_refused_with_a_remedy() {
    let legacy = b"\x80\x02\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19.\x80\x02M\xE9\x03.";
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let compressed = weights::archive(&[("a/data.pkl", b"}.")], CompressionMethod::Stored);
    for (name, bytes, word) in [
        ("pytorch_model.bin", &legacy[..], "before 1.6"),
        ("pytorch_model.bin", pointer, "git lfs pull"),
        ("model.safetensors", pointer, "git lfs pull"),
        ("pytorch_model.bin", b"", "not a zip archive"),
        ("model.safetensors", b"", "0 bytes"),
        ("pytorch_model.bin", &compressed[..compressed.len() - 30], "the archive"),
    ] {
        let e = open_error(&[(name, bytes)]).to_string();
        assert!(e.contains(word), "{e}");
    }
    assert!(matches!(Checkpoint::open(Path::new("no such folder")), Err(Error::Io { .. })));
}

#[test]
fn pickles_as_every_protocol_writes_them_are_read() {
    let tensor = pickle::tensor("HalfStorage", "k", 9, 3, &[2, 3], &[3, 1]);
    let arguments = pickle::tuple(&[tensor.clone(), vec![0x88], b"}".to_vec()]);
    let parameter = [pickle::global("torch._utils", "_rebuild_parameter"), arguments, b"R".to_vec()].concat();
    // An OrderedDict with attributes, as protocol 4 has it: framed, with memo and short texts.
    let framed = [
        &b"\x80\x04\x95\0\0\0\0\0\0\0\0\x8C\x0Bcollections\x94\x8C\x0BOrderedDict\x94\x93\x94)R\x94\x8C\x01w"
            [..],
        &parameter,
        b"s}(\x8C\x09_metadatah\x02)RX\x01\0\0\0l](K\x01Ne\x8A\x01\xFFaub.",
    ]
    .concat();
    for bytes in [framed, pickle::dict(&[("w", tensor)]), pickle::dict(&[("w", parameter)])] {
        let tensors = parse_pickle(&bytes, Path::new("x.bin")).unwrap();
        assert_eq!((tensors.len(), tensors[0].name.as_str(), tensors[0].storage.as_str()), (1, "w", "k"));
        assert_eq!(
            (tensors[0].offset, tensors[0].storage_elements, &tensors[0].shape[..]),
            (3, 9, &[2, 3][..])
        );
    }
}

#[test]
fn archives_that_contradict_their_table_are_errors() {
    let tensor = pickle::tensor("FloatStorage", "0", 2, 0, &[2], &[1]);
    let pkl = pickle::dict(&[("w", tensor.clone()), ("tied", tensor)]);
    let parse = |entries: &[(&str, &[u8])], method| {
        let bytes = weights::archive(entries, method);
        parse_archive(Cursor::new(&bytes), bytes.len() as u64, Path::new("x.bin"))
    };
    let stored = |entries: &[(&str, &[u8])]| parse(entries, CompressionMethod::Stored);
    let entries = stored(&[("a/data.pkl", &pkl), ("a/data/0", &[0; 8])]).unwrap();
    assert_eq!((entries.len(), entries[0].offset), (2, entries[1].offset));
    for (entries, word) in [
        (&[("a/data.pkl", &pkl[..])][..], "missing"),
        (&[("a/data.pkl", &pkl), ("a/data/0", &[0; 9])], "9 bytes"),
        (&[("a/data.pkl", &pkl), ("a/data/0", &[0; 8]), ("a/byteorder", b"big")], "big"),
        (&[("a/data.pkl", &pkl), ("b/data.pkl", &pkl)], "more than one"),
        (&[("data.pkl", &pkl)], "no data.pkl"),
    ] {
        let e = stored(entries).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    }
}

#[test]
fn archives_with_a_64_bit_end_record_are_read_and_their_claims_are_checked() {
    let small = weights::torch(&small_tensors());
    check_small(&[("pytorch_model.bin", &weights::zip64(&small, None))]);
    for entries in [1 << 18, (1 << 18) + 1, 1 << 40, u64::MAX] {
        let e = open_error(&[("pytorch_model.bin", &weights::zip64(&small, Some(entries)))]).to_string();
        assert!(e.contains("the archive"), "{e}");
        assert_eq!(e.contains("claims"), entries > 1 << 18, "{e}");
    }
}

/// Opens a fixture and reads all of it.
fn read_all(path: &Path) -> (ModelConfig, Vec<Vec<f32>>) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let config = checkpoint.config().clone();
    let weights =
        names::tensors(&config).iter().map(|s| read(&checkpoint, &s.hf, s.shape.iter().product())).collect();
    (config, weights)
}

#[test]
fn bin_shards_hold_the_weights_of_the_safetensors_shards() {
    let (Some(bin), Some(st)) = (fixture("models/tiny-b-bin"), fixture("models/tiny-b")) else { return };
    assert!(read_all(&bin) == read_all(&st));
}

#[test]
fn all_fixtures_open() {
    let models = ["tiny-a", "tiny-b", "dense"].map(|name| fixture(&format!("models/{name}")));
    for path in models.into_iter().flatten().chain([demo()]) {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.names_rope_base(), path == demo());
        assert!(checkpoint.data_bytes() > 1 << 20);
        let vocab = read_vocab(&path, Some(checkpoint.config())).unwrap();
        assert_eq!(vocab.pieces.len(), checkpoint.config().vocab);
        assert_eq!(vocab, read_vocab(&path, None).unwrap());
        assert!(vocab.eod.is_some() && vocab.sep.is_some());
        let few = read_vocab_of(&path, Family::Yuan2, Some(100)).unwrap_err().to_string();
        assert!(few.contains("100"), "{few}");
    }
}

#[test]
fn special_strings_have_the_ids_of_the_authors_tokenizer() {
    let Some(path) = fixture("yuan-tokenizer") else { return };
    let goldens: Value = serde_json::from_slice(&fs::read(path.join("goldens.json")).unwrap()).unwrap();
    let full = read_vocab_of(&path, Family::Yuan2, Some(135_040)).unwrap();
    assert_eq!(read_vocab(&path, None).unwrap().pieces.len(), 134_958);
    assert_eq!(full.pieces.len(), 135_040);
    for (text, id) in goldens["special_ids"].as_object().unwrap() {
        assert_eq!(&full.pieces[id.as_u64().unwrap() as usize].text, text);
    }
    let names: Vec<&str> = full.special.iter().map(|(text, _)| text.as_str()).collect();
    let mut golden: Vec<&str> =
        goldens["hf_all_special_tokens"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    golden.sort_unstable_by_key(|text| names.iter().position(|name| name == text));
    assert_eq!(names, golden);
    assert_eq!(full.pieces[134_958].kind, PieceKind::Unused);
}

#[test]
fn a_chat_template_of_the_folder_replaces_the_default() {
    let folder = folder(&[
        ("tokenizer.model", &sentencepiece()),
        ("tokenizer_config.json", br#"{"chat_template":"{{ x }}"}"#),
    ]);
    assert_eq!(read_vocab(folder.path(), None).unwrap().chat_template.as_deref(), Some("{{ x }}"));
    fs::write(folder.path().join("tokenizer_config.json"), r#"{"chat_template":3}"#).unwrap();
    assert!(read_vocab(folder.path(), None).unwrap_err().to_string().contains("chat_template"));
}

/// A tokenizer of four pieces.
fn sentencepiece() -> Vec<u8> {
    let piece = |text: &str, kind: u8| {
        let message =
            [&[0x0A, text.len() as u8], text.as_bytes(), &[0x15, 0, 0, 0x80, 0xBF, 0x18, kind]].concat();
        [&[0x0A, message.len() as u8], &message[..]].concat()
    };
    let pieces = [piece("<unk>", 2), piece("<s>", 3), piece("\u{2581}a", 1), piece("<0x41>", 6)].concat();
    [&pieces[..], &[0x12, 2, 0x18, 2], b"\x1A\x0E\x0A\x08identity\x18\x01\x20\x00"].concat()
}

/// Feeds damaged copies of `bytes` to a parser, which must not panic; gives how many it took for sound.
fn survive(bytes: &[u8], count: u64, mut parse: impl FnMut(&[u8]) -> bool) {
    assert!(parse(bytes), "the undamaged file is sound");
    let sound = (0..count).filter(|seed| parse(&mutate::mutate(bytes, *seed))).count();
    assert!((sound as u64) < count, "no damage was noticed");
    println!("{sound} of {count} damaged files were still sound");
}

#[test]
fn damaged_safetensors_never_panic() {
    let path = Path::new("x.safetensors");
    survive(&weights::safetensors(&small_tensors()), MUTATIONS, |bytes| {
        let len = bytes.len() as u64;
        let Ok(header) = header_len(bytes, len, path) else { return false };
        let Ok(entries) = parse_header(&bytes[8..8 + header], len, path) else { return false };
        entries.iter().all(|entry| {
            let size = entry.shape.iter().product::<u64>() * entry.element.bytes().unwrap_or(0);
            assert!(entry.offset + size <= len, "{entry:?} is beyond the file");
            true
        })
    });
}

#[test]
fn damaged_pickles_never_panic() {
    let path = Path::new("x.bin");
    let tensors = small_tensors();
    survive(&weights::data_pkl(&tensors), MUTATIONS, |bytes| parse_pickle(bytes, path).is_ok());
    survive(&weights::data_pkl(&tensors[..2]), MUTATIONS, |bytes| parse_pickle(bytes, path).is_ok());
}

#[test]
fn damaged_archives_never_panic() {
    let path = Path::new("x.bin");
    let small = weights::torch(&small_tensors()[..4]);
    let parse = |bytes: &[u8]| {
        let len = bytes.len() as u64;
        let Ok(entries) = parse_archive(Cursor::new(bytes), len, path) else { return false };
        entries.iter().all(|entry| {
            let size = entry.shape.iter().product::<u64>() * entry.element.bytes().unwrap_or(0);
            assert!(entry.offset + size <= len, "{entry:?} is beyond the file");
            true
        })
    };
    survive(&small, MUTATIONS, parse);
    survive(&weights::zip64(&small, None), MUTATIONS, parse);
}

#[test]
fn damaged_configs_never_panic() {
    let path = Path::new("config.json");
    survive(small_config().to_string().as_bytes(), MUTATIONS, |bytes| {
        parse_config(&String::from_utf8_lossy(bytes), path).is_ok()
    });
}

#[test]
fn damaged_tokenizers_never_panic() {
    let path = Path::new("tokenizer.model");
    survive(&sentencepiece(), MUTATIONS, |bytes| parse_pieces(bytes, path).is_ok());
}

#[test]
fn damaged_indexes_never_panic() {
    let path = Path::new("i.json");
    let tensors = small_tensors();
    let map: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), "model-00001-of-00002.safetensors")).collect();
    survive(&index(&map), MUTATIONS, |bytes| parse_index(&String::from_utf8_lossy(bytes), path).is_ok());
}

#[test]
fn damaged_folders_never_panic() {
    let tensors = small_tensors();
    let map: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), "model.st")).collect();
    let (st, bin) = (weights::safetensors(&tensors), weights::torch(&tensors));
    for files in [
        &[
            ("model.st", &st[..]),
            ("model.safetensors.index.json", &index(&map)),
            ("tokenizer.model", &sentencepiece()),
        ][..],
        &[("pytorch_model.bin", &bin)],
    ] {
        let folder = folder(files);
        for (name, bytes) in files {
            survive(bytes, 500, |bytes| {
                fs::write(folder.path().join(name), bytes).unwrap();
                let vocab = read_vocab(folder.path(), None).is_ok();
                let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return false };
                for tensor in &tensors {
                    read(&checkpoint, &tensor.name, tensor.values().len());
                }
                vocab || *name != "tokenizer.model"
            });
            fs::write(folder.path().join(name), bytes).unwrap();
        }
    }
}
