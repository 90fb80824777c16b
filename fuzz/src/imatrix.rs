//! Files of importances, and a conversion by them.

use std::{fs, path::Path, sync::OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use yuan::{
    checkpoint::names,
    container::{
        Bytes, Container,
        imatrix::{Entry, Gram, Imatrix},
        value::Metadata,
    },
    convert::{Conversion, ImportanceFile},
    quantize::{DType, Options},
};

use crate::{
    Seed,
    gguf::{Edit, File},
    model,
};

/// The first byte says whether the file is used for a conversion, too.
pub fn run(data: &[u8]) {
    static BASE: OnceLock<(File, Container)> = OnceLock::new();
    let (file, container) = BASE.get_or_init(base);
    let Ok((way, edits)) = <(u8, Vec<Edit>)>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    if edits.len() > 32 {
        return;
    }
    let bytes = Bytes::copy(&file.changed(&edits));
    let path = Path::new("m.imatrix");
    let Ok(imatrix) = Imatrix::parse(&bytes, path) else { return };
    for entry in imatrix.entries.values() {
        assert_eq!(entry.sums.len(), entry.cols * entry.counts.len());
    }
    let out = model::folder().join("out.imatrix");
    imatrix.write(&out).expect("what was read can be written");
    let again = Imatrix::open(&out).expect("and read again");
    // Products are not looked at, and may be no numbers.
    for ((name, entry), (same, read)) in imatrix.entries.iter().zip(&again.entries) {
        assert_eq!((name, &entry.sums, &entry.counts), (same, &read.sums, &read.counts));
    }
    assert_eq!(again.entries.len(), imatrix.entries.len());
    let Ok(importance) = ImportanceFile::new(imatrix, path, container.config()) else { return };
    let _ = (importance.memory(2), importance.summary());
    if way % 8 != 0 {
        return;
    }
    let made = model::folder().join("made.gguf");
    let options =
        Options { experts: [DType::Q4_K, DType::F32][usize::from(way / 8 % 2)], ..Options::default() };
    if let Ok(conversion) = Conversion::requantize(container, &options, Some(&importance))
        && conversion.write(&made, &|_| true).is_ok()
    {
        Container::open(&made).expect("what was made can be opened").verify(&|_| true).expect("it is sound");
    }
}

/// A file for a model in rows, with products of inputs, and the model.
fn base() -> (File, Container) {
    let (mut config, _) = model::configs().swap_remove(0);
    (config.hidden, config.projection, config.ffn) = (64, 64, 256);
    let path = model::folder().join("floats.gguf");
    model::write(&config, &Options { experts: DType::F32, dense: DType::F32, ..Options::default() }, &path);
    let container = Container::open(&path).expect("a container");
    let mut imatrix = Imatrix {
        datasets: vec!["text".into()],
        chunks: 2,
        chunk_size: 8,
        notes: Metadata::default(),
        entries: Default::default(),
    };
    for spec in names::tensors(&config) {
        let Some((name, matrix)) = names::importance(&spec, &config) else { continue };
        let cols: usize = spec.shape[1..].iter().product();
        let entry =
            imatrix.entries.entry(name).or_insert(Entry { cols, sums: vec![], counts: vec![], gram: None });
        if matrix >= entry.counts.len() {
            entry.counts.push(4.0);
            entry.sums.extend((0..cols).map(|i| i as f32));
        }
        if entry.gram.is_none() && cols <= 64 {
            let mut gram = Gram::zeros(cols, 1, 1);
            (0..cols).for_each(|i| gram.block_mut(0, 0)[i * cols + i] = i as f32);
            entry.gram = Some(gram);
        }
    }
    let path = model::folder().join("base.imatrix");
    imatrix.write(&path).expect("a file");
    (File::take_apart(&fs::read(&path).expect("what was written just now")), container)
}

/// The file as it is.
pub fn seeds() -> Vec<Seed> {
    vec![vec![1], vec![0], vec![8]]
}
