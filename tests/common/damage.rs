//! Containers whose weights are damaged.
#![allow(dead_code)]

use std::{
    fs::OpenOptions,
    io::{Seek, SeekFrom, Write},
    path::Path,
};

use yuan::{Error, container::Container};

/// Overwrites the tensors whose names begin with `name`, in place, as a program or a drive gone wrong would. Their scales are then not numbers.
pub fn damage(container: &Container, name: &str) {
    let tensors: Vec<_> = container.tensors().iter().filter(|t| t.name.starts_with(name)).collect();
    assert!(!tensors.is_empty(), "{name}");
    for tensor in tensors {
        overwrite(container.path(), tensor.offset, &vec![0xFF; tensor.bytes as usize]);
    }
}

pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

/// The error names the file and what to do.
#[track_caller]
pub fn is_damaged<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.expect_err("the results are not numbers");
    assert!(matches!(error, Error::BadFile { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains(".gguf") && error.contains("yuan-quant verify"), "{error}");
}
