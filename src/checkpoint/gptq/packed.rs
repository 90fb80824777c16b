//! A quantized matrix in memory: its codes, and its weights as floats.

use std::ops::Range;

use super::Facts;

/// Outputs that are widened together: a line of the cache holds a word of each.
const TOGETHER: usize = 16;

/// A quantized matrix `[outputs, inputs]` in memory, packed as the checkpoint has it.
#[derive(Debug)]
pub struct Packed {
    pub(super) facts: Facts,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Words of a line: outputs, and some more that mean nothing.
    pub(super) stored: usize,
    /// [inputs / codes in a word, stored].
    pub(super) words: Vec<u32>,
    /// [groups, outputs].
    pub(super) zeros: Vec<u8>,
    /// [groups, outputs], all of them finite.
    pub(super) scales: Vec<f32>,
    /// By input, each below the number of groups.
    pub(super) group_of: Vec<u32>,
}

impl Packed {
    /// What decides which forms hold it exactly.
    pub const fn facts(&self) -> Facts {
        self.facts
    }

    /// Columns of the matrix.
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows of the matrix.
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Codes in a word: 8 or 4.
    pub const fn per_word(&self) -> usize {
        32 / self.facts.bits as usize
    }

    /// The codes of the inputs from `line * per_word` on of one output, the first in the lowest bits.
    pub fn word(&self, line: usize, output: usize) -> u32 {
        self.words[line * self.stored + output]
    }

    /// Scale and zero of an input of one output.
    pub fn scale_and_zero(&self, input: usize, output: usize) -> (f32, u8) {
        let at = self.group_of[input] as usize * self.outputs + output;
        (self.scales[at], self.zeros[at])
    }

    /// Appends the weights of these rows to `out`.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn widen(&self, rows: Range<usize>, out: &mut Vec<f32>) {
        assert!(rows.start <= rows.end && rows.end <= self.outputs, "rows {rows:?} of {}", self.outputs);
        let (per_word, bits) = (self.per_word(), self.facts.bits);
        let mask = u32::MAX >> (32 - bits);
        let first = out.len();
        out.resize(first + rows.len() * self.inputs, 0.0);
        let pieces = out[first..].chunks_mut(TOGETHER * self.inputs);
        for (start, piece) in rows.step_by(TOGETHER).zip(pieces) {
            for line in 0..self.inputs / per_word {
                for (output, row) in (start..).zip(piece.chunks_exact_mut(self.inputs)) {
                    let mut word = self.word(line, output);
                    for (i, w) in (line * per_word..).zip(&mut row[line * per_word..][..per_word]) {
                        let (scale, zero) = self.scale_and_zero(i, output);
                        *w = scale * ((word & mask) as i32 - i32::from(zero)) as f32;
                        word >>= bits;
                    }
                }
            }
        }
    }

    /// Appends the elements `range` (row-major) to `out`.
    ///
    /// # Panics
    /// If there are no such elements.
    pub fn read_f32(&self, range: Range<usize>, out: &mut Vec<f32>) {
        let rows = range.start / self.inputs..range.end.div_ceil(self.inputs);
        let behind = out.len();
        self.widen(rows.clone(), out);
        out.truncate(behind + range.end - rows.start * self.inputs);
        out.drain(behind..behind + range.start - rows.start * self.inputs);
    }
}
