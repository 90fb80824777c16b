//! Values of a JSON object, with errors that name the key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An object of a JSON file.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    map: &'a Map<String, Value>,
    /// What stands before its keys in messages: nothing, or the key that it stands at and a dot.
    prefix: &'a str,
    path: &'a Path,
}

impl<'a> Object<'a> {
    /// The object `map` of the file `path`.
    pub fn new(map: &'a Map<String, Value>, path: &'a Path) -> Self {
        Self { map, prefix: "", path }
    }

    /// An error about `key`.
    pub fn wrong(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::BadFile {
            path: self.path.into(),
            place: format!("key {}{key}", self.prefix),
            problem: problem.into(),
            remedy: "correct it, or fetch the file again",
        }
    }

    /// The value at `key`, unless it is null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let read =
            |value| read(value).ok_or_else(|| self.wrong(key, format!("{} is not {kind}", shown(value))));
        self.get(key).map(read).transpose()
    }

    /// A size or a count.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a count", |v| usize::try_from(v.as_u64()?).ok())
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A list of texts; empty where there is none.
    pub fn texts(&self, key: &str) -> Result<Vec<&'a str>> {
        let list = |v: &'a Value| v.as_array()?.iter().map(Value::as_str).collect();
        Ok(self.typed(key, "a list of texts", list)?.unwrap_or_default())
    }

    /// An object; `prefix` is `key` and a dot.
    pub fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Self>> {
        Ok(self.typed(key, "an object", Value::as_object)?.map(|map| Self { map, prefix, path: self.path }))
    }
}

/// The beginning of a value, for messages.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    };
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Parses a file whose JSON text is an object.
///
/// # Errors
/// When it is not; the message has line and column.
pub(super) fn parse_object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| {
        let place = format!("line {}, column {}", e.line(), e.column());
        Error::bad_file(path, place, format!("this is not the JSON object that it should be: {e}"))
    })
}
