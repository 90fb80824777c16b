//! Files of importances: read and written in llama.cpp's form, and refused where they are damaged or of another model.

#[path = "common/mutate.rs"]
mod mutate;

use std::{fs, path::Path};

use mutate::{Random, mutate};
use yuan::{
    checkpoint::names,
    config::ModelConfig,
    container::{
        Bytes,
        imatrix::{Gram, Imatrix},
    },
    convert::ImportanceFile,
    error::Result,
    quantize::{DType, Importance, synth},
};

/// A file as llama.cpp writes it, byte by byte: of q and of the experts of one layer, `experts` of them, 256 columns.
fn by_hand(experts: u64) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.bytes());
    };
    out.extend(3_u32.to_le_bytes());
    out.extend(4_u64.to_le_bytes());
    out.extend(4_u64.to_le_bytes());
    text(&mut out, "general.type");
    out.extend(8_u32.to_le_bytes());
    text(&mut out, "imatrix");
    text(&mut out, "imatrix.datasets");
    [9_u32, 8].iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(1_u64.to_le_bytes());
    text(&mut out, "诗.txt");
    for (key, value) in [("imatrix.chunk_count", 7_u32), ("imatrix.chunk_size", 512)] {
        text(&mut out, key);
        out.extend(4_u32.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    let mut data = Vec::new();
    for (name, n) in [("blk.0.attn_q.weight", 1), ("blk.0.ffn_gate_exps.weight", experts)] {
        for (suffix, width, value) in [("in_sum2", 256, 2.5_f32), ("counts", 1, 3584.0)] {
            text(&mut out, &format!("{name}.{suffix}"));
            out.extend(2_u32.to_le_bytes());
            [width, n].iter().for_each(|d: &u64| out.extend(d.to_le_bytes()));
            out.extend(0_u32.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            for i in 0..width * n {
                data.extend((value + (i % 3) as f32).to_le_bytes());
            }
            data.resize(data.len().next_multiple_of(32), 0);
        }
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn parse(bytes: &[u8]) -> Result<Imatrix> {
    Imatrix::parse(&Bytes::copy(bytes), Path::new("importance.gguf"))
}

/// What one could know of a model, with second moments of all kinds.
fn made(config: &ModelConfig, random: &mut Random) -> Imatrix {
    let mut imatrix = Imatrix {
        datasets: vec!["a.txt".into(), "诗.txt".into()],
        chunks: 3,
        chunk_size: 512,
        ..Imatrix::default()
    };
    let mut number = || random.below(1000) as f32 / 8.0;
    for spec in names::tensors(config) {
        let Some((name, matrix)) = names::importance(&spec, config) else { continue };
        let entry = imatrix.entries.entry(name.clone()).or_default();
        entry.cols = spec.shape[1..].iter().product();
        entry.counts.push(number());
        entry.sums.extend((0..entry.cols).map(|_| number()));
        let (width, blocks, matrices) = match &*name {
            n if n.ends_with("attn_q.weight") || n.ends_with("ffn_gate_exps.weight") => (entry.cols, 1, 1),
            n if n.ends_with("ffn_down_exps.weight") => (256, entry.cols.div_ceil(256), config.experts),
            _ => continue,
        };
        let gram = entry.gram.get_or_insert_with(|| Gram::zeros(width, blocks, matrices));
        if matrix < matrices {
            for block in 0..blocks {
                for sample in 0..3 {
                    let x: Vec<f32> =
                        (0..width).map(|c| ((c * 7 + sample * 31 + block) % 13) as f32 - 6.0).collect();
                    let sums = gram.block_mut(matrix, block);
                    sums.iter_mut().enumerate().for_each(|(i, s)| *s += x[i / width] * x[i % width]);
                }
            }
        }
    }
    imatrix
}

#[test]
fn a_file_of_llama_cpp_is_read() {
    let read = parse(&by_hand(32)).unwrap();
    assert_eq!(
        (read.chunks, read.chunk_size, read.datasets.as_slice()),
        (7, 512, ["诗.txt".to_owned()].as_slice())
    );
    let experts = &read.entries["blk.0.ffn_gate_exps.weight"];
    assert_eq!((experts.cols, experts.counts.len(), experts.sums.len()), (256, 32, 256 * 32));
    assert_eq!((experts.counts[1], experts.sums[256]), (3585.0, 2.5 + 1.0));
    assert_eq!(read.entries.len(), 2);
}

/// Each tensor's name, dims from the columns on, and type, and each key with its type and value: what llama.cpp's loader looks for.
#[test]
fn what_is_written_is_as_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("importance.gguf");
    parse(&by_hand(32)).unwrap().write(&path).unwrap();
    let (written, by_hand) = (fs::read(&path).unwrap(), by_hand(32));
    assert_eq!(parse(&written).unwrap(), parse(&by_hand).unwrap());
    let place = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|w| w == part);
    let names = ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"];
    let lengths = [4 + 8 + 7, 4 + 4 + 8 + 8 + 7, 8, 8];
    let tensors = [
        "attn_q.weight.in_sum2",
        "attn_q.weight.counts",
        "gate_exps.weight.in_sum2",
        "gate_exps.weight.counts",
    ];
    for (name, length) in names.into_iter().zip(lengths).chain(tensors.map(|name| (name, 4 + 16 + 4))) {
        let at = place(&by_hand, name.as_bytes()).unwrap();
        let entry = &by_hand[at..][..name.len() + length];
        assert!(place(&written, entry).is_some(), "{name}");
    }
}

#[test]
fn all_that_is_known_survives_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("importance.gguf");
    let imatrix = made(&synth::tiny(), &mut Random::new(1));
    imatrix.write(&path).unwrap();
    assert_eq!(Imatrix::open(&path).unwrap(), Imatrix { notes: Default::default(), ..imatrix });
}

#[test]
fn a_file_of_another_model_is_refused() {
    let config = synth::tiny();
    let path = Path::new("importance.gguf");
    let refused = |imatrix: Imatrix, config: &ModelConfig| {
        let problem = ImportanceFile::new(imatrix, path, config).err().expect("it is refused").to_string();
        assert!(
            problem.contains("of another model") && problem.contains("yuan-quant calibrate"),
            "{problem}"
        );
    };
    let imatrix = made(&config, &mut Random::new(2));
    assert!(ImportanceFile::new(imatrix.clone(), path, &config).is_ok());
    refused(imatrix.clone(), &ModelConfig { hidden: 512, ..config.clone() });
    refused(imatrix.clone(), &ModelConfig { experts: config.experts / 2, ..config.clone() });
    let mut strange = imatrix;
    strange.entries = strange.entries.into_iter().map(|(name, e)| (format!("model.{name}"), e)).collect();
    refused(strange, &config);
    let container = parse(b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap_err().to_string();
    assert!(container.contains("general.type") && container.contains("llama-imatrix"), "{container}");
}

/// Whatever a file holds, it is refused or used: never a panic.
#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("importance.gguf");
    let config = synth::tiny();
    made(&config, &mut Random::new(3)).write(&path).unwrap();
    let sound = fs::read(&path).unwrap();
    let names: Vec<(String, usize)> = names::tensors(&config)
        .into_iter()
        .filter(|spec| names::importance(spec, &config).is_some())
        .map(|spec| (spec.hf, spec.shape[1..].iter().product()))
        .collect();
    let weights: Vec<f32> = (0..512).map(|i| ((i * i) as f32).sin()).collect();
    let (mut refused, mut used) = (0, 0);
    for seed in 0..1200 {
        let bytes = match seed % 3 {
            0 => mutate(&by_hand(config.experts as u64), seed),
            // Mostly of the header.
            1 => [mutate(&sound[..4096], seed), sound[4096..].to_vec()].concat(),
            _ => mutate(&sound, seed),
        };
        let Ok(file) = parse(&bytes).and_then(|read| ImportanceFile::new(read, &path, &config)) else {
            refused += 1;
            continue;
        };
        file.summary();
        file.digest();
        for (name, cols) in names.iter().skip(seed as usize % 29).step_by(29) {
            let Ok(Some(inputs)) = file.inputs(name, *cols) else { continue };
            assert!(inputs.columns.iter().all(|c| c.is_finite() && *c > 0.0), "seed {seed}, {name}");
            if inputs.columns.len() <= weights.len() {
                let row = &weights[..inputs.columns.len()];
                let mut out = vec![0; DType::Q4_K.row_bytes(row.len()).unwrap()];
                inputs.encode(DType::Q4_K, row, &mut out);
                let mut back = vec![0.0; row.len()];
                yuan_kernels::dequantize(DType::Q4_K, &out, &mut back);
                assert!(back.iter().all(|w| w.is_finite()), "seed {seed}, {name}");
            }
            used += 1;
        }
    }
    assert!(refused > 100 && used > 100, "{refused} refused, {used} used");
}
