//! The settings of a GPTQ checkpoint: how wide codes are, how long groups are, which format zeros have.

use std::path::{Path, PathBuf};

use serde_json::Map;

use super::super::{
    file::read_text,
    json::{Object, parse_object},
};
use crate::error::{Error, Result};

/// Files of settings, in the order in which the authors' fork looks for them.
pub(in crate::checkpoint) const FILES: [&str; 2] = ["quantize_config.json", "quant_config.json"];
/// Larger than any file of settings.
const LARGEST: u64 = 16 << 20;
/// More inputs than a group can have.
const LONGEST_GROUP: f64 = 1e9;

/// How zeros are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `gptq`: less one, modulo the codes.
    One,
    /// `gptq_v2`: as they are.
    Two,
}

impl Format {
    /// As files of settings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::One => "gptq",
            Self::Two => "gptq_v2",
        }
    }
}

/// What the files of a checkpoint say of its codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file that says it.
    pub path: PathBuf,
    /// Bits of a code: 4 or 8.
    pub bits: u32,
    /// Inputs of a group; `None`: all inputs of a matrix are one group.
    pub group_size: Option<usize>,
    /// Whether zeros are said to be in the middle of the codes.
    pub symmetric: bool,
    /// How zeros are stored.
    pub format: Format,
}

impl Settings {
    /// Looks for settings: in `quantize_config.json`, `quant_config.json`, then in `quantization_config` of the folder's `config.json`, whose text
    /// is `config`. The first that is there counts.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a file that is damaged or contradicts itself; [`Error::Unsupported`] for another method, width or format.
    pub(in crate::checkpoint) fn find(folder: &Path, config: &str) -> Result<Option<Self>> {
        for name in FILES {
            let path = folder.join(name);
            if path.exists() {
                return Self::parse(&read_text(&path, LARGEST)?, &path).map(Some);
            }
        }
        Self::of_config(config, &folder.join("config.json"))
    }

    /// The settings that a `config.json` with this text has, if it has any; `path` is for messages.
    ///
    /// # Errors
    /// As [`Settings::parse`].
    pub fn of_config(text: &str, path: &Path) -> Result<Option<Self>> {
        let map = parse_object(text, path)?;
        let whole = Object::new(&map, path);
        let mut object = whole.object("quantization_config", "quantization_config.")?;
        // Where there is a vision tower beside it, the text model has a config of its own.
        if let (None, Some(model)) = (&object, whole.object("llm_config", "llm_config.")?) {
            object = model.object("quantization_config", "llm_config.quantization_config.")?;
        }
        object.map(|object| Self::of_object(&object, path)).transpose()
    }

    /// Reads the text of a file of settings; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::BadFile`] for text that is no JSON object, a missing width, a value of the wrong type, and spellings that contradict each
    /// other; [`Error::Unsupported`] for another method, width or format.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let map: Map<_, _> = parse_object(text, path)?;
        Self::of_object(&Object::new(&map, path), path)
    }

    fn of_object(object: &Object<'_>, path: &Path) -> Result<Self> {
        let unsupported = |what: String| Error::Unsupported {
            path: path.into(),
            what,
            remedy: "give a GPTQ checkpoint of 4 or 8 bits, or the bf16 checkpoint".into(),
        };
        if let Some(method) = object.text("quant_method")?.filter(|method| *method != "gptq") {
            return Err(unsupported(format!("a checkpoint quantized by {method}")));
        }
        let bits = one_of(object, ["bits", "w_bit"], Object::number)?
            .ok_or_else(|| object.wrong("bits", "it is missing"))?;
        let bits = match bits {
            4.0 => 4,
            8.0 => 8,
            other => return Err(unsupported(format!("a GPTQ checkpoint of {other} bits"))),
        };
        let group_size = match one_of(object, ["group_size", "q_group_size"], Object::number)? {
            Some(-1.0) => None,
            Some(size) if size.fract() == 0.0 && (1.0..LONGEST_GROUP).contains(&size) => Some(size as usize),
            Some(size) => return Err(object.wrong("group_size", format!("{size} is no number of inputs"))),
            None => return Err(object.wrong("group_size", "it is missing; -1 stands for whole rows")),
        };
        let format = match one_of(object, ["checkpoint_format", "format"], Object::text)? {
            None | Some("gptq") => Format::One,
            Some("gptq_v2") => Format::Two,
            Some(other) => return Err(unsupported(format!("the checkpoint format {other}"))),
        };
        match object.text("pack_dtype")? {
            None | Some("int32") => {}
            Some(other) => return Err(unsupported(format!("codes packed into {other}"))),
        }
        let symmetric = object.flag("sym")?.unwrap_or(true);
        Ok(Self { path: path.into(), bits, group_size, symmetric, format })
    }

    /// The zero in the middle of the codes, which symmetric checkpoints have.
    pub const fn middle(&self) -> u32 {
        1 << (self.bits - 1)
    }
}

