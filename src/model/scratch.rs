//! The memory that passes work in. Buffers are checked out of one pool, whatever thread asks, and go back to it: fresh pages cost the system
//! more to clear than much of what is computed in them, and what a pass holds does not depend on the number of threads.

use std::{
    marker::PhantomData,
    mem::take,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use bytemuck::{Pod, Zeroable, allocation::zeroed_vec, cast_slice, cast_slice_mut};

use crate::pager::sync::{Mutex, lock};

/// The pool. Clones are the same pool.
#[derive(Clone, Debug, Default)]
pub struct Scratch(Arc<Mutex<Pieces>>);

/// A cache line, so that every buffer begins at one.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

#[derive(Debug, Default)]
struct Pieces {
    /// What nobody uses; the piece that came back first is the first.
    free: Vec<Vec<Line>>,
    /// Bytes of all pieces, in use or not.
    held: usize,
    most_held: usize,
    /// Bytes above which pieces that nobody uses are not kept.
    limit: usize,
}

impl Scratch {
    /// Keeps up to `bytes` for the next passes.
    pub fn set_limit(&self, bytes: usize) {
        lock(&self.0).limit = bytes;
    }

    /// The most bytes that were held at a time.
    pub fn most_held(&self) -> usize {
        lock(&self.0).most_held
    }

    /// `n` elements with arbitrary contents, those of an earlier use; the caller must overwrite all of them.
    pub fn buffer<T: Pod>(&self, n: usize) -> Buffer<T> {
        let lines = (n * size_of::<T>()).div_ceil(size_of::<Line>());
        let piece = lock(&self.0).take(lines);
        let piece = piece.unwrap_or_else(|| zeroed_vec(lines));
        Buffer { piece, n, home: self.clone(), of: PhantomData }
    }

    /// `n` zeros.
    pub fn zeros<T: Pod>(&self, n: usize) -> Buffer<T> {
        let mut buffer = self.buffer(n);
        buffer.fill(T::zeroed());
        buffer
    }

    /// A copy of `elements`.
    pub fn copy<T: Pod>(&self, elements: &[T]) -> Buffer<T> {
        let mut buffer = self.buffer(elements.len());
        buffer.copy_from_slice(elements);
        buffer
    }

    /// A list of what `elements` gives; they are gone through twice.
    pub fn list<T: Pod>(&self, elements: impl Iterator<Item = T> + Clone) -> Buffer<T> {
        let mut buffer = self.buffer(elements.clone().count());
        buffer.iter_mut().zip(elements).for_each(|(to, element)| *to = element);
        buffer
    }

    /// The rows, `width` long, that `indices` names, in its order.
    pub fn gather<T: Pod>(&self, rows: &[T], width: usize, indices: &[usize]) -> Buffer<T> {
        let mut out = self.buffer(indices.len() * width);
        let to = out.chunks_exact_mut(width).zip(indices);
        to.for_each(|(to, &r)| to.copy_from_slice(&rows[r * width..][..width]));
        out
    }
}

impl Pieces {
    /// The smallest free piece of at least this size, unless that would waste half of it; `None` is permission for a new one.
    fn take(&mut self, lines: usize) -> Option<Vec<Line>> {
        let fits = self.free.iter().enumerate().filter(|(_, p)| (lines..=2 * lines).contains(&p.len()));
        if let Some((i, _)) = fits.min_by_key(|(_, p)| p.len()) {
            return Some(self.free.remove(i));
        }
        let bytes = lines * size_of::<Line>();
        self.shrink(self.limit.saturating_sub(bytes));
        self.held += bytes;
        self.most_held = self.most_held.max(self.held);
        None
    }

    /// Frees what nobody uses, the oldest first, until no more than `bytes` are held.
    fn shrink(&mut self, bytes: usize) {
        let mut dropped = 0;
        while self.held > bytes && dropped < self.free.len() {
            self.held -= size_of_val(&self.free[dropped][..]);
            dropped += 1;
        }
        self.free.drain(..dropped);
    }
}

/// Parts of these lengths, one after another, each to be written by a thread of its own.
///
/// # Panics
/// When they are longer than `all`.
pub fn parts_of<T>(
    mut all: &mut [T],
    lengths: impl Iterator<Item = usize>,
) -> impl Iterator<Item = &mut [T]> {
    lengths.map(move |n| all.split_off_mut(..n).expect("room for every part"))
}

/// Elements in memory of a [`Scratch`], to which it goes back when they are dropped.
#[derive(Debug)]
pub struct Buffer<T: Pod = f32> {
    piece: Vec<Line>,
    n: usize,
    home: Scratch,
    of: PhantomData<T>,
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.piece.is_empty() {
            return;
        }
        let mut pieces = lock(&self.home.0);
        pieces.free.push(take(&mut self.piece));
        let limit = pieces.limit;
        pieces.shrink(limit);
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let bytes: &[u8] = cast_slice(&self.piece);
        cast_slice(&bytes[..self.n * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = cast_slice_mut(&mut self.piece);
        cast_slice_mut(&mut bytes[..self.n * size_of::<T>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_used_again() {
        let scratch = Scratch::default();
        scratch.set_limit(1 << 20);
        let mut first = scratch.buffer::<f32>(1000);
        first.fill(3.0);
        let place = first.as_ptr();
        assert!(place.align_offset(64) == 0);
        drop(first);
        let second = scratch.zeros::<f32>(900);
        assert_eq!(second.as_ptr(), place);
        assert!(second.iter().all(|&x| x == 0.0));
        assert_ne!(scratch.buffer::<u16>(1800).as_ptr().cast(), place);
        drop(second);
        assert_eq!(scratch.copy(&[1f32; 950]).as_ptr(), place);
        assert_ne!(scratch.buffer::<f32>(16).as_ptr(), place, "a large piece is no small one");
    }

    #[test]
    fn what_nobody_uses_is_freed_above_the_limit() {
        let scratch = Scratch::default();
        scratch.set_limit(64 << 10);
        let sizes: Vec<usize> = (1..200).map(|i| i * 7919 % 16_000).collect();
        for pair in sizes.windows(2) {
            let (a, b) = (scratch.buffer::<u8>(pair[0]), scratch.buffer::<f32>(pair[1] / 4));
            assert_eq!((a.len(), b.len()), (pair[0], pair[1] / 4));
        }
        assert!(scratch.most_held() <= 64 << 10, "{}", scratch.most_held());
        // What is used at a time is given out in any case.
        let large = scratch.buffer::<f32>(1 << 20);
        assert_eq!(large.len(), 1 << 20);
        drop(large);
        assert!(lock(&scratch.0).held <= 64 << 10);
    }

    #[test]
    fn rows_are_gathered_in_the_order_of_their_numbers() {
        let scratch = Scratch::default();
        assert_eq!(scratch.gather(&[0, 1, 2, 3, 4, 5], 2, &[2, 0, 2])[..], [4, 5, 0, 1, 4, 5]);
        assert!(scratch.gather::<u8>(&[], 3, &[]).is_empty());
    }
}
