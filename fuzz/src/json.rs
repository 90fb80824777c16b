//! JSON with changes at its values, so that it stays JSON.

use arbitrary::Arbitrary;
use serde_json::{Number, Value, json};

/// A change.
#[derive(Arbitrary, Clone, Debug)]
pub enum Edit {
    Number(u16, i64),
    Float(u16, f64),
    Text(u16, String),
    /// One of [`VALUES`].
    Known(u16, u8),
    Drop(u16),
    /// A value comes to another's place.
    Copy(u16, u16),
    Key(u16, String),
}

/// What is strange in most places.
const VALUES: [&str; 16] = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e400",
    "1e308",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "[]",
    "{}",
    "\"\"",
    "[[[[]]]]",
    "\"bfloat16\"",
    "0.5",
];

/// The value with these changes.
pub fn changed(value: &Value, edits: &[Edit]) -> Value {
    let mut value = value.clone();
    for edit in edits {
        match edit {
            Edit::Number(at, n) => set(&mut value, *at, json!(n)),
            Edit::Float(at, n) => {
                set(&mut value, *at, Number::from_f64(*n).map_or(Value::Null, Value::Number))
            }
            Edit::Text(at, text) => set(&mut value, *at, json!(text)),
            Edit::Known(at, which) => {
                let known = VALUES[usize::from(*which) % VALUES.len()];
                set(&mut value, *at, serde_json::from_str(known).unwrap_or(Value::Null));
            }
            Edit::Drop(at) => drop_it(&mut value, *at),
            Edit::Copy(from, to) => {
                let mut copied = None;
                visit(&mut value, *from, &mut |value| copied = Some(value.clone()));
                if let Some(copied) = copied.filter(|copied| copied.to_string().len() < 1 << 12) {
                    set(&mut value, *to, copied);
                }
            }
            Edit::Key(at, name) => visit(&mut value, *at, &mut |value| {
                if let Some(fields) = value.as_object_mut()
                    && let Some((_, old)) = fields.pop_entry()
                {
                    fields.insert(name.clone(), old);
                }
            }),
        }
    }
    value
}

trait PopEntry {
    fn pop_entry(&mut self) -> Option<(String, Value)>;
}

impl PopEntry for serde_json::Map<String, Value> {
    fn pop_entry(&mut self) -> Option<(String, Value)> {
        let last = self.keys().next_back()?.clone();
        self.remove_entry(&last)
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// Hands the value number `at`, in the order in which they are written, to `then`.
fn visit(value: &mut Value, at: u16, then: &mut dyn FnMut(&mut Value)) {
    let mut left = usize::from(at) % count(value);
    walk(value, &mut left, then);
}

fn walk(value: &mut Value, left: &mut usize, then: &mut dyn FnMut(&mut Value)) -> bool {
    if *left == 0 {
        then(value);
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| walk(item, left, then)),
        Value::Object(fields) => fields.values_mut().any(|field| walk(field, left, then)),
        _ => false,
    }
}

fn set(value: &mut Value, at: u16, new: Value) {
    let mut new = Some(new);
    visit(value, at, &mut |value| *value = new.take().unwrap_or(Value::Null));
}

fn drop_it(value: &mut Value, at: u16) {
    visit(value, at, &mut |value| match value {
        Value::Array(items) => drop(items.pop()),
        Value::Object(fields) => drop(fields.pop_entry()),
        other => *other = Value::Null,
    });
}
