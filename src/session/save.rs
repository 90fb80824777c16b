//! Saving a session to a file (FORMAT.md, "Saved sessions"): beside its place, flushed to the disk, and renamed when whole.

use std::{
    io::{self, Write},
    path::Path,
};

use super::Session;
use crate::{
    error::Result,
    files::write_whole,
    model::{Arithmetic, Extent, KvType, Model},
    sampler::Sampler,
};

/// How a file of ours begins.
pub(super) const MAGIC: [u8; 8] = *b"YUANSESS";
/// Version of the format.
pub(super) const VERSION: u32 = 1;
/// [`Header::arithmetic`] of float products.
pub(super) const FLOAT: u32 = 1;
/// [`Header::arithmetic`] of integer products by version 1.
pub(super) const OLD_ARITHMETIC: u32 = 0;
/// Bytes of the digest at the end.
pub(super) const DIGEST: usize = 32;

/// The numbers at the beginning of a file, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// [`crate::container::Container::fingerprint`] of the model.
    pub fingerprint: [u8; 32],
    /// [`KvType::number`].
    pub kv: u32,
    /// 1 float, else integer: [`OLD_ARITHMETIC`], or [`yuan_kernels::ARITHMETIC`] from its version 2 on.
    pub arithmetic: u32,
    /// Place among the rotary conventions: mixed, f32, hfbf16.
    pub rope: u32,
    /// Layers, hidden size, heads, head dim.
    pub shape: [u32; 4],
    /// Tokens that the session had room for.
    pub capacity: u64,
    /// Tokens of the timeline.
    pub tokens: u64,
    /// Tokens whose state is in the file.
    pub position: u64,
    /// Snapshots of earlier positions.
    pub snapshots: u64,
    /// Bytes of the sampler; 0 where there is none.
    pub sampler: u64,
    /// Experts in the list of the most used ones.
    pub hot: u64,
    /// Bytes of the note.
    pub note: u64,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 8 + 4 + 32 + 7 * 4 + 7 * 8;

    pub fn to_bytes(&self) -> Vec<u8> {
        let words = [self.kv, self.arithmetic, self.rope].into_iter().chain(self.shape);
        let counts =
            [self.capacity, self.tokens, self.position, self.snapshots, self.sampler, self.hot, self.note];
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(self.fingerprint);
        out.extend(words.flat_map(u32::to_le_bytes));
        out.extend(counts.into_iter().flat_map(u64::to_le_bytes));
        out
    }

    /// Bytes of the whole file; `None` where they cannot be counted.
    pub fn file_bytes(&self, model: &Model) -> Option<u64> {
        let kv = KvType::from_number(self.kv)?;
        let extent = Extent {
            position: usize::try_from(self.position).ok()?,
            snapshots: usize::try_from(self.snapshots).ok()?,
        };
        [
            self.tokens.checked_mul(4)?,
            self.sampler,
            self.hot.checked_mul(8)?,
            self.note,
            extent.bytes(model.config(), kv)?,
        ]
        .into_iter()
        .try_fold((Self::BYTES + DIGEST) as u64, u64::checked_add)
    }
}

/// The numbers of a header that say for which model and settings a state is.
pub(super) fn identity(model: &Model) -> ([u32; 4], u32, u32) {
    let config = model.config();
    let shape = [config.layers, config.hidden, config.heads, config.head_dim()];
    let arithmetic = match model.arithmetic() {
        Arithmetic::Integer => yuan_kernels::ARITHMETIC,
        Arithmetic::Float => FLOAT,
    };
    (shape.map(|n| n as u32), arithmetic, config.rope_precision as u32)
}

impl Session {
    /// Writes the whole state, with the note, to `path`, and that of the sampler when one is given, so that [`Session::restore`] goes on as if
    /// nothing had happened. A file that is there is replaced only when the new one is whole and on the disk.
    ///
    /// # Errors
    /// As [`write_whole`]. What was there before is then as it was.
    pub fn save(&self, path: &Path, sampler: Option<&Sampler>) -> Result<()> {
        let sampler = sampler.map(Sampler::to_bytes).unwrap_or_default();
        let hot = self.hot_experts();
        let model = self.engine.model();
        let (shape, arithmetic, rope) = identity(model);
        let extent = self.state.extent();
        let header = Header {
            fingerprint: self.engine.container().fingerprint()?,
            kv: self.kv_type().number(),
            arithmetic,
            rope,
            shape,
            capacity: self.capacity() as u64,
            tokens: self.tokens.len() as u64,
            position: extent.position as u64,
            snapshots: extent.snapshots as u64,
            sampler: sampler.len() as u64,
            hot: hot.len() as u64,
            note: self.note.len() as u64,
        };
        let needed = header.file_bytes(model).unwrap_or(u64::MAX);
        write_whole(path, needed, |out| {
            let mut out = Hashing { out, hasher: blake3::Hasher::new() };
            out.write_all(&header.to_bytes())?;
            out.write_all(bytemuck::cast_slice(&self.tokens))?;
            out.write_all(&sampler)?;
            hot.iter().flatten().try_for_each(|n| out.write_all(&n.to_le_bytes()))?;
            out.write_all(self.note.as_bytes())?;
            self.state.write(&mut out)?;
            let digest = out.hasher.finalize();
            out.out.write_all(digest.as_bytes())
        })
    }

    /// (layer, expert) of the experts that are worth having in memory, the most valuable first: as the pager says, or else the
    /// most used ones.
    fn hot_experts(&self) -> Vec<[u32; 2]> {
        let model = self.engine.model();
        let word = |n: usize| n as u32;
        let hot = model.pager().hot();
        if !hot.is_empty() {
            return hot.into_iter().map(|(layer, expert)| [word(layer), word(expert)]).collect();
        }
        let uses = model.pager().usage().uses;
        let experts = model.config().experts.max(1);
        let mut used: Vec<usize> = (0..uses.len()).filter(|&i| uses[i] > 0).collect();
        used.sort_by_key(|&i| std::cmp::Reverse(uses[i]));
        used.into_iter().map(|i| [word(i / experts), word(i % experts)]).collect()
    }
}

/// Hashes what passes through.
struct Hashing<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
