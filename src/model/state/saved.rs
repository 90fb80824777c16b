//! A state as bytes (FORMAT.md, "Saved sessions"). Numbers are little-endian, as on every machine that this runs on.

use std::io::{self, Read, Write};

use bytemuck::{cast_slice, cast_slice_mut};

use super::{super::filter::FilterState, History, KvType, State};
use crate::config::ModelConfig;

/// How much a saved state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Tokens whose keys and values it holds.
    pub position: usize,
    /// Snapshots of earlier positions.
    pub snapshots: usize,
}

impl Extent {
    /// Bytes of a saved state; `None` where they cannot be counted.
    pub(crate) fn bytes(&self, config: &ModelConfig, kv: KvType) -> Option<u64> {
        let snapshot = State::snapshot_bytes(config);
        let snapshots = self.snapshots.checked_mul(8 + snapshot)?;
        let keys_and_values = self.position.checked_mul(State::kv_bytes(config, kv))?;
        u64::try_from(snapshot.checked_add(snapshots)?.checked_add(keys_and_values)?).ok()
    }
}

impl State {
    /// How much [`State::write`] writes.
    pub(crate) fn extent(&self) -> Extent {
        Extent { position: self.position, snapshots: self.history.iter().len() }
    }

    /// Writes the filter's last inputs and the hidden state, the snapshots, and the keys and values.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let zeros;
        let hidden = if self.position > 0 {
            &self.hidden
        } else {
            zeros = vec![0.0; self.layers.first().map_or(0, |l| l.filter.input.len())];
            &zeros
        };
        self.layers.iter().try_for_each(|l| write_filter(out, &l.filter))?;
        out.write_all(cast_slice(hidden))?;
        for (position, snapshot) in self.history.iter() {
            out.write_all(&(position as u64).to_le_bytes())?;
            snapshot.filters.iter().try_for_each(|f| write_filter(out, f))?;
            out.write_all(cast_slice(&snapshot.hidden))?;
        }
        let mut pieces = self.layers.iter().flat_map(|l| l.kv.pieces(self.position));
        pieces.try_for_each(|piece| out.write_all(piece))
    }

    /// Fills an empty state, which has pages for `extent.position` tokens, with what [`State::write`] wrote.
    ///
    /// # Errors
    /// Those of `input`; [`io::ErrorKind::InvalidData`] for a snapshot of a position that is not among the tokens.
    pub(crate) fn read(&mut self, extent: Extent, input: &mut dyn Read) -> io::Result<()> {
        let filters = self.layers.iter_mut().map(|l| &mut l.filter);
        self.hidden = read_filters(input, filters)?;
        let hidden = self.hidden.len();
        let mut previous = 0;
        for _ in 0..extent.snapshots {
            let mut position = [0; 8];
            input.read_exact(&mut position)?;
            let position = usize::try_from(u64::from_le_bytes(position)).unwrap_or(usize::MAX);
            if position <= previous || position > extent.position {
                let what = format!("a snapshot of position {position} among {} tokens", extent.position);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            let mut filters: Vec<_> = self.layers.iter().map(|_| FilterState::new(hidden)).collect();
            let hidden = read_filters(input, filters.iter_mut())?;
            if !History::is_regular(position) {
                self.mark_at([position]);
            }
            self.add(position, filters, hidden);
            previous = position;
        }
        for layer in &mut self.layers {
            layer.kv.pieces_mut(extent.position).into_iter().try_for_each(|piece| input.read_exact(piece))?;
        }
        self.position = extent.position;
        self.foreign = true;
        if self.position == 0 {
            self.hidden.clear();
        }
        Ok(())
    }
}

fn write_filter(out: &mut dyn Write, filter: &FilterState) -> io::Result<()> {
    out.write_all(cast_slice(&filter.input))?;
    out.write_all(cast_slice(&filter.conv1))
}

/// Reads the filters of all layers, and returns the hidden state behind them.
fn read_filters<'f>(
    input: &mut dyn Read,
    filters: impl Iterator<Item = &'f mut FilterState>,
) -> io::Result<Vec<f32>> {
    let mut width = 0;
    for filter in filters {
        width = filter.input.len();
        input.read_exact(cast_slice_mut(&mut filter.input))?;
        input.read_exact(cast_slice_mut(&mut filter.conv1))?;
    }
    let mut hidden = vec![0.0; width];
    input.read_exact(cast_slice_mut(&mut hidden))?;
    Ok(hidden)
}
