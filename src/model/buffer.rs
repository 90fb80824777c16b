//! Memory of intermediate results, used again by the next operation: fresh pages cost the system more to clear than much
//! of what is computed in them.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
    thread::LocalKey,
};

use yuan_kernels::BlockQ8;

/// Numbers whose memory goes back to its thread when they are dropped.
#[derive(Debug)]
pub struct Buffer<T: Pooled = f32>(Vec<T>);

/// What buffers can hold.
pub trait Pooled: bytemuck::Pod {
    /// The thread's free memory.
    fn free() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>>;
}

/// Pieces that a thread keeps; a pass holds about half as many at once.
const KEPT: usize = 64;

macro_rules! pooled {
    ($type:ty) => {
        impl Pooled for $type {
            fn free() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>> {
                thread_local! { static FREE: RefCell<Vec<Vec<$type>>> = const { RefCell::new(Vec::new()) } }
                &FREE
            }
        }
    };
}
pooled!(f32);
pooled!(BlockQ8);

impl<T: Pooled> Buffer<T> {
    /// An empty buffer with room for `capacity` elements: the smallest free piece that has it.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut piece = Self::piece(capacity);
        piece.clear();
        Self(piece)
    }

    /// The smallest free piece, as its last user has left it, or a new one.
    fn piece(capacity: usize) -> Vec<T> {
        let piece = T::free().with_borrow_mut(|free| {
            let fits = free.iter().enumerate().filter(|(_, v)| v.capacity() >= capacity);
            fits.min_by_key(|(_, v)| v.capacity()).map(|(i, _)| i).map(|i| free.swap_remove(i))
        });
        piece.unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    /// `n` elements of any values, for who writes all of them.
    pub fn to_write(n: usize) -> Self {
        let mut piece = Self::piece(n);
        piece.resize(n, T::zeroed());
        Self(piece)
    }

    /// `n` zeros.
    pub fn zeroed(n: usize) -> Self {
        let mut buffer = Self::with_capacity(n);
        buffer.0.resize(n, T::zeroed());
        buffer
    }

    /// Adds elements at the end.
    pub fn extend(&mut self, elements: impl IntoIterator<Item = T>) {
        self.0.extend(elements);
    }

    /// Adds a slice at the end.
    pub fn extend_from_slice(&mut self, elements: &[T]) {
        self.0.extend_from_slice(elements);
    }

    /// The elements, whose memory does not come back.
    pub fn into_vec(mut self) -> Vec<T> {
        std::mem::take(&mut self.0)
    }
}

impl<T: Pooled> Drop for Buffer<T> {
    fn drop(&mut self) {
        let piece = std::mem::take(&mut self.0);
        // A thread that is ending has no list any more: the memory is freed.
        let _ = T::free().try_with(|free| {
            if let Ok(mut free) = free.try_borrow_mut()
                && piece.capacity() > 0
                && free.len() < KEPT
            {
                free.push(piece);
            }
        });
    }
}

impl<T: Pooled> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pooled> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_clean() {
        let mut first = Buffer::<f32>::zeroed(1000);
        first.fill(3.0);
        let place = first.as_ptr();
        drop(first);
        let second = Buffer::<f32>::zeroed(900);
        assert_eq!(second.as_ptr(), place);
        assert!(second.iter().all(|&x| x == 0.0));
        assert_ne!(Buffer::<f32>::zeroed(900).as_ptr(), place);
        drop(second);
        let third = Buffer::<f32>::to_write(950);
        assert_eq!((third.len(), third.as_ptr()), (950, place));
    }
}
