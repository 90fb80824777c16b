//! What a pickle says about tensors: a tensor is a window of a storage, and a storage is a file of the archive.

use std::{collections::HashMap, fmt, path::Path};

use super::entry::{ElementType, elements};
use crate::error::{Error, Result};

/// The names of Python that a dictionary of tensors mentions. They are only recognized, never called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Global<'a> {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A storage of this class.
    Storage(&'a str),
}

impl fmt::Display for Global<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OrderedDict => "collections.OrderedDict",
            Self::RebuildTensor => "torch._utils._rebuild_tensor_v2",
            Self::RebuildParameter => "torch._utils._rebuild_parameter",
            Self::Storage(class) => class,
        })
    }
}

/// A run of elements that tensors are windows of.
#[derive(Debug)]
pub(super) struct Storage<'a> {
    pub class: &'a str,
    /// Name of its file in the archive's folder `data`.
    pub key: &'a str,
    pub elements: u64,
}

/// A window of a storage.
#[derive(Debug)]
pub(super) struct Tensor {
    /// Number of the storage.
    pub storage: usize,
    /// Elements of the storage before the first.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Elements of the storage between neighbours, for every dim.
    pub stride: Vec<u64>,
}

impl Tensor {
    /// More dims than any weight has.
    pub const MOST_DIMS: usize = 8;

    /// Whether the elements stand in row-major order without gaps. Strides of dims that have one element do not matter.
    fn is_row_major(&self) -> bool {
        let mut expected = Some(1u64);
        self.shape.len() == self.stride.len()
            && self.shape.iter().zip(&self.stride).rev().all(|(&dim, &stride)| {
                let fits = dim == 1 || Some(stride) == expected;
                expected = expected.and_then(|e| e.checked_mul(dim));
                fits
            })
    }
}

/// A tensor of a pickled dictionary, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pickled {
    /// Name in the dictionary.
    pub name: String,
    /// Type of the elements.
    pub element: ElementType,
    /// Shape, outermost first.
    pub shape: Vec<u64>,
    /// Name of the storage's file in the archive's folder `data`.
    pub storage: String,
    /// Elements of the whole storage.
    pub storage_elements: u64,
    /// Elements of the storage before the tensor; the tensor ends within the storage.
    pub offset: u64,
}

/// The longest name of a tensor or a storage.
const LONGEST_NAME: usize = 1024;

/// Checks the items of a dictionary: each must be a row-major window that lies inside of its storage. A name that stands
/// more than once gives two tensors.
pub(super) fn named_tensors(
    items: Vec<(&str, Option<&Tensor>)>,
    storages: &[Storage<'_>],
    path: &Path,
) -> Result<Vec<Pickled>> {
    let mut times: HashMap<&str, u32> = HashMap::new();
    let mut found = Vec::new();
    for (name, tensor) in items {
        if name.len() > LONGEST_NAME {
            return Err(Error::bad_file(path, "data.pkl", format!("a name of {} bytes", name.len())));
        }
        let times = times.entry(name).or_default();
        *times += 1;
        // A short program can repeat a long name forever.
        if *times > 2 {
            continue;
        }
        let bad = |problem: &str| Error::bad_file(path, format!("data.pkl, tensor {name}"), problem);
        let tensor = tensor.ok_or_else(|| bad("it is not a tensor"))?;
        let storage = storages.get(tensor.storage).ok_or_else(|| bad("it has no storage"))?;
        let element = ElementType::from_torch(storage.class).ok_or_else(|| bad("it has no type"))?;
        if storage.key.len() > LONGEST_NAME {
            return Err(bad("the name of its storage is too long"));
        }
        if !tensor.is_row_major() {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("tensor {name} of shape {:?} with strides {:?}", tensor.shape, tensor.stride),
                remedy: "save it with .contiguous(), or as safetensors".into(),
            });
        }
        let end = elements(&tensor.shape).and_then(|n| n.checked_add(tensor.offset));
        if end.is_none_or(|end| end > storage.elements) {
            return Err(bad("it reaches beyond its storage"));
        }
        found.push(Pickled {
            name: name.to_owned(),
            element,
            shape: tensor.shape.clone(),
            storage: storage.key.to_owned(),
            storage_elements: storage.elements,
            offset: tensor.offset,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(offset: u64, shape: &[u64], stride: &[u64]) -> Tensor {
        Tensor { storage: 0, offset, shape: shape.to_vec(), stride: stride.to_vec() }
    }

    fn check(tensor: &Tensor) -> Result<Vec<Pickled>> {
        let storages = [Storage { class: "HalfStorage", key: "0", elements: 12 }];
        named_tensors(vec![("w", Some(tensor))], &storages, Path::new("x.bin"))
    }

    #[test]
    fn row_major_windows_are_accepted() {
        for t in [
            tensor(0, &[3, 4], &[4, 1]),
            tensor(6, &[2, 3, 1], &[3, 1, 99]),
            tensor(12, &[0, 4], &[4, 1]),
            tensor(11, &[], &[]),
            tensor(0, &[1, 12], &[7, 1]),
        ] {
            let found = check(&t).unwrap();
            assert_eq!((found[0].offset, &found[0].shape), (t.offset, &t.shape));
        }
    }

    #[test]
    fn transposed_and_strided_tensors_are_refused_by_name() {
        for t in [
            tensor(0, &[4, 3], &[1, 4]),
            tensor(0, &[2, 2], &[4, 1]),
            tensor(0, &[4], &[2]),
            tensor(0, &[4], &[]),
        ] {
            let e = check(&t).unwrap_err();
            assert!(matches!(e, Error::Unsupported { .. }) && e.to_string().contains("tensor w"), "{e}");
        }
    }

    #[test]
    fn tensors_stay_inside_of_their_storage() {
        for t in [
            tensor(1, &[3, 4], &[4, 1]),
            tensor(u64::MAX, &[3], &[1]),
            tensor(0, &[1 << 40, 1 << 40], &[1 << 40, 1]),
        ] {
            let e = check(&t).unwrap_err();
            assert!(matches!(e, Error::BadFile { .. }), "{e}");
        }
    }

    #[test]
    fn a_name_that_is_repeated_forever_gives_two_tensors() {
        let storages = [Storage { class: "HalfStorage", key: "0", elements: 12 }];
        let t = tensor(0, &[2], &[1]);
        let found = named_tensors(vec![("w", Some(&t)); 1000], &storages, Path::new("x.bin")).unwrap();
        assert_eq!(found.len(), 2);
    }
}
