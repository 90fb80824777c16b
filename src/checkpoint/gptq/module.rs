//! One quantized matrix: where its parts are, and what they allow.

use std::sync::OnceLock;

use super::{
    super::{entry::ElementType, folder::Shard},
    Format, Packed, Settings,
};
use crate::error::{Error, Result};

/// Neighbouring inputs that must have one scale, for a block of ggml to hold them.
const BLOCK: usize = 32;

/// A run of bytes of a file.
#[derive(Clone, Debug)]
pub(in crate::checkpoint) struct Place {
    /// Number of the file.
    pub file: usize,
    pub offset: u64,
    pub bytes: usize,
}

/// A quantized matrix. Whoever makes one has checked that its parts are as large as these numbers ask for.
#[derive(Debug)]
pub(in crate::checkpoint) struct Module {
    /// Name of its parts, without the last dot.
    pub name: String,
    pub bits: u32,
    pub format: Format,
    pub inputs: usize,
    pub outputs: usize,
    /// Outputs as stored: `outputs`, or some more that mean nothing.
    pub stored: usize,
    pub groups: usize,
    pub group_size: usize,
    pub qweight: Place,
    pub qzeros: Place,
    pub scales: Place,
    pub scale_type: ElementType,
    /// Groups of the inputs, and whether they are 64 bits wide.
    pub g_idx: Option<(Place, bool)>,
    pub facts: OnceLock<Facts>,
}

/// What decides which forms hold a quantized matrix exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bits of a code: 4 or 8.
    pub bits: u32,
    /// Whether every 32 neighbouring inputs, counted from the first, are of one group.
    pub in_order: bool,
    /// Whether every zero is in the middle of the codes.
    pub symmetric: bool,
    /// Whether f16 holds every scale.
    pub half_scales: bool,
    /// Whether every code less its zero is from -128 to 127.
    pub bytes: bool,
}

