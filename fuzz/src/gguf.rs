//! GGUF files taken apart and put together again with changes, so that what is changed is behind lengths, offsets and digests that are right.

use arbitrary::Arbitrary;
use yuan::container::{
    gguf::{Header, TYPE_I8, TYPES},
    value::Value,
};

const DIGESTS: &str = "yuan.blake3";
const HEADER_DIGEST: &str = "yuan.blake3.header";
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A file in parts.
#[derive(Clone, Debug)]
pub struct File {
    keys: Vec<Key>,
    tensors: Vec<Tensor>,
    alignment: u64,
    /// Whether digests are recorded.
    digests: bool,
}

#[derive(Clone, Debug)]
struct Key {
    name: Vec<u8>,
    kind: u32,
    value: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: Vec<u8>,
    dims: Vec<u64>,
    kind: u32,
    /// What `yuan.types` says of it.
    stored: Vec<u8>,
    data: Vec<u8>,
    /// Added to where it would lie.
    moved: u64,
}

/// A number in place of another.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Number {
    Is(u16),
    Plus(i8),
    Times(u8),
    Over(u8),
    Power(u8),
    BelowPower(u8),
    Bits(u64),
}

impl Number {
    fn of(self, old: u64) -> u64 {
        match self {
            Self::Is(n) => u64::from(n),
            Self::Plus(n) => old.wrapping_add_signed(i64::from(n)),
            Self::Times(n) => old.wrapping_mul(u64::from(n)),
            Self::Over(n) => old / u64::from(n.max(1)),
            Self::Power(n) => 1 << (n % 64),
            Self::BelowPower(n) => (1 << (n % 64)) - 1,
            Self::Bits(n) => n,
        }
    }
}

/// Strings that mean something somewhere.
const TEXTS: [&str; 24] = [
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q4_0",
    "q4_k",
    "q6_k",
    "q3_k",
    "q8_0 panels",
    "q4_k panels",
    "q4_k tiles",
    "q3_k tiles",
    "q6_k tiles",
    "yuan2",
    "yuan2_moe",
    "yuan3_moe",
    "yuan3",
    "linear",
    "hfbf16",
    "mixed",
    "neuron-tile",
    "blk.0.ffn_expert.0",
    "output.weight",
    "",
];

/// One change.
#[derive(Arbitrary, Clone, Debug)]
pub enum Edit {
    DropKey(u8),
    DoubleKey(u8),
    /// A key gets a number in the width that it has.
    SetNumber(u8, Number),
    SetKind(u8, u8),
    SetText(u8, u8),
    SetValue(u8, Vec<u8>),
    /// A byte of a key's value.
    ValueByte(u8, u16, u8),
    RenameKey(u8, Vec<u8>),
    Dim(u8, u8, Number),
    DropDim(u8),
    AddDim(u8, Number),
    Type(u8, u8),
    Stored(u8, u8),
    RenameTensor(u8, Vec<u8>),
    RenameTo(u8, u8),
    Move(u8, Number),
    DropTensor(u8),
    SwapTensors(u8, u8),
    /// Data of a tensor gets shorter or longer.
    Resize(u8, Number),
    /// From there on, so many bytes of a tensor become this one.
    Fill(u8, u16, u16, u8),
    /// A word of a tensor.
    Word(u8, u16, u32),
    Alignment(Number),
    /// A byte of the header as it is written, whose digest is made behind it.
    HeaderByte(u16, u8),
    Cut(u16),
    /// Digests are not made.
    NoDigests,
}

fn pick<T>(list: &mut [T], i: u8) -> Option<&mut T> {
    let n = list.len();
    list.get_mut(usize::from(i) % n.max(1))
}

impl File {
    /// Takes a sound file apart.
    pub fn take_apart(file: &[u8]) -> Self {
        let header = Header::parse(file, std::path::Path::new("base.gguf")).expect("a sound file");
        let keys = header.metadata.entries().iter().map(|(name, value)| {
            let (kind, value) = bytes_of(value);
            Key { name: name.clone().into_bytes(), kind, value }
        });
        let digests = header.metadata.get(DIGESTS).is_some();
        let written_anew = [DIGESTS, HEADER_DIGEST, TYPES, "general.alignment"];
        let tensors = header.tensors.iter().map(|t| Tensor {
            name: t.name.clone().into_bytes(),
            dims: t.dims.clone(),
            kind: t.stored.ggml_type(),
            stored: t.stored.name().into_bytes(),
            data: file[t.offset as usize..][..t.bytes as usize].to_vec(),
            moved: 0,
        });
        Self {
            keys: keys.filter(|key| !written_anew.iter().any(|name| name.as_bytes() == key.name)).collect(),
            tensors: tensors.collect(),
            // Files are small that way; an expert that begins at no page is streamed through the page cache.
            alignment: 64,
            digests,
        }
    }