/// The value under either of two spellings, which must agree.
fn one_of<'a, T: PartialEq + std::fmt::Display>(
    object: &Object<'a>,
    [key, alias]: [&str; 2],
    read: impl Fn(&Object<'a>, &str) -> Result<Option<T>>,
) -> Result<Option<T>> {
    match (read(object, key)?, read(object, alias)?) {
        (Some(a), Some(b)) if a != b => Err(object.wrong(alias, format!("it is {b}, but {key} is {a}"))),
        (a, b) => Ok(a.or(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        Settings::parse(text, Path::new("quantize_config.json"))
    }

    #[test]
    fn settings_of_all_tools_are_read() {
        // What the authors' fork writes, an older tool, AWQ's spellings, and a newer tool.
        for (text, bits, group, symmetric, format) in [
            (
                r#"{"bits":4,"group_size":128,"sym":true,"desc_act":false,"quant_method":"gptq","checkpoint_format":"gptq"}"#,
                4,
                Some(128),
                true,
                Format::One,
            ),
            (r#"{"bits":8,"group_size":-1,"sym":false}"#, 8, None, false, Format::One),
            (r#"{"w_bit":4,"q_group_size":64}"#, 4, Some(64), true, Format::One),
            (
                r#"{"bits":8,"group_size":32,"format":"gptq_v2","pack_dtype":"int32","dynamic":null,"lm_head":false,"meta":{}}"#,
                8,
                Some(32),
                true,
                Format::Two,
            ),
        ] {
            let found = parse(text).unwrap();
            let path = "quantize_config.json".into();
            assert_eq!(found, Settings { path, bits, group_size: group, symmetric, format });
        }
    }

    #[test]
    fn what_is_wrong_or_not_built_is_named() {
        for (text, word) in [
            (r#"{"group_size":128}"#, "bits"),
            (r#"{"bits":4}"#, "group_size"),
            (r#"{"bits":3,"group_size":128}"#, "3 bits"),
            (r#"{"bits":"4","group_size":128}"#, "bits"),
            (r#"{"bits":4,"w_bit":8,"group_size":128}"#, "w_bit"),
            (r#"{"bits":4,"group_size":0}"#, "group_size"),
            (r#"{"bits":4,"group_size":1.5}"#, "group_size"),
            (r#"{"bits":4,"group_size":1e300}"#, "group_size"),
            (r#"{"bits":4,"group_size":128,"quant_method":"awq"}"#, "awq"),
            (r#"{"bits":4,"group_size":128,"checkpoint_format":"marlin"}"#, "marlin"),
            (r#"{"bits":4,"group_size":128,"checkpoint_format":"gptq","format":"gptq_v2"}"#, "format"),
            (r#"{"bits":4,"group_size":128,"pack_dtype":"int64"}"#, "int64"),
            (r#"{"bits":4,"group_size":128,"sym":1}"#, "sym"),
            ("[]", "JSON object"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        }
    }

    #[test]
    fn the_first_file_counts_and_a_config_alone_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let find = |config: &str| Settings::find(folder.path(), config).map(|s| s.map(|s| s.bits));
        let inner = r#"{"quantization_config":{"bits":8,"group_size":128,"quant_method":"gptq"}}"#;
        assert_eq!((find("{}").unwrap(), find(inner).unwrap()), (None, Some(8)));
        std::fs::write(folder.path().join("quant_config.json"), r#"{"w_bit":4,"q_group_size":128}"#).unwrap();
        assert_eq!(find(inner).unwrap(), Some(4));
        std::fs::write(folder.path().join("quantize_config.json"), r#"{"bits":8,"group_size":128}"#).unwrap();
        assert_eq!(find("{}").unwrap(), Some(8));
        let e = Settings::of_config(r#"{"quantization_config":{"bits":4}}"#, Path::new("c")).unwrap_err();
        assert!(e.to_string().contains("quantization_config.group_size"), "{e}");
    }
}
