//! The tensors of a container in another layout, without changing a weight.

use std::borrow::Cow;

use yuan_kernels::DType;

use super::source::{interleave, split_taps};
use crate::{
    checkpoint::names::{self, Role, TensorSpec},
    config::ModelConfig,
    container::{
        Bytes, Container, ConvLayout, ExpertView, NewTensor, TensorView, TileLayout,
        gguf::Stored,
        panels::{self, panel_dims},
    },
    error::{Error, Result},
};

/// A tensor that is made of tensors of another container.
pub(super) struct Piece {
    pub tensor: NewTensor,
    origin: Origin,
}

/// How the bytes of a piece come about.
enum Origin {
    Copy(Bytes),
    /// Rows that become panels.
    ToPanels(TensorView),
    /// Panels that become rows.
    ToRows(TensorView),
    /// An expert's two matrices that become tiles.
    ToTiles {
        tiles: TileLayout,
        w1: TensorView,
        w2: TensorView,
    },
    /// One of the matrices of a tiled expert: the gate over the up rows, or the down rows.
    FromTiles {
        tiles: TileLayout,
        blob: Bytes,
        down: bool,
    },
    /// Rows of a convolution with their taps moved.
    Taps {
        view: TensorView,
        to: ConvLayout,
    },
    /// The same, widened to f32.
    WideTaps {
        view: TensorView,
        to: ConvLayout,
    },
}

impl Piece {
    /// `spec` as a tensor of our own layout; none for the second matrix of a tiled expert.
    pub fn in_tiles(
        container: &Container,
        spec: &TensorSpec,
        tiles: Option<TileLayout>,
    ) -> Result<Option<Self>> {
        let piece = match (spec.role, tiles) {
            (Role::ExpertOut { .. }, Some(_)) => return Ok(None),
            (Role::ExpertIn { layer, expert }, Some(tiles)) => {
                let origin = match container.expert(layer, expert)? {
                    ExpertView::Tiles { bytes, .. } => Origin::Copy(bytes),
                    ExpertView::Rows { w1, w2 } => Origin::ToTiles { tiles, w1, w2 },
                };
                Self { tensor: tiled_tensor(names::tiled_expert(layer, expert), tiles), origin }
            }
            (Role::Conv, _) => match container.conv(conv_name(spec))? {
                (view, ConvLayout::Interleaved) => Self::taps(spec, view, ConvLayout::Split),
                (view, ConvLayout::Split) => Self::in_panels(spec, view),
            },
            (
                Role::Head | Role::Attention | Role::Mlp | Role::ExpertIn { .. } | Role::ExpertOut { .. },
                _,
            ) => Self::in_panels(spec, view(container, spec)?),
            _ => Self::in_rows(spec, view(container, spec)?, dims(spec)),
        };
        Ok(Some(piece))
    }

    /// `spec` as the authors' converter lays it out. `config` has the neurons that are exported.
    pub fn standard(container: &Container, config: &ModelConfig, spec: &TensorSpec) -> Result<Self> {
        let (layer, expert, down) = match spec.role {
            Role::Conv => {
                return Ok(match container.conv(conv_name(spec))? {
                    (view, ConvLayout::Interleaved) => Self::in_rows(spec, view, dims(spec)),
                    (view, ConvLayout::Split) => Self::taps(spec, view, ConvLayout::Interleaved),
                });
            }
            Role::ExpertIn { layer, expert } => (layer, expert, false),
            Role::ExpertOut { layer, expert } => (layer, expert, true),
            _ => return Ok(Self::in_rows(spec, view(container, spec)?, dims(spec))),
        };
        match container.expert(layer, expert)? {
            ExpertView::Rows { w1, w2 } => Ok(Self::in_rows(spec, if down { w2 } else { w1 }, dims(spec))),
            ExpertView::Tiles { layout, bytes: blob } => {
                let tiles = TileLayout { ffn: config.ffn, ..layout };
                let tensor = row_tensor(spec.gguf.clone(), tiles.dtype, dims(spec));
                Ok(Self { tensor, origin: Origin::FromTiles { tiles, blob, down } })
            }
        }
    }