    /// The file with these changes.
    pub fn changed(&self, edits: &[Edit]) -> Vec<u8> {
        let mut file = self.clone();
        let (mut header_bytes, mut cut) = (Vec::new(), None);
        for edit in edits {
            match edit {
                Edit::HeaderByte(at, byte) => header_bytes.push((usize::from(*at), *byte)),
                Edit::Cut(n) => cut = Some(usize::from(*n)),
                edit => file.change(edit),
            }
        }
        file.written(&header_bytes, cut)
    }

    fn change(&mut self, edit: &Edit) {
        let (keys, tensors) = (&mut self.keys, &mut self.tensors);
        match edit {
            Edit::DropKey(i) if !keys.is_empty() => drop(keys.remove(usize::from(*i) % keys.len())),
            Edit::DoubleKey(i) => {
                let key = pick(keys, *i).cloned();
                keys.extend(key);
            }
            Edit::SetNumber(i, number) => {
                if let Some(key) = pick(keys, *i)
                    && key.value.len() <= 8
                {
                    let mut word = [0; 8];
                    word[..key.value.len()].copy_from_slice(&key.value);
                    let new = number.of(u64::from_le_bytes(word)).to_le_bytes();
                    let width = key.value.len();
                    key.value.copy_from_slice(&new[..width]);
                }
            }
            Edit::SetKind(i, kind) => _ = pick(keys, *i).map(|key| key.kind = u32::from(kind % 14)),
            Edit::SetText(i, text) => {
                if let Some(key) = pick(keys, *i) {
                    (key.kind, key.value) =
                        (STRING, string(TEXTS[usize::from(*text) % TEXTS.len()].as_bytes()));
                }
            }
            Edit::SetValue(i, value) => _ = pick(keys, *i).map(|key| key.value.clone_from(value)),
            Edit::ValueByte(i, at, byte) => {
                if let Some(key) = pick(keys, *i)
                    && !key.value.is_empty()
                {
                    let at = usize::from(*at) % key.value.len();
                    key.value[at] = *byte;
                }
            }
            Edit::RenameKey(i, name) => _ = pick(keys, *i).map(|key| key.name.clone_from(name)),
            Edit::Dim(i, dim, number) => {
                if let Some(dim) = pick(tensors, *i).and_then(|t| pick(&mut t.dims, *dim)) {
                    *dim = number.of(*dim);
                }
            }
            Edit::DropDim(i) => _ = pick(tensors, *i).map(|t| t.dims.pop()),
            Edit::AddDim(i, number) => _ = pick(tensors, *i).map(|t| t.dims.push(number.of(1))),
            Edit::Type(i, kind) => _ = pick(tensors, *i).map(|t| t.kind = u32::from(*kind)),
            Edit::Stored(i, text) => {
                if let Some(tensor) = pick(tensors, *i) {
                    let text = TEXTS[usize::from(*text) % TEXTS.len()];
                    tensor.stored = text.into();
                    if text.contains(' ') {
                        tensor.kind = TYPE_I8;
                    }
                }
            }
            Edit::RenameTensor(i, name) => _ = pick(tensors, *i).map(|t| t.name.clone_from(name)),
            Edit::RenameTo(i, other) => {
                let name = pick(tensors, *other).map(|t| t.name.clone());
                if let (Some(tensor), Some(name)) = (pick(tensors, *i), name) {
                    tensor.name = name;
                }
            }
            Edit::Move(i, number) => _ = pick(tensors, *i).map(|t| t.moved = number.of(0)),
            Edit::DropTensor(i) if !tensors.is_empty() => {
                drop(tensors.remove(usize::from(*i) % tensors.len()))
            }
            Edit::SwapTensors(i, j) if !tensors.is_empty() => {
                let n = tensors.len();
                tensors.swap(usize::from(*i) % n, usize::from(*j) % n);
            }
            Edit::Resize(i, number) => {
                if let Some(tensor) = pick(tensors, *i) {
                    let size = number.of(tensor.data.len() as u64).min(1 << 18) as usize;
                    tensor.data.resize(size, 0x11);
                }
            }
            Edit::Fill(i, at, length, byte) => {
                if let Some(tensor) = pick(tensors, *i) {
                    tensor
                        .data
                        .iter_mut()
                        .skip(16 * usize::from(*at))
                        .take((*length).into())
                        .for_each(|b| *b = *byte);
                }
            }
            Edit::Word(i, at, word) => {
                let place =
                    pick(tensors, *i).and_then(|t| t.data.get_mut(4 * usize::from(*at)..)?.first_chunk_mut());
                if let Some(place) = place {
                    *place = word.to_le_bytes();
                }
            }
            Edit::Alignment(number) => self.alignment = number.of(self.alignment),
            Edit::NoDigests => self.digests = false,
            _ => {}
        }
    }

