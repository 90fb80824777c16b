//! The values of GGUF metadata, and their bytes.

use std::io::{self, Write};

use byteorder::{ByteOrder, LE, WriteBytesExt};

use crate::error::{Error, Result};

/// One value. Numbers of all widths are held in three forms with their GGUF type beside them, so that a file can be
/// written again as it was.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Strings(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    U32s(Vec<u32>),
    /// An array of a type that no key of ours uses: element type, count and bytes as they lie in the file.
    Other {
        element: u32,
        count: u64,
        bytes: Vec<u8>,
    },
}

/// GGUF's numbers of the types.
mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// Bytes of a value of fixed size.
fn width(kind: u32) -> Option<usize> {
    Some(match kind {
        kind::U8 | kind::I8 | kind::BOOL => 1,
        kind::U16 | kind::I16 => 2,
        kind::U32 | kind::I32 | kind::F32 => 4,
        kind::U64 | kind::I64 | kind::F64 => 8,
        _ => return None,
    })
}

/// Reads little-endian numbers and strings, never behind the end.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes that have come.
    come: usize,
    reach: Reach<'a>,
}

/// Waits until a file has so many bytes from its beginning on.
pub(super) type Reach<'a> = &'a dyn Fn(usize) -> Result<(), String>;

/// Bytes that a reader waits for together: no more than lie before the first tensor of a container of ours.
const STEP: usize = 1 << 16;

impl<'a> Reader<'a> {
    /// A reader of a file that may still be coming.
    pub(super) fn new(bytes: &'a [u8], reach: Reach<'a>) -> Self {
        Self { bytes, at: 0, come: 0, reach }
    }

    /// Byte offset of what is read next.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        match usize::try_from(n).ok().filter(|n| *n <= self.left()) {
            None => Err(format!("{n} bytes are announced and {} are left", self.left())),
            Some(n) => {
                let end = self.at + n;
                if end > self.come {
                    let wanted = end.next_multiple_of(STEP).min(self.bytes.len());
                    (self.reach)(wanted)?;
                    self.come = wanted;
                }
                let taken = &self.bytes[self.at..][..n];
                self.at += n;
                Ok(taken)
            }
        }
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.take(4).map(LE::read_u32)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.take(8).map(LE::read_u64)
    }

    pub(super) fn string(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a string is not UTF-8".into())
    }

    /// A count of things that take at least `least` bytes each; more than are left is an error, so that no allocation is
    /// larger than the file.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, String> {
        let count = self.u64()?;
        match usize::try_from(count).ok().filter(|n| n.checked_mul(least).is_some_and(|b| b <= self.left())) {
            Some(n) => Ok(n),
            None => Err(format!("{count} entries are announced and {} bytes are left", self.left())),
        }
    }
}

