//! The machine: how much memory is free, files that are read past the page cache, how fast they are, what was measured before, what the system says of
//! itself, and what differs between operating systems.

#[cfg(target_vendor = "apple")]
mod apple;
pub mod budget;
pub mod drive;
pub mod facts;
pub mod remembered;
pub mod source;
pub mod system;
#[cfg(windows)]
mod windows;