    /// A matrix as panels, where its type and shape have such.
    fn in_panels(spec: &TensorSpec, view: TensorView) -> Self {
        if panel_dims(view.dtype, view.rows, view.cols).is_none() {
            let dims = vec![view.cols as u64, view.rows as u64];
            return Self::in_rows(spec, view, dims);
        }
        let tensor = panel_tensor(spec.gguf.clone(), view.dtype, view.rows, view.cols);
        let origin = if view.panels { Origin::Copy(view.bytes) } else { Origin::ToPanels(view) };
        Self { tensor, origin }
    }

    fn in_rows(spec: &TensorSpec, view: TensorView, dims: Vec<u64>) -> Self {
        let tensor = row_tensor(spec.gguf.clone(), view.dtype, dims);
        let origin = if view.panels { Origin::ToRows(view) } else { Origin::Copy(view.bytes) };
        Self { tensor, origin }
    }

    /// A convolution with its taps moved. The blocks of a quantized one hold either order, not both: it becomes f32.
    fn taps(spec: &TensorSpec, view: TensorView, to: ConvLayout) -> Self {
        let dims = match to {
            ConvLayout::Split => vec![view.cols as u64, view.rows as u64],
            ConvLayout::Interleaved => dims(spec),
        };
        if view.dtype.is_quantized() {
            let tensor = row_tensor(spec.gguf.clone(), DType::F32, dims);
            return Self { tensor, origin: Origin::WideTaps { view, to } };
        }
        Self { tensor: row_tensor(spec.gguf.clone(), view.dtype, dims), origin: Origin::Taps { view, to } }
    }

    /// Makes the tensor.
    pub fn bytes(&self) -> Vec<u8> {
        match &self.origin {
            Origin::Copy(bytes) => bytes.to_vec(),
            Origin::ToPanels(view) => panels::pack(view.dtype, view.cols, &view.bytes),
            Origin::ToRows(view) => panels::unpack(view.dtype, view.cols, &view.bytes),
            Origin::ToTiles { tiles, w1, w2 } => tiles.pack(&rows_of(w1), &pad_rows(tiles, w2)),
            Origin::FromTiles { tiles, blob, down: false } => tiles.unpack(blob).0,
            Origin::FromTiles { tiles, blob, down: true } => {
                let row = self.tensor.bytes as usize / tiles.hidden;
                let padded = tiles.unpack(blob).1;
                padded.chunks_exact(padded.len() / tiles.hidden).flat_map(|r| &r[..row]).copied().collect()
            }
            Origin::Taps { view, to } if view.dtype == DType::F32 => {
                move_taps::<4>(&view.bytes, view.cols, *to)
            }
            Origin::Taps { view, to } => move_taps::<2>(&view.bytes, view.cols, *to),
            Origin::WideTaps { view, to } => {
                let mut weights = vec![0.0; view.rows * view.cols];
                yuan_kernels::dequantize(view.dtype, &rows_of(view), &mut weights);
                move_taps::<4>(bytemuck::cast_slice(&weights), view.cols, *to)
            }
        }
    }
}

/// Dims as GGUF has them, innermost first.
fn dims(spec: &TensorSpec) -> Vec<u64> {
    spec.shape.iter().rev().map(|&d| d as u64).collect()
}

/// The rows of a convolution whose weights take `N` bytes, with their taps in the order `to`.
fn move_taps<const N: usize>(rows: &[u8], cols: usize, to: ConvLayout) -> Vec<u8> {
    let (weights, _) = rows.as_chunks::<N>();
    let order = match to {
        ConvLayout::Split => split_taps::<[u8; N]>,
        ConvLayout::Interleaved => interleave::<[u8; N]>,
    };
    weights.chunks_exact(cols).flat_map(order).flatten().collect()
}

