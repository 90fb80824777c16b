//! Lists that are short where one token is computed, and long for a prompt.

use smallvec::SmallVec;

/// A list whose first eight elements need no memory of the heap: a token asks the allocator for nothing.
pub type List<T> = SmallVec<[T; 8]>;
