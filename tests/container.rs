//! Containers: nothing damaged is used, nothing is lost on the way from one layout to another.

mod common;

use std::{fs, path::Path};

use common::mutate::mutate;
use yuan::{
    config::{Architecture, ModelConfig, RouterKind},
    container::{Bytes, Container},
    convert::Conversion,
    error::Error,
    model::{KvType, Model, State, Want},
    quantize::{DType, Options, Plan, synth},
};

/// The smallest model that has tiles: one layer, two experts of 32 neurons.
fn smallest() -> ModelConfig {
    ModelConfig {
        vocab: 300,
        layers: 1,
        heads: 2,
        projection: 256,
        ffn: 32,
        experts: 2,
        rope_dims: 64,
        ..synth::tiny()
    }
}

fn conversion(config: ModelConfig, options: &Options) -> Conversion<'static> {
    let vocab = common::letters(config.vocab);
    Conversion::synth(Plan::new(config, options).unwrap(), 1, &vocab).unwrap()
}

fn write(conversion: &Conversion<'_>, path: &Path) -> Container {
    conversion.write(path, &|_| true).unwrap();
    Container::open(path).unwrap()
}

fn q4_0() -> Options {
    Options { experts: DType::Q4_0, ..Options::default() }
}

/// Every tensor of both files has the same name, type and bytes.
fn same_tensors(a: &Path, b: &Path) {
    let list = |path: &Path| {
        let (file, container) = (fs::read(path).unwrap(), Container::open(path).unwrap());
        let one = |t: &yuan::container::gguf::TensorDesc| {
            let data = &file[t.offset as usize..][..t.bytes as usize];
            (t.name.clone(), t.stored.name(), blake3::hash(data))
        };
        let mut tensors: Vec<_> = container.tensors().iter().map(one).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    assert_eq!(list(a), list(b), "{} and {}", a.display(), b.display());
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let container = write(&conversion(smallest(), &Options::default()), &path);
    container.verify(&|_| true).unwrap();
    let tensors = container.tensors().to_vec();
    drop(container);
    let whole = fs::read(&path).unwrap();
    for tensor in &tensors {
        for at in [tensor.offset, tensor.offset + tensor.bytes / 2, tensor.offset + tensor.bytes - 1] {
            let mut bytes = whole.clone();
            bytes[at as usize] ^= 1 << (at % 8);
            let damaged = Container::parse(Bytes::copy(&bytes), &path).expect("the header is sound");
            match damaged.verify(&|_| true) {
                Err(Error::Checksum { tensor: named, .. }) => assert_eq!(named, tensor.name),
                other => panic!("a flipped bit at {at} gives {other:?}"),
            }
        }
    }
    // Padding behind a tensor belongs to the file too.
    let mut bytes = whole.clone();
    bytes[(tensors[0].offset + tensors[0].bytes) as usize + 7] = 1;
    let error = Container::parse(Bytes::copy(&bytes), &path).unwrap().verify(&|_| true).unwrap_err();
    assert!(error.to_string().contains("padding"), "{error}");
}

/// A model goes on with the file that it has opened. Windows keeps that beside the new one until nobody uses it any more.
#[test]
fn a_container_that_is_in_use_may_be_written_anew() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let mut digests = Vec::new();
    let digest = |container: &Container| container.identity().to_vec();
    let in_use = write(&conversion(smallest(), &Options::default()), &path);
    for options in [q4_0(), Options::default(), q4_0()] {
        let before = digest(&in_use);
        let new = write(&conversion(smallest(), &options), &path);
        assert_eq!(digest(&in_use), before);
        in_use.verify(&|_| true).unwrap();
        new.verify(&|_| true).unwrap();
        digests.push(digest(&new));
    }
    assert!(digests[0] != digests[1] && digests[0] == digests[2]);
    drop(in_use);
    write(&conversion(smallest(), &q4_0()), &path);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_sample_is_of_the_whole_file_and_finds_what_it_reads() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let container = write(&conversion(smallest(), &Options::default()), &path);
    let (count, all) = (container.tensors().len(), container.tensors().iter().map(|t| t.bytes).sum::<u64>());
    assert_eq!(container.verify_sample(all, &|_| true).unwrap(), (count, all));
    let (some, bytes) = container.verify_sample(all / 4, &|_| true).unwrap();
    assert!(some > 1 && some < count && bytes <= all / 4, "{some} of {count}, {bytes} of {all}");
    assert_eq!(container.verify_sample(0, &|_| true).unwrap().0, 1, "one, however large");
    assert!(matches!(container.verify_sample(all, &|_| false), Err(Error::Cancelled)));
    let last = container.tensors().last().unwrap().clone();
    drop(container);
    let mut bytes = fs::read(&path).unwrap();
    bytes[last.offset as usize] ^= 1;
    let damaged = Container::parse(Bytes::copy(&bytes), &path).unwrap();
    let found = damaged.verify_sample(all, &|_| true);
    assert!(matches!(found, Err(Error::Checksum { tensor, .. }) if tensor == last.name));
}