impl Value {
    /// Reads a value of the type `kind`.
    pub(super) fn read(kind: u32, r: &mut Reader<'_>) -> Result<Self, String> {
        Ok(match kind {
            kind::U8 => Self::U8(r.take(1)?[0]),
            kind::I8 => Self::I8(r.take(1)?[0] as i8),
            kind::U16 => Self::U16(r.take(2).map(LE::read_u16)?),
            kind::I16 => Self::I16(r.take(2).map(LE::read_i16)?),
            kind::U32 => Self::U32(r.u32()?),
            kind::I32 => Self::I32(r.take(4).map(LE::read_i32)?),
            kind::F32 => Self::F32(r.take(4).map(LE::read_f32)?),
            kind::BOOL => match r.take(1)? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                other => return Err(format!("a truth value is {}", other[0])),
            },
            kind::STRING => Self::String(r.string()?),
            kind::ARRAY => Self::read_array(r)?,
            kind::U64 => Self::U64(r.u64()?),
            kind::I64 => Self::I64(r.take(8).map(LE::read_i64)?),
            kind::F64 => Self::F64(r.take(8).map(LE::read_f64)?),
            other => return Err(format!("there is no value type {other}")),
        })
    }

    fn read_array(r: &mut Reader<'_>) -> Result<Self, String> {
        let element = r.u32()?;
        if element == kind::STRING {
            let count = r.count(8)?;
            return (0..count).map(|_| r.string()).collect::<Result<_, _>>().map(Self::Strings);
        }
        let Some(width) = width(element) else {
            return Err(format!("arrays of the type {element} are not read"));
        };
        let count = r.count(width)?;
        let bytes = r.take((count * width) as u64)?;
        Ok(match element {
            kind::F32 => Self::F32s(numbers(bytes, count, LE::read_f32_into)),
            kind::I32 => Self::I32s(numbers(bytes, count, LE::read_i32_into)),
            kind::U32 => Self::U32s(numbers(bytes, count, LE::read_u32_into)),
            _ => Self::Other { element, count: count as u64, bytes: bytes.to_vec() },
        })
    }

    /// Writes the type and the value.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_u32::<LE>(self.kind())?;
        match self {
            Self::U8(v) => out.write_u8(*v),
            Self::I8(v) => out.write_i8(*v),
            Self::U16(v) => out.write_u16::<LE>(*v),
            Self::I16(v) => out.write_i16::<LE>(*v),
            Self::U32(v) => out.write_u32::<LE>(*v),
            Self::I32(v) => out.write_i32::<LE>(*v),
            Self::F32(v) => out.write_f32::<LE>(*v),
            Self::Bool(v) => out.write_u8(u8::from(*v)),
            Self::U64(v) => out.write_u64::<LE>(*v),
            Self::I64(v) => out.write_i64::<LE>(*v),
            Self::F64(v) => out.write_f64::<LE>(*v),
            Self::String(v) => write_string(v, out),
            Self::Strings(v) => {
                write_array(kind::STRING, v.len() as u64, out)?;
                v.iter().try_for_each(|s| write_string(s, out))
            }
            Self::F32s(v) => {
                write_array(kind::F32, v.len() as u64, out)?;
                v.iter().try_for_each(|v| out.write_f32::<LE>(*v))
            }
            Self::I32s(v) => {
                write_array(kind::I32, v.len() as u64, out)?;
                v.iter().try_for_each(|v| out.write_i32::<LE>(*v))
            }
            Self::U32s(v) => {
                write_array(kind::U32, v.len() as u64, out)?;
                v.iter().try_for_each(|v| out.write_u32::<LE>(*v))
            }
            Self::Other { element, count, bytes } => {
                write_array(*element, *count, out)?;
                out.write_all(bytes)
            }
        }
    }

    /// GGUF's number of the type.
    fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => kind::U8,
            Self::I8(_) => kind::I8,
            Self::U16(_) => kind::U16,
            Self::I16(_) => kind::I16,
            Self::U32(_) => kind::U32,
            Self::I32(_) => kind::I32,
            Self::F32(_) => kind::F32,
            Self::Bool(_) => kind::BOOL,
            Self::String(_) => kind::STRING,
            Self::U64(_) => kind::U64,
            Self::I64(_) => kind::I64,
            Self::F64(_) => kind::F64,
            Self::Strings(_) | Self::F32s(_) | Self::I32s(_) | Self::U32s(_) | Self::Other { .. } => {
                kind::ARRAY
            }
        }
    }
}

/// `count` numbers, which `read` takes from `bytes`.
fn numbers<T: Clone + Default>(bytes: &[u8], count: usize, read: impl Fn(&[u8], &mut [T])) -> Vec<T> {
    let mut numbers = vec![T::default(); count];
    read(bytes, &mut numbers);
    numbers
}

/// What stands before the elements of an array.
fn write_array(element: u32, count: u64, out: &mut impl Write) -> io::Result<()> {
    out.write_u32::<LE>(element)?;
    out.write_u64::<LE>(count)
}

pub(super) fn write_string(s: &str, out: &mut impl Write) -> io::Result<()> {
    out.write_u64::<LE>(s.len() as u64)?;
    out.write_all(s.as_bytes())
}

/// The keys of a file with their values, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// Adds a key, or replaces its value.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key.into(), value)),
        }
    }

    /// Adds a key that is not there yet.
    pub(super) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    /// Removes the keys that `gone` names.
    pub fn remove(&mut self, gone: impl Fn(&str) -> bool) {
        self.entries.retain(|(k, _)| !gone(k));
    }

    /// All keys with their values.
    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// A whole number of any width that is not negative.
    pub fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::U8(v)) => Some(u64::from(*v)),
            Some(Value::U16(v)) => Some(u64::from(*v)),
            Some(Value::U32(v)) => Some(u64::from(*v)),
            Some(Value::U64(v)) => Some(*v),
            Some(Value::I32(v)) => u64::try_from(*v).ok(),
            Some(Value::I64(v)) => u64::try_from(*v).ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| format!("{key} is not a whole number"))
    }

    /// A number in f32.
    pub fn float(&self, key: &str) -> Result<Option<f32>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(*v)),
            Some(Value::F64(v)) => Ok(Some(*v as f32)),
            Some(_) => Err(format!("{key} is not a number")),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(_) => Err(format!("{key} is neither true nor false")),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(_) => Err(format!("{key} is not a string")),
        }
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Strings(v)) => Ok(Some(v)),
            Some(_) => Err(format!("{key} is not an array of strings")),
        }
    }
}

/// What a reader of a damaged file can do, for errors of this room.
pub(super) fn damaged(path: &std::path::Path, place: impl Into<String>) -> impl FnOnce(String) -> Error {
    let place = place.into();
    move |problem| Error::bad_file(path, place, problem)
}
