//! Which files of a folder hold the weights.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, fs, io,
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::file::read_text;
use crate::error::{Error, Result};

/// Larger than any index: a tensor takes about a hundred bytes.
pub(super) const LARGEST_INDEX: u64 = 64 << 20;

/// The two ways in which weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Safetensors,
    Torch,
}

/// The files that hold the weights, and what the index says where which tensor is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub format: Format,
    /// Names in the folder, sorted.
    pub files: Vec<String>,
    /// The name of the index, and its file for every tensor.
    pub index: Option<(String, BTreeMap<String, String>)>,
}

/// Looks for weights in the order: a file of GPTQ as the authors' fork names it, safetensors before `.bin`; of each a single file, an index, loose
/// shards.
///
/// # Errors
/// When there are none, the folder cannot be read, or the index is damaged.
pub(super) fn find(folder: &Path) -> Result<Layout> {
    let names = names(folder)?;
    let quantized: Vec<String> = names.iter().filter(|name| is_gptq(name)).cloned().collect();
    if let Some(other) = quantized.iter().find(|name| kind(name) != kind(&quantized[0])) {
        return Err(Error::BadFile {
            path: folder.join(other),
            place: "the folder".into(),
            problem: format!("it has {}, too, a checkpoint of its own", quantized[0]),
            remedy: "move one of them with its quantize_config.json to another folder",
        });
    }
    if !quantized.is_empty() {
        return Ok(Layout { format: Format::Safetensors, files: quantized, index: None });
    }
    for (format, single, index, loose) in [
        (Format::Safetensors, "model.safetensors", "model.safetensors.index.json", ("", ".safetensors")),
        (Format::Torch, "pytorch_model.bin", "pytorch_model.bin.index.json", ("pytorch_model-", ".bin")),
    ] {
        if names.contains(single) {
            return Ok(Layout { format, files: vec![single.to_owned()], index: None });
        }
        if names.contains(index) {
            let path = folder.join(index);
            let map = parse_index(&read_text(&path, LARGEST_INDEX)?, &path)?;
            let files: BTreeSet<&String> = map.values().collect();
            if let Some(missing) = files.iter().find(|file| !names.contains(**file)) {
                return Err(Error::BadFile {
                    path: folder.join(missing),
                    place: "the file".into(),
                    problem: format!("it is missing, and {index} names it"),
                    remedy: "fetch the rest of the checkpoint",
                });
            }
            let files = files.into_iter().cloned().collect();
            return Ok(Layout { format, files, index: Some((index.to_owned(), map)) });
        }
        let is_loose = |name: &&String| name.starts_with(loose.0) && name.ends_with(loose.1);
        let files: Vec<String> = names.iter().filter(is_loose).cloned().collect();
        if !files.is_empty() {
            return Ok(Layout { format, files, index: None });
        }
    }
    Err(Error::BadFile {
        path: folder.into(),
        place: "the folder".into(),
        problem: "it has no weights: neither *.safetensors nor pytorch_model*.bin".into(),
        remedy: "give the folder of a Hugging Face checkpoint with all of its files",
    })
}

/// Whether a file is named `gptq_model-4bit-128g.safetensors`, or is a shard of such a file.
fn is_gptq(name: &str) -> bool {
    name.starts_with("gptq_model-") && name.ends_with(".safetensors")
}

/// `gptq_model-4bit` of such a name.
fn kind(name: &str) -> Option<&str> {
    name.split_once("bit").map(|(before, _)| before)
}

/// The names of the folder's files that are UTF-8.
fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let names = || -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(folder)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    names().map_err(Error::io("read", folder))
}

/// Parses an index: the file of every tensor; `path` is for messages.
///
/// # Errors
/// [`Error::BadFile`] when it is no such table, names a tensor twice or no tensor, or a file that is not a plain name in the folder.
pub fn parse_index(text: &str, path: &Path) -> Result<BTreeMap<String, String>> {
    let Index { weight_map: WeightMap(map) } = serde_json::from_str(text).map_err(|e| {
        Error::bad_file(path, format!("line {}, column {}", e.line(), e.column()), e.to_string())
    })?;
    if map.is_empty() {
        return Err(Error::bad_file(path, "weight_map", "it is empty"));
    }
    match map.iter().find(|(_, file)| !is_plain(file)) {
        Some((tensor, file)) => {
            let problem = format!("{file:?} is not the name of a file in the same folder");
            Err(Error::bad_file(path, format!("weight_map, tensor {tensor}"), problem))
        }
        None => Ok(map),
    }
}