#[test]
fn a_flipped_bit_of_the_header_is_an_error() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let first = write(&conversion(smallest(), &Options::default()), &path).tensors()[0].offset;
    let whole = fs::read(&path).unwrap();
    let header = whole[..first as usize].iter().rposition(|&b| b != 0).unwrap();
    for at in (0..header).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(
            Container::parse(Bytes::copy(&bytes), &path).is_err(),
            "a flipped bit of byte {at} goes unseen"
        );
    }
}

#[test]
fn a_killed_conversion_resumes_to_the_same_bytes() {
    let folder = common::folder();
    let (whole, killed) = (folder.path().join("whole.gguf"), folder.path().join("killed.gguf"));
    let conversion = conversion(smallest(), &Options::default());
    write(&conversion, &whole);
    for stop in [1, 4, 9] {
        let done = std::cell::Cell::new(0);
        let stopping = |_| {
            done.set(done.get() + 1);
            done.get() < stop
        };
        assert!(matches!(conversion.write(&killed, &stopping), Err(Error::Cancelled)));
        assert!(!killed.exists(), "an unfinished file stands in its place");
        if stop == 4 {
            // Power went before the last tensor reached the disk.
            let partial = killed.with_added_extension("partial");
            let mut bytes = fs::read(&partial).unwrap();
            let last = Container::open(&whole).unwrap().tensors()[3].offset as usize;
            bytes[last] ^= 1;
            fs::write(&partial, bytes).unwrap();
        }
        let resumed = conversion.write(&killed, &|_| true).unwrap().resumed;
        assert_eq!(resumed, if stop == 4 { 3 } else { stop });
        assert!(fs::read(&killed).unwrap() == fs::read(&whole).unwrap(), "stopped after {stop} tensors");
        fs::remove_file(&killed).unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left behind");
}

#[test]
fn a_journal_of_another_conversion_is_not_resumed() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let conversion = conversion(smallest(), &Options::default());
    assert!(matches!(conversion.write(&path, &|_| false), Err(Error::Cancelled)));
    let vocab = common::letters(300);
    let other = Conversion::synth(Plan::new(smallest(), &Options::default()).unwrap(), 2, &vocab).unwrap();
    assert_eq!(other.write(&path, &|_| true).unwrap().resumed, 0);
    Container::open(&path).unwrap().verify(&|_| true).unwrap();
}

#[test]
fn an_output_that_does_not_fit_the_disk_is_refused_before_it_is_begun() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    // 40 TB: the config's limits allow it.
    let config = ModelConfig { layers: 1024, hidden: 65_536, projection: 65_536, heads: 512, ..smallest() };
    let plan = Plan::new(config, &Options { dense: DType::F32, ..Options::default() }).unwrap();
    let conversion = Conversion::synth(plan, 1, &common::letters(300)).unwrap();
    let error = conversion.write(&path, &|_| true).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn published_gguf_repacks_and_exports_byte_identical() {
    for (name, layout) in [("tiny-b-q4_0", "neuron tiles of q4_0"), ("tiny-b-f16", "rows and panels")] {
        let Some(published) = common::fixture(&format!("gguf/{name}.gguf")) else { continue };
        let folder = common::folder();
        let (tiles, back) = (folder.path().join("tiles.gguf"), folder.path().join("back.gguf"));
        let original = Container::open(&published).unwrap();
        let packed = write(&Conversion::repack(&original, &Options::default()).unwrap(), &tiles);
        assert_eq!(packed.layout_name(), layout);
        packed.verify(&|_| true).unwrap();
        write(&Conversion::export(&packed).unwrap(), &back);
        same_tensors(&published, &back);
        assert_eq!(original.vocab().unwrap(), Container::open(&back).unwrap().vocab().unwrap());
        assert_eq!(original.config(), Container::open(&back).unwrap().config());
    }
}