    fn written(&self, header_bytes: &[(usize, u8)], cut: Option<usize>) -> Vec<u8> {
        let zeros = "0".repeat(64);
        let mut keys = self.keys.clone();
        let mut key = |name: &str, kind, value| keys.push(Key { name: name.into(), kind, value });
        key("general.alignment", 4, (self.alignment as u32).to_le_bytes().to_vec());
        if self.digests {
            let digest = |t: &Tensor| blake3::hash(&t.data).to_hex().as_bytes().to_vec();
            key(TYPES, ARRAY, strings(self.tensors.iter().map(|t| t.stored.clone())));
            key(HEADER_DIGEST, STRING, string(zeros.as_bytes()));
            key(DIGESTS, ARRAY, strings(self.tensors.iter().map(digest)));
        }
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((keys.len() as u64).to_le_bytes());
        for key in &keys {
            out.extend(string(&key.name));
            out.extend(key.kind.to_le_bytes());
            out.extend(&key.value);
        }
        // One that makes the file huge is written, and not kept to.
        let alignment = if (1..=4096).contains(&self.alignment) { self.alignment as usize } else { 64 };
        let mut at = 0;
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend((at as u64).wrapping_add(tensor.moved).to_le_bytes());
            at = (at + tensor.data.len()).next_multiple_of(alignment);
        }
        for (at, byte) in header_bytes {
            let at = at % out.len();
            out[at] = *byte;
        }
        if self.digests
            && let Some(at) = out.windows(64).position(|w| w == zeros.as_bytes())
        {
            let digest = blake3::hash(&out).to_hex();
            out[at..at + 64].copy_from_slice(digest.as_bytes());
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(alignment), 0);
            out.extend(&tensor.data);
        }
        out.truncate(out.len() - cut.map_or(0, |n| n % out.len()));
        out
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// The value of an array of strings.
fn strings(texts: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    array(STRING, texts.len(), texts.flat_map(|text| string(&text)))
}

fn array(element: u32, count: usize, bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut out = element.to_le_bytes().to_vec();
    out.extend((count as u64).to_le_bytes());
    out.extend(bytes);
    out
}

/// GGUF's number of a value's type, and its bytes.
fn bytes_of(value: &Value) -> (u32, Vec<u8>) {
    match value {
        Value::U8(v) => (0, vec![*v]),
        Value::I8(v) => (1, v.to_le_bytes().into()),
        Value::U16(v) => (2, v.to_le_bytes().into()),
        Value::I16(v) => (3, v.to_le_bytes().into()),
        Value::U32(v) => (4, v.to_le_bytes().into()),
        Value::I32(v) => (5, v.to_le_bytes().into()),
        Value::F32(v) => (6, v.to_le_bytes().into()),
        Value::Bool(v) => (7, vec![u8::from(*v)]),
        Value::String(v) => (STRING, string(v.as_bytes())),
        Value::U64(v) => (10, v.to_le_bytes().into()),
        Value::I64(v) => (11, v.to_le_bytes().into()),
        Value::F64(v) => (12, v.to_le_bytes().into()),
        Value::Strings(v) => (ARRAY, strings(v.iter().map(|s| s.clone().into_bytes()))),
        Value::F32s(v) => (ARRAY, array(6, v.len(), v.iter().flat_map(|v| v.to_le_bytes()))),
        Value::I32s(v) => (ARRAY, array(5, v.len(), v.iter().flat_map(|v| v.to_le_bytes()))),
        Value::U32s(v) => (ARRAY, array(4, v.len(), v.iter().flat_map(|v| v.to_le_bytes()))),
        Value::Other { element, count, bytes } => {
            (ARRAY, array(*element, *count as usize, bytes.iter().copied()))
        }
    }
}