/// The rows of a matrix, whichever way they lie.
fn rows_of(view: &TensorView) -> Cow<'_, [u8]> {
    match view.panels {
        true => panels::unpack(view.dtype, view.cols, &view.bytes).into(),
        false => (&*view.bytes).into(),
    }
}

/// The rows of `w2` [H, F], filled up with zero blocks to whole tiles.
fn pad_rows(tiles: &TileLayout, w2: &TensorView) -> Vec<u8> {
    let (rows, row) = (rows_of(w2), w2.bytes.len() / w2.rows);
    let padded = tiles.dtype.row_bytes(tiles.padded_ffn()).expect("whole tiles are whole blocks");
    let mut out = vec![0; w2.rows * padded];
    for (from, to) in rows.chunks_exact(row).zip(out.chunks_exact_mut(padded)) {
        to[..row].copy_from_slice(from);
    }
    out
}

/// The tiles that the experts of a standard file can become: all of one type that has panels, in a shape that has tiles.
pub(super) fn tileable(container: &Container) -> Result<Option<TileLayout>> {
    let config = container.config();
    let mut only = None;
    for layer in 0..config.layers {
        for expert in 0..config.experts {
            let ExpertView::Rows { w1, w2 } = container.expert(layer, expert)? else { return Ok(None) };
            if w1.dtype != w2.dtype || only.is_some_and(|dtype| dtype != w1.dtype) {
                return Ok(None);
            }
            only = Some(w1.dtype);
        }
    }
    Ok(only.and_then(|dtype| TileLayout::new(config.hidden, config.ffn, dtype)))
}

fn conv_name(spec: &TensorSpec) -> &str {
    spec.gguf.trim_end_matches(".weight")
}

fn view(container: &Container, spec: &TensorSpec) -> Result<TensorView> {
    let missing = || Error::bad_file(container.path(), format!("tensor {}", spec.gguf), "it is missing");
    container.tensor(&spec.gguf).ok_or_else(missing)
}

/// A tensor of rows that will be written.
pub(super) fn row_tensor(name: String, dtype: DType, dims: Vec<u64>) -> NewTensor {
    let weights: u64 = dims.iter().product();
    let bytes = weights / dtype.block_len() as u64 * dtype.block_bytes() as u64;
    NewTensor { name, dims, stored: Stored::Rows(dtype), bytes }
}

/// A matrix in panels that will be written.
pub(super) fn panel_tensor(name: String, dtype: DType, rows: usize, cols: usize) -> NewTensor {
    let dims = panel_dims(dtype, rows, cols).expect("the plan asks for panels where they fit");
    let bytes = dims.iter().product();
    NewTensor { name, dims, stored: Stored::Panels(dtype), bytes }
}

/// An expert in tiles that will be written.
pub(super) fn tiled_tensor(name: String, tiles: TileLayout) -> NewTensor {
    let dims = vec![tiles.tile_bytes() as u64, tiles.tiles() as u64];
    NewTensor { name, dims, stored: Stored::Tiles(tiles.dtype), bytes: tiles.expert_bytes() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Containers from before `q8_0 tiles` have the two matrices of an expert in panels.
    #[test]
    fn matrices_in_panels_become_the_tiles_of_their_rows() {
        let tiles = TileLayout::new(256, 32, DType::Q8_0).unwrap();
        let matrix = |rows: usize, cols: usize, panels: bool| {
            let bytes = DType::Q8_0.row_bytes(cols).unwrap() * rows;
            let data: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
            let data = if panels { panels::pack(DType::Q8_0, cols, &data) } else { data };
            TensorView { name: "w".into(), dtype: DType::Q8_0, rows, cols, panels, bytes: Bytes::copy(&data) }
        };
        let blob = |panels| {
            let origin = Origin::ToTiles { tiles, w1: matrix(64, 256, panels), w2: matrix(256, 32, false) };
            Piece { tensor: tiled_tensor("e".into(), tiles), origin }.bytes()
        };
        assert!(blob(true) == blob(false));
    }
}