#[test]
fn an_exported_container_repacks_to_the_same_tiles() {
    for experts in [DType::Q3_K, DType::Q4_K, DType::Q4_0, DType::Q6_K, DType::Q8_0] {
        let options = Options { experts, ..Options::default() };
        for ffn in [32, 256, 320] {
            let folder = common::folder();
            let [tiles, rows, back] = ["tiles", "rows", "back"].map(|n| folder.path().join(n));
            // Encoded, not synthetic: the neurons that fill up a tile must be zero.
            let config = ModelConfig { ffn, ..smallest() };
            let source = synth::Random::new(&config, 3);
            let plan = Plan::new(config, &options).unwrap();
            let conversion =
                Conversion::of_checkpoint(plan, source, &common::letters(300), b"", None).unwrap();
            let container = write(&conversion, &tiles);
            let exported = write(&Conversion::export(&container).unwrap(), &rows);
            assert_eq!(exported.layout_name(), "standard GGUF, rows");
            let again = write(&Conversion::repack(&exported, &Options::default()).unwrap(), &back);
            let blob = |c: &Container, e| match c.expert(0, e).unwrap() {
                yuan::container::ExpertView::Tiles { bytes, .. } => bytes.to_vec(),
                yuan::container::ExpertView::Rows { .. } => {
                    panic!("{ffn} neurons did not become tiles again")
                }
            };
            assert!((0..2).all(|e| blob(&container, e) == blob(&again, e)), "{ffn} neurons");
        }
    }
}

#[test]
fn float_containers_are_encoded_like_their_checkpoint() {
    let folder = common::folder();
    let [float, direct, again] = ["float", "direct", "again"].map(|n| folder.path().join(n));
    let source = synth::Random::new(&smallest(), 3);
    let vocab = common::letters(300);
    let convert = |options: &Options, path: &Path| {
        let plan = Plan::new(smallest(), options).unwrap();
        write(&Conversion::of_checkpoint(plan, &source, &vocab, b"", None).unwrap(), path)
    };
    let exact = convert(&common::exact(), &float);
    convert(&Options::default(), &direct);
    write(&Conversion::requantize(&exact, &Options::default(), None).unwrap(), &again);
    assert!(fs::read(&direct).unwrap() == fs::read(&again).unwrap());
    let twice =
        Conversion::requantize(&Container::open(&direct).unwrap(), &Options::default(), None).err().unwrap();
    assert!(twice.to_string().contains("already"), "{twice}");
}

/// What is wrong with these bytes.
fn error(bytes: &[u8]) -> String {
    Container::parse(Bytes::copy(bytes), Path::new("damaged.gguf")).unwrap_err().to_string()
}

/// A container with a string of its header changed to another of the same length.
fn changed(whole: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    // The header's digest would give any change away.
    for (from, to) in [(from, to), (b"yuan.blake3.header", b"yuan.blake3.absent")] {
        let at = bytes.windows(from.len()).position(|w| w == from).expect("the string is in the header");
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn other_formats_and_versions_are_refused_by_name() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    write(&conversion(smallest(), &Options::default()), &path);
    let whole = fs::read(&path).unwrap();
    assert!(error(b"PK\x03\x04 a zip archive").contains("does not begin with GGUF"));
    let replaced = |from: &[u8], to: &[u8]| error(&changed(&whole, from, to));
    assert!(replaced(b"GGUF\x03", b"GGUF\x09").contains("version 9"));
    assert!(replaced(b"yuan2_moe", b"llama_moe").contains("llama_moe"));
    assert!(replaced(b"neuron-tile", b"neuron-tree").contains("neuron-tree"));
    for bytes in [&whole[..0], &whole[..3], &whole[..23], &whole[..whole.len() / 2]] {
        assert!(Container::parse(Bytes::copy(bytes), &path).is_err());
    }
}

/// Files without the key have the attention router, as all had before there was another.
#[test]
fn containers_say_when_their_router_is_linear() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let has = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
    write(&conversion(smallest(), &Options::default()), &path);
    assert!(!has(&fs::read(&path).unwrap(), b"yuan.router"));
    let linear = ModelConfig { router: RouterKind::Linear, ..smallest() };
    let container = write(&conversion(linear.clone(), &Options::default()), &path);
    assert_eq!(*container.config(), linear);
    let whole = fs::read(&path).unwrap();
    let replaced = |from: &[u8], to: &[u8]| error(&changed(&whole, from, to));
    assert!(replaced(b"linear", b"lunear").contains("the router lunear"));
    assert!(
        replaced(b"yuan.router", b"yuan.rooter").contains("what yuan.router"),
        "its architecture says so"
    );
    assert!(replaced(b"ffn_gate_inp", b"ffn_gate_imp").contains("blk.0.ffn_gate_inp.weight"));
    let dense = ModelConfig {
        architecture: Architecture::Dense,
        experts: 0,
        experts_used: 0,
        router: RouterKind::Linear,
        ..smallest()
    };
    assert!(dense.validate().unwrap_err().contains("router"));
}

