//! The embedding, of which a token needs one row.

use std::path::Path;

use super::matrix::Matrix;
use crate::{
    container::TensorView,
    error::Result,
    machine::source::{DirectIo, FileSource},
};

/// The table [V, H], in rows.
#[derive(Debug)]
pub struct Embedding {
    table: Matrix,
    /// Where memory is short, rows come from here. A row that is touched in the mapping would count as memory of this process, together
    /// with whatever the system maps beside it: up to the whole table.
    file: Option<Place>,
}

/// Where the table begins in its file.
#[derive(Debug)]
struct Place {
    file: FileSource,
    offset: u64,
}

impl Embedding {
    /// The table, wherever its bytes are.
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub fn new(view: TensorView) -> Result<Self> {
        Ok(Self { table: Matrix::new(view)?, file: None })
    }

    /// The table of a mapped file, which is read row by row through the page cache.
    ///
    /// # Errors
    /// As [`Matrix::new`]; [`Error::Io`](crate::Error::Io) where the file at `path` cannot be opened.
    pub fn streamed(view: TensorView, path: &Path) -> Result<Self> {
        let offset = view.bytes.file_offset();
        let open = |offset| Ok(Place { file: FileSource::open(path, DirectIo::Off, 0)?, offset });
        let file = offset.map(open).transpose()?;
        Ok(Self { file, ..Self::new(view)? })
    }

    /// Writes row `id` to `out`, f32 [H].
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where it cannot be read.
    pub fn row(&self, id: u32, out: &mut [f32]) -> Result<()> {
        let Some(Place { file, offset }) = &self.file else {
            self.table.dequantize_row(id as usize, out);
            return Ok(());
        };
        let mut bytes = vec![0; self.table.len_bytes() / self.table.rows];
        let start = offset + u64::from(id) * bytes.len() as u64;
        file.fill(&mut bytes, start)?;
        yuan_kernels::dequantize(self.table.dtype, &bytes, out);
        Ok(())
    }

    /// The table, which is in memory as far as the system can have it there: to be read once from its first byte to its last.
    #[cfg(feature = "gpu")]
    pub fn table(&self) -> &Matrix {
        self.table.bring_in();
        &self.table
    }
}
