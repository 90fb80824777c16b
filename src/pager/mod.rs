//! Bringing experts into memory.