/// Parses, verifies and runs what is left of a file. Whatever happens, it is no panic.
fn try_all(bytes: &[u8], opened: &mut usize) {
    let Ok(container) = Container::parse(Bytes::copy(bytes), Path::new("mutated.gguf")) else { return };
    *opened += 1;
    let _ = container.verify(&|_| true);
    let _ = container.vocab().map(yuan::tokenizer::Tokenizer::new);
    let _ = Conversion::export(&container).map(|c| c.file_bytes());
    let _ = Conversion::repack(&container, &Options::default()).map(|c| c.file_bytes());
    let options = yuan::model::Options { threads: 1, ..Default::default() };
    if let Ok(model) = Model::load(&container, &options)
        && let Ok(mut state) = State::new(model.config(), 2, KvType::F16)
    {
        let _ = model.forward_one(&[0, 1], &mut state, Want::Last);
    }
}

fn survives_mutations(whole: &[u8], header: usize) {
    let mut opened = 0;
    for seed in 0..10_000 {
        // Most mutations hit the header; the rest may fall anywhere.
        let bytes = match seed % 10 {
            0 => mutate(whole, seed),
            _ => [&mutate(&whole[..header], seed), &whole[header..]].concat(),
        };
        try_all(&bytes, &mut opened);
    }
    eprintln!("{opened} of 10000 mutated files still open");
    assert!(opened > 50, "mutations are too coarse to reach anything behind the header");
}

#[test]
fn mutated_tile_containers_are_errors_never_panics() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let header = write(&conversion(smallest(), &Options::default()), &path).tensors()[0].offset as usize;
    let mut whole = fs::read(&path).unwrap();
    let at = whole.windows(18).position(|w| w == b"yuan.blake3.header").unwrap();
    whole[at..at + 18].copy_from_slice(b"yuan.blake3.absent");
    survives_mutations(&whole, header);
}

#[test]
fn mutated_standard_containers_are_errors_never_panics() {
    let folder = common::folder();
    let [tiles, rows] = ["tiles", "rows"].map(|n| folder.path().join(n));
    let container = write(&conversion(smallest(), &q4_0()), &tiles);
    let header = write(&Conversion::export(&container).unwrap(), &rows).tensors()[0].offset as usize;
    survives_mutations(&fs::read(&rows).unwrap(), header);
}

/// The reader of the PyPI package `gguf` lists our files, where that package is installed.
#[cfg(unix)]
#[test]
fn gguf_dump_lists_our_files() {
    let python = std::env::var("YUAN_PYTHON").unwrap_or_else(|_| "python3".into());
    let run = |args: &[&str]| std::process::Command::new(&python).args(args).output();
    if !run(&["-c", "import gguf"]).is_ok_and(|o| o.status.success()) {
        return common::skip(format!("{python} has no package gguf"));
    }
    let folder = common::folder();
    let [tiles, rows] = ["tiles.gguf", "rows.gguf"].map(|n| folder.path().join(n));
    let container = write(&conversion(smallest(), &Options::default()), &tiles);
    write(&Conversion::export(&container).unwrap(), &rows);
    for path in [&tiles, &rows] {
        let output = run(&["-m", "gguf.scripts.gguf_dump", path.to_str().unwrap()]).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("token_embd.weight") && text.contains("yuan2_moe"), "{text}");
    }
}

/// ggml's own reader finds every tensor of our files where we put it.
#[cfg(feature = "ggml")]
#[test]
fn ggml_lists_our_files() {
    let folder = common::folder();
    let [tiles, rows] = ["tiles.gguf", "rows.gguf"].map(|n| folder.path().join(n));
    let container = write(&conversion(smallest(), &Options::default()), &tiles);
    write(&Conversion::export(&container).unwrap(), &rows);
    for path in [&tiles, &rows] {
        let ours = Container::open(path).unwrap();
        let theirs = yuan_ggml::tensors_of(path).expect("ggml reads the file");
        let ours: Vec<_> =
            ours.tensors().iter().map(|t| (&*t.name, t.offset as usize, t.bytes as usize)).collect();
        let theirs: Vec<_> = theirs.iter().map(|t| (&*t.name, t.offset, t.bytes)).collect();
        assert_eq!(ours, theirs);
    }
}
