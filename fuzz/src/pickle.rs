//! What `torch.save` writes: pickles, and archives with one.

use std::{io::Cursor, path::Path};

use yuan::checkpoint::{archive::parse_archive, pickle::parse_pickle};
use zip::CompressionMethod;

use crate::{
    Seed, safetensors,
    weights::{self, Tensor},
};

/// The first byte says what the others are: an archive, or a pickle, which is also put into an archive with storages, since the sum of its bytes would not
/// be right there by chance.
pub fn run(data: &[u8]) {
    let path = Path::new("f.bin");
    let Some((form, data)) = data.split_first() else { return };
    if form % 2 == 0 {
        return archive(data, path);
    }
    if let Ok(tensors) = parse_pickle(data, path) {
        for tensor in tensors {
            assert!(tensor.offset <= tensor.storage_elements, "{tensor:?}");
        }
        let storages: [&[u8]; 4] = [&[0; 12], &[0; 8], &[0; 1024], &[]];
        let names = ["a/data/0", "a/data/1", "a/data/2", "a/data/3"];
        let mut entries = vec![("a/data.pkl", data), ("a/byteorder", b"little")];
        entries.extend(names.into_iter().zip(storages));
        archive(&weights::archive(&entries, CompressionMethod::Stored), path);
    }
}

fn archive(data: &[u8], path: &Path) {
    let len = data.len() as u64;
    if let Ok(entries) = parse_archive(Cursor::new(data), len, path) {
        safetensors::inside(&entries, len);
    }
}

/// A small archive, the same in the form of more than 4 GiB, and its pickle.
pub fn seeds() -> Vec<Seed> {
    let tensors = [Tensor::new("w", "BF16", &[2, 3], 1), Tensor::new("b", "F32", &[2], 0)];
    let file = weights::torch(&tensors);
    let large = weights::zip64(&file, None);
    let behind = |form: u8, bytes: &[u8]| [&[form], bytes].concat();
    vec![behind(0, &file), behind(0, &large), behind(1, &weights::data_pkl(&tensors))]
}
