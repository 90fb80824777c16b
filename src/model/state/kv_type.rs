//! The types that keys and values are kept in.

use yuan_kernels::{BlockQ4_0, BlockQ8_0};

/// How numbers of keys or values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// 2 bytes a value.
    F16,
    /// 4 bytes a value: for comparison with other implementations.
    F32,
    /// 8.5 bits a value, in blocks of 32.
    Q8_0,
    /// 4.5 bits a value, in blocks of 32. Keys are rotated before ([`KvType::rotates_keys`]).
    Q4_0,
}

impl Stored {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F16, Self::F32, Self::Q8_0, Self::Q4_0];

    /// Values of one block: a head's width must be a multiple of it.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F16 | Self::F32 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
        }
    }

    /// Bytes of `values` values, a whole number of blocks.
    pub const fn bytes(self, values: usize) -> usize {
        match self {
            Self::F16 => 2 * values,
            Self::F32 => 4 * values,
            Self::Q8_0 => values / 32 * size_of::<BlockQ8_0>(),
            Self::Q4_0 => values / 32 * size_of::<BlockQ4_0>(),
        }
    }

    /// The name of the command line: `q8_0`.
    pub const fn name(self) -> &'static str {
        NAMES[self as usize][self as usize]
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }
}

/// By keys and values.
const NAMES: [[&str; 4]; 4] = [
    ["f16", "f16:f32", "f16:q8_0", "f16:q4_0"],
    ["f32:f16", "f32", "f32:q8_0", "f32:q4_0"],
    ["q8_0:f16", "q8_0:f32", "q8_0", "q8_0:q4_0"],
    ["q4_0:f16", "q4_0:f32", "q4_0:q8_0", "q4_0"],
];

/// The types that the keys and values of a sequence are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvType {
    /// Of keys.
    pub keys: Stored,
    /// Of values.
    pub values: Stored,
}

/// f16.
impl Default for KvType {
    fn default() -> Self {
        Self::F16
    }
}

impl KvType {
    /// Both in f16.
    pub const F16: Self = Self::both(Stored::F16);
    /// Both in f32.
    pub const F32: Self = Self::both(Stored::F32);
    /// Both in q8_0.
    pub const Q8_0: Self = Self::both(Stored::Q8_0);
    /// Both in q4_0.
    pub const Q4_0: Self = Self::both(Stored::Q4_0);

    /// What tests go through: all types alike, and keys apart from values.
    #[doc(hidden)]
    pub const SAMPLES: [Self; 5] =
        [Self::F16, Self::F32, Self::Q8_0, Self::Q4_0, Self { keys: Stored::Q8_0, values: Stored::Q4_0 }];

    /// What people may choose.
    pub const CHOICES: &str = "f16, q8_0, q4_0 or f32, or two of them for keys and values, as in q8_0:q4_0";

    const fn both(stored: Stored) -> Self {
        Self { keys: stored, values: stored }
    }

    /// The name of the command line: `q8_0`, or `q8_0:q4_0` where keys and values have types of their own.
    pub const fn name(self) -> &'static str {
        NAMES[self.keys as usize][self.values as usize]
    }

    /// The inverse of [`KvType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        let (keys, values) = name.split_once(':').unwrap_or((name, name));
        Some(Self { keys: Stored::from_name(keys)?, values: Stored::from_name(values)? })
    }

    /// Values of one block of the type with larger ones: a head's width must be a multiple of it.
    pub const fn block_len(self) -> usize {
        let (keys, values) = (self.keys.block_len(), self.values.block_len());
        if keys > values { keys } else { values }
    }

    /// Whether keys are rotated before they are stored, and queries alike (MODEL.md, "Precision of the runtime"). 8 bits gain nothing by it, and
    /// neither do values.
    pub const fn rotates_keys(self) -> bool {
        matches!(self.keys, Stored::Q4_0)
    }

    /// Bytes of a key and a value of so many numbers, whole blocks.
    pub const fn bytes(self, numbers: usize) -> usize {
        self.keys.bytes(numbers) + self.values.bytes(numbers)
    }

    /// A number that no other choice has, below 2^16 (FORMAT.md, "Saved sessions").
    pub const fn number(self) -> u32 {
        let values = if self.keys as u8 == self.values as u8 { 0 } else { 1 + code(self.values) };
        code(self.keys) | values << 8
    }

    /// The inverse of [`KvType::number`].
    pub fn from_number(number: u32) -> Option<Self> {
        let all = Stored::ALL.into_iter();
        let mut pairs = all.flat_map(|keys| Stored::ALL.map(|values| Self { keys, values }));
        pairs.find(|kv| kv.number() == number)
    }
}

/// 3 was q4_0 before keys were rotated.
const fn code(stored: Stored) -> u32 {
    match stored {
        Stored::F16 => 0,
        Stored::F32 => 1,
        Stored::Q8_0 => 2,
        Stored::Q4_0 => 4,
    }
}

/// [`KvType::number`] of q4_0 as it was before keys were rotated.
pub(crate) const UNROTATED_Q4_0: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_has_a_name_and_a_number_of_its_own() {
        let mut numbers = Vec::new();
        for keys in Stored::ALL {
            for values in Stored::ALL {
                let kv = KvType { keys, values };
                assert_eq!(KvType::from_name(kv.name()), Some(kv));
                assert_eq!(KvType::from_name(&format!("{}:{}", keys.name(), values.name())), Some(kv));
                assert_eq!(KvType::from_number(kv.number()), Some(kv));
                assert!(kv.number() < 1 << 16);
                numbers.push(kv.number());
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 16);
        // As they were before keys and values could differ.
        assert_eq!([KvType::F16, KvType::F32, KvType::Q8_0].map(KvType::number), [0, 1, 2]);
        assert_eq!(KvType::from_number(UNROTATED_Q4_0), None);
        for wrong in ["", ":", "q8_0:", ":q8_0", "q3", "q8_0:q4_0:f16", "Q8_0"] {
            assert_eq!(KvType::from_name(wrong), None, "{wrong}");
        }
    }
}
