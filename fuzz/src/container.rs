//! Our containers and standard GGUF files: opened, verified, loaded, and run for a few tokens.

use std::{fs, path::Path, sync::OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use yuan::{
    container::{Bytes, Container},
    convert::Conversion,
    model::KvType,
    pager::Paging,
};

use crate::{
    Seed,
    gguf::{Edit, File},
    model,
};

/// A model, what is changed in its file, and how it is run.
#[derive(Arbitrary, Debug)]
struct Input {
    base: u8,
    way: u8,
    edits: Vec<Edit>,
}

/// Changes of our containers.
pub fn run(data: &[u8]) {
    static BASES: OnceLock<Vec<File>> = OnceLock::new();
    changed(
        data,
        BASES.get_or_init(|| model::containers().iter().map(|file| File::take_apart(file)).collect()),
    );
}

/// Changes of standard files.
pub fn run_standard(data: &[u8]) {
    static BASES: OnceLock<Vec<File>> = OnceLock::new();
    changed(
        data,
        BASES.get_or_init(|| model::standard().iter().map(|file| File::take_apart(file)).collect()),
    );
}

fn changed(data: &[u8], bases: &[File]) {
    let Ok(Input { base, way, edits }) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    if edits.len() > 32 {
        return;
    }
    let base = &bases[usize::from(base) % bases.len()];
    let file = base.changed(&edits);
    let kv = [KvType::F16, KvType::F32, KvType::Q8_0, KvType::Q4_0][usize::from(way / 8) % 4];
    // Of sixteen, one is in a file and streamed, one mapped, one is made another file of; the rest are in memory, which is fastest.
    match way % 16 {
        0 => from_file(&file, Paging::Streamed, kv),
        1 => from_file(&file, Paging::Mapped, kv),
        2 => another(&file),
        _ => {
            if let Ok(container) = Container::parse(Bytes::copy(&file), Path::new("m.gguf")) {
                model::use_it(&container, &model::options(Paging::Auto), kv);
            }
        }
    }
}

fn from_file(file: &[u8], mode: Paging, kv: KvType) {
    let path = model::folder().join("m.gguf");
    fs::write(&path, file).expect("room for a small file");
    if let Ok(container) = Container::open(&path) {
        model::use_it(&container, &model::options(mode), kv);
    }
    // Not written over while it may be mapped.
    fs::remove_file(&path).expect("it is there");
}

/// What `yuan-quant` makes of a GGUF file: one of tiles, and a standard one.
fn another(file: &[u8]) {
    let path = model::folder().join("other.gguf");
    let Ok(container) = Container::parse(Bytes::copy(file), Path::new("m.gguf")) else { return };
    for made in
        [Conversion::repack(&container, &yuan::quantize::Options::default()), Conversion::export(&container)]
    {
        let Ok(made) = made else { continue };
        if made.file_bytes() < 64 << 20 && made.write(&path, &|_| true).is_ok() {
            Container::open(&path).expect("what was made of a file can be opened");
        }
    }
}

/// Every base, in every way, with nothing changed.
pub fn seeds() -> Vec<Seed> {
    (0..8).flat_map(|base| [0, 1, 2, 3, 8 + 3].map(|way| vec![base, way])).collect()
}
