//! Damage for files under test: the same seed gives the same damage on every machine.
#![allow(dead_code)]

use std::collections::VecDeque;

/// A small generator (splitmix64): the same numbers everywhere, and no seed is a bad one. Bytes may come before its own.
pub struct Random {
    state: u64,
    bytes: VecDeque<u8>,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed, bytes: VecDeque::new() }
    }

    /// Numbers out of these bytes, as a fuzzer gives them: as few for each as it needs.
    pub fn of(bytes: &[u8]) -> Self {
        Self { state: 0, bytes: bytes.iter().copied().collect() }
    }

    /// Whether bytes are left.
    pub fn has_bytes(&self) -> bool {
        !self.bytes.is_empty()
    }

    pub fn next(&mut self) -> u64 {
        if self.has_bytes() {
            let word = self.bytes.len().min(8);
            return self.bytes.drain(..word).fold(0, |word, byte| word << 8 | u64::from(byte));
        }
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        if end <= 256
            && let Some(byte) = self.bytes.pop_front()
        {
            return usize::from(byte) % end.max(1);
        }
        (self.next() >> 11) as usize % end.max(1)
    }
}

/// A copy of `bytes` with one to three wounds: flipped bits, a cut end, a number (binary or in digits) that became huge,
/// zero or negative, or a piece that is removed, made up, moved or doubled.
pub fn mutate(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(3) {
        wound(&mut out, &mut random);
    }
    out
}

fn wound(out: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(out.len());
    match random.below(9) {
        0 => flip(out, at, random),
        1 => {
            for _ in 0..=random.below(16) {
                let at = random.below(out.len());
                flip(out, at, random);
            }
        }
        2 => out.truncate(at),
        3 | 4 => overwrite_number(out, at, random),
        5 => overwrite_digits(out, at, random),
        6 => {
            let piece = piece(out, at, random);
            out.drain(at..at + piece.len());
        }
        7 => {
            let piece: Vec<u8> = (0..=random.below(16)).map(|_| random.next() as u8).collect();
            out.splice(at..at, piece);
        }
        _ => {
            let (piece, to) = (piece(out, at, random), random.below(out.len() + 1));
            out.splice(to..to, piece);
        }
    }
}

fn flip(out: &mut [u8], at: usize, random: &mut Random) {
    if let Some(byte) = out.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

/// Up to 64 bytes at `at`, or, one time in four, up to a quarter of the file.
fn piece(out: &[u8], at: usize, random: &mut Random) -> Vec<u8> {
    let most = if random.below(4) == 0 { out.len() / 4 } else { 64 };
    let end = out.len().min(at + 1 + random.below(most));
    out.get(at..end).unwrap_or_default().to_vec()
}

/// Writes an extreme little-endian number of one, two, four or eight bytes.
fn overwrite_number(out: &mut [u8], at: usize, random: &mut Random) {
    let len = out.len() as u64;
    let extremes = [
        u64::MAX,
        i64::MAX as u64,
        1 << 63,
        u64::from(u32::MAX),
        1 << 31,
        1 << 40,
        0,
        1,
        len,
        len + 1,
        len - len / 4,
    ];
    let number = extremes[random.below(extremes.len())].to_le_bytes();
    let width = 1 << random.below(4);
    out.iter_mut().skip(at).zip(&number[..width]).for_each(|(byte, new)| *byte = *new);
}

/// Replaces the next run of decimal digits, as text formats have them.
fn overwrite_digits(out: &mut Vec<u8>, at: usize, random: &mut Random) {
    let digits =
        ["18446744073709551615", "9223372036854775808", "4294967296", "1e400", "-1", "0", "1", "2.5", "null"];
    let Some(start) = out.iter().skip(at).position(u8::is_ascii_digit).map(|p| p + at) else { return };
    let end = out[start..].iter().position(|b| !b.is_ascii_digit()).map_or(out.len(), |p| p + start);
    out.splice(start..end, digits[random.below(digits.len())].bytes());
}