impl Module {
    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        let places = [&self.qweight, &self.qzeros, &self.scales];
        let group_index = self.g_idx.as_ref().map_or(0, |(place, _)| place.bytes as u64);
        places.map(|place| place.bytes as u64).iter().sum::<u64>() + group_index
    }

    /// Weights of the matrix.
    pub const fn elements(&self) -> usize {
        self.inputs * self.outputs
    }

    /// Codes in a word.
    pub const fn per_word(&self) -> usize {
        32 / self.bits as usize
    }

    /// What the parts allow; only those that matter are read, and only once.
    ///
    /// # Errors
    /// When they cannot be read, or are damaged.
    pub fn facts(&self, files: &[Shard]) -> Result<Facts> {
        if let Some(facts) = self.facts.get() {
            return Ok(*facts);
        }
        let group_of = self.group_of(files)?;
        let zeros = self.zeros(files)?;
        let middle = 1 << (self.bits - 1);
        let in_order = group_of.chunks(BLOCK).all(|block| block.iter().all(|g| *g == block[0]));
        let symmetric = zeros.iter().all(|zero| *zero == middle);
        let half = |scale: &f32| half::f16::from_f32(*scale).to_f32() == *scale;
        let half_scales = self.scale_type == ElementType::F16 || self.scales(files)?.iter().all(half);
        // Only codes of 8 bits reach so far from their zeros, and without their order it does not matter.
        let bytes = self.bits == 4 || symmetric || (in_order && self.all_bytes(files, &group_of, &zeros)?);
        let facts = Facts { bits: self.bits, in_order, symmetric, half_scales, bytes };
        Ok(*self.facts.get_or_init(|| facts))
    }

    /// Whether every code less its zero is from -128 to 127. Codes have 8 bits.
    fn all_bytes(&self, files: &[Shard], group_of: &[u32], zeros: &[u8]) -> Result<bool> {
        let words = self.words(files)?;
        Ok(words.chunks_exact(self.stored).enumerate().all(|(line, words)| {
            words[..self.outputs].iter().enumerate().all(|(output, word)| {
                word.to_le_bytes().iter().enumerate().all(|(j, code)| {
                    let group = group_of[line * 4 + j] as usize;
                    i8::try_from(i32::from(*code) - i32::from(zeros[group * self.outputs + output])).is_ok()
                })
            })
        }))
    }

    /// The whole matrix in memory.
    ///
    /// # Errors
    /// When a part cannot be read, or is damaged.
    pub fn load(&self, files: &[Shard]) -> Result<Packed> {
        let facts = self.facts(files)?;
        Ok(Packed {
            facts,
            inputs: self.inputs,
            outputs: self.outputs,
            stored: self.stored,
            words: self.words(files)?,
            zeros: self.zeros(files)?,
            scales: self.scales(files)?,
            group_of: self.group_of(files)?,
        })
    }

    /// `qweight`: [inputs / codes in a word, stored].
    fn words(&self, files: &[Shard]) -> Result<Vec<u32>> {
        let mut words = vec![0u32; self.qweight.bytes / 4];
        files[self.qweight.file].read(bytemuck::cast_slice_mut(&mut words), self.qweight.offset)?;
        Ok(words)
    }

    /// Zeros [groups, outputs].
    pub fn zeros(&self, files: &[Shard]) -> Result<Vec<u8>> {
        let mut words = vec![0u32; self.qzeros.bytes / 4];
        files[self.qzeros.file].read(bytemuck::cast_slice_mut(&mut words), self.qzeros.offset)?;
        let (per_word, mask) = (self.per_word(), u32::MAX >> (32 - self.bits));
        let less = match self.format {
            Format::One => 1,
            Format::Two => 0,
        };
        let of_group = |words: &[u32]| -> Vec<u8> {
            let field = |o: usize| words[o / per_word] >> (self.bits as usize * (o % per_word));
            (0..self.outputs).map(|o| ((field(o).wrapping_add(less)) & mask) as u8).collect()
        };
        Ok(words.chunks_exact(self.stored / per_word).flat_map(of_group).collect())
    }

    /// Scales [groups, outputs].
    fn scales(&self, files: &[Shard]) -> Result<Vec<f32>> {
        let shard = &files[self.scales.file];
        let mut bytes = vec![0; self.scales.bytes];
        shard.read(&mut bytes, self.scales.offset)?;
        let mut all = Vec::new();
        self.scale_type.widen(&bytes, &mut all);
        let scales: Vec<f32> =
            all.chunks_exact(self.stored).flat_map(|group| &group[..self.outputs]).copied().collect();
        match scales.iter().position(|scale| !scale.is_finite()) {
            None => Ok(scales),
            Some(at) => {
                let (group, output) = (at / self.outputs, at % self.outputs);
                let problem = format!(
                    "the scale of group {group}, output {output} is {}, no finite number",
                    scales[at]
                );
                Err(Error::bad_file(&shard.path, format!("tensor {}.scales", self.name), problem))
            }
        }
    }

    /// The group of every input; each is one of the groups that there are.
    fn group_of(&self, files: &[Shard]) -> Result<Vec<u32>> {
        let Some((place, wide)) = &self.g_idx else {
            return Ok((0..self.inputs).map(|i| (i / self.group_size) as u32).collect());
        };
        let shard = &files[place.file];
        let mut bytes = vec![0; place.bytes];
        shard.read(&mut bytes, place.offset)?;
        let groups: Vec<i64> = match wide {
            true => bytes.as_chunks().0.iter().map(|word| i64::from_le_bytes(*word)).collect(),
            false => bytes.as_chunks().0.iter().map(|word| i64::from(i32::from_le_bytes(*word))).collect(),
        };
        let group = |(input, group): (usize, i64)| match u32::try_from(group) {
            Ok(group) if (group as usize) < self.groups => Ok(group),
            _ => {
                let problem = format!("input {input} is of group {group}, and there are {}", self.groups);
                Err(Error::bad_file(&shard.path, format!("tensor {}.g_idx", self.name), problem))
            }
        };
        groups.into_iter().enumerate().map(group).collect()
    }
}

/// Groups of a matrix with so many inputs, and inputs of each.
pub(super) fn groups(settings: &Settings, inputs: usize) -> (usize, usize) {
    let size = settings.group_size.unwrap_or(inputs).max(1);
    (inputs.div_ceil(size), size)
}