/// Whether a name is that of a file in the same folder, on every system.
fn is_plain(name: &str) -> bool {
    !name.contains(['/', '\\', ':', '\0']) && Path::new(name).file_name() == Some(OsStr::new(name))
}

/// The part of an index that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Tensors and their files, no tensor twice.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;

        impl<'de> Visitor<'de> for Rows {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the file of every tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut rows = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if rows.contains_key(&name) {
                        map.next_value::<IgnoredAny>()?;
                        return Err(serde::de::Error::custom(format!("tensor {name} stands twice")));
                    }
                    rows.insert(name, map.next_value()?);
                }
                Ok(WeightMap(rows))
            }
        }

        deserializer.deserialize_map(Rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let text = if file.ends_with(".json") {
                r#"{"weight_map":{"w":"a.safetensors","v":"b.bin"}}"#
            } else {
                ""
            };
            fs::write(folder.path().join(file), text).unwrap();
        }
        folder
    }

    fn files(names: &[&str]) -> Result<Vec<String>> {
        find(folder(names).path()).map(|layout| layout.files)
    }

    #[test]
    fn safetensors_go_before_bin_and_single_files_before_shards() {
        let all =
            ["model.safetensors", "model-1.safetensors", "pytorch_model.bin", "pytorch_model-1.bin", "a.txt"];
        assert_eq!(files(&all).unwrap(), ["model.safetensors"]);
        assert_eq!(files(&all[1..]).unwrap(), ["model-1.safetensors"]);
        assert_eq!(files(&all[2..]).unwrap(), ["pytorch_model.bin"]);
        assert_eq!(
            files(&["pytorch_model-2.bin", "pytorch_model-1.bin", "training_args.bin"]).unwrap().len(),
            2
        );
        assert!(files(&["a.txt"]).unwrap_err().to_string().contains("no weights"));
    }

    #[test]
    fn files_of_gptq_go_before_others_and_stand_alone() {
        let four = "gptq_model-4bit-128g.safetensors";
        assert_eq!(files(&["model.safetensors", four]).unwrap(), [four]);
        let shards = [
            "gptq_model-4bit-128g-00001-of-00002.safetensors",
            "gptq_model-4bit-128g-00002-of-00002.safetensors",
        ];
        assert_eq!(files(&shards).unwrap(), shards);
        let e = files(&[four, "gptq_model-8bit-128g.safetensors"]).unwrap_err().to_string();
        assert!(e.contains("8bit") && e.contains(four), "{e}");
    }

    #[test]
    fn an_index_names_the_files_and_a_missing_shard_is_named() {
        let index = "model.safetensors.index.json";
        assert_eq!(
            files(&["a.safetensors", "b.bin", "c.safetensors", index]).unwrap(),
            ["a.safetensors", "b.bin"]
        );
        let e = files(&["a.safetensors", index]).unwrap_err().to_string();
        assert!(e.contains("b.bin") && e.contains(index), "{e}");
    }

    #[test]
    fn names_in_an_index_stay_in_the_folder() {
        for name in ["../a", "/etc/passwd", "a/b", "a\\\\b", "", ".", "..", "C:a", "a\\u0000"] {
            let e =
                parse_index(&format!(r#"{{"weight_map":{{"w":"{name}"}}}}"#), Path::new("i")).unwrap_err();
            assert!(e.to_string().contains("tensor w"), "{e}");
        }
    }

    #[test]
    fn an_index_that_is_no_table_is_an_error() {
        for text in ["", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{}}"#, r#"{"weight_map":{"w":1}}"#] {
            assert!(parse_index(text, Path::new("i")).is_err());
        }
        let twice = r#"{"weight_map":{"w":"a","w":"b"}}"#;
        assert!(parse_index(twice, Path::new("i")).unwrap_err().to_string().contains("twice"));
    }
}
