//! One matrix, written by several threads: each has some columns of every row.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// The columns `range` of a row-major matrix `[rows, width]`, to be written by one thread.
#[derive(Debug)]
pub struct Columns<'a> {
    /// The first of these columns in the first row.
    first: NonNull<f32>,
    rows: usize,
    width: usize,
    range: Range<usize>,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for exclusive borrows of f32s, which may cross threads. Of the constructors `split` gives no two parts a column
// in common, and `of_row` borrows what it gives, so no two threads reach the same f32.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Cuts a matrix of rows `width` long into parts of `chunk` columns, in order; the last part may be narrower.
    ///
    /// # Panics
    /// Where `chunk` is 0 or `matrix` is not made of whole rows.
    pub fn split(matrix: &'a mut [f32], width: usize, chunk: usize) -> Vec<Columns<'a>> {
        assert!(chunk > 0, "columns of a part");
        assert!(matrix.len().is_multiple_of(width), "a matrix of {} is not in rows of {width}", matrix.len());
        let rows = matrix.len().checked_div(width).unwrap_or(0);
        let matrix: NonNull<f32> = NonNull::from(matrix).cast();
        let part = |start: usize| {
            let range = start..width.min(start.saturating_add(chunk));
            // SAFETY: `start < width`, and a matrix that is not empty has `width` f32s at least; of an empty one no row is reached.
            let first = if rows == 0 { matrix } else { unsafe { matrix.add(start) } };
            Columns { first, rows, width, range, borrow: PhantomData }
        };
        (0..width).step_by(chunk).map(part).collect()
    }

    /// The columns from `first` on of a matrix that is one row, of which this is a `piece`.
    pub fn of_row(piece: &'a mut [f32], first: usize) -> Self {
        let (width, range) = (piece.len(), first..first + piece.len());
        Self { first: NonNull::from(piece).cast(), rows: 1, width, range, borrow: PhantomData }
    }

    /// The columns of this part.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// This part of row `r`.
    ///
    /// # Panics
    /// Where the matrix has no row `r`.
    pub fn row(&mut self, r: usize) -> &mut [f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: `r < rows`, and from `first` on a row has `range.len()` columns at least, so the slice lies inside the f32s
        // that the constructor borrowed for 'a. No other part has these columns, and `&mut self` keeps this part's own rows
        // from being held twice.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr().add(r * self.width), self.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_column_once() {
        for (rows, width, chunk) in [(3, 10, 4), (1, 1, 1), (5, 8, 8), (2, 7, 100), (4, 6, 1), (0, 5, 2)] {
            let mut matrix = vec![0.0; rows * width];
            let mut parts = Columns::split(&mut matrix, width, chunk);
            assert_eq!(parts.len(), width.div_ceil(chunk));
            for r in 0..rows {
                for part in &mut parts {
                    let range = part.range();
                    for (y, column) in part.row(r).iter_mut().zip(range) {
                        *y += (r * width + column + 1) as f32;
                    }
                }
            }
            assert!(matrix.iter().enumerate().all(|(i, &y)| y == (i + 1) as f32));
        }
    }

    #[test]
    fn pieces_of_a_row_know_their_columns() {
        let mut row = [0.0; 10];
        for (i, piece) in row.chunks_mut(4).enumerate() {
            let mut columns = Columns::of_row(piece, 4 * i);
            let range = columns.range();
            columns.row(0).iter_mut().zip(range).for_each(|(y, column)| *y = column as f32);
        }
        assert_eq!(row, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    }

    #[test]
    #[should_panic(expected = "row 1 of 1")]
    fn a_row_has_no_second_one() {
        Columns::of_row(&mut [0.0; 6], 3).row(1);
    }

    #[test]
    fn threads_write_their_own_columns() {
        let mut matrix = vec![0.0; 64 * 100];
        std::thread::scope(|scope| {
            for mut part in Columns::split(&mut matrix, 100, 9) {
                scope.spawn(move || {
                    for r in 0..64 {
                        let start = part.range().start;
                        part.row(r).fill(start as f32);
                    }
                });
            }
        });
        assert!(matrix.iter().enumerate().all(|(i, &y)| y == (i % 100 / 9 * 9) as f32));
    }

    #[test]
    fn an_empty_matrix_has_no_parts() {
        assert!(Columns::split(&mut [], 0, 4).is_empty());
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn a_row_beyond_the_last_is_refused() {
        Columns::split(&mut [0.0; 6], 3, 2)[0].row(2);
    }

    #[test]
    #[should_panic(expected = "not in rows of 4")]
    fn a_matrix_of_broken_rows_is_refused() {
        Columns::split(&mut [0.0; 6], 4, 2);
    }
}
