//! The C surface: `include/yuan.h` is generated from this folder.
//!
//! Nothing that a C program does wrong may take it down where that can be known: handles are numbers in a table
//! (`handles.rs`) and never dereferenced, arguments are checked (`args.rs`), panics stop at the border (`border.rs`), and
//! a session that is in use is busy. What cannot be known is a pointer that is not null, is aligned, and points nowhere.
#![allow(non_camel_case_types)] // C's names.
#![allow(clippy::missing_safety_doc)] // One contract for all: the top of the header (`cbindgen.toml`).

mod args;
mod border;
mod callback;
mod describe;
mod draft;
mod engine;
mod generate;
mod grammar;
mod handles;
mod log;
mod sampler;
mod save;
mod score;
mod session;
mod session_options;
mod status;
mod text;

pub use border::*;
pub use callback::*;
pub use describe::*;
pub use draft::*;
pub use engine::*;
pub use generate::*;
pub use grammar::*;
pub use handles::*;
pub use log::*;
pub use sampler::*;
pub use save::*;
pub use score::*;
pub use session::*;
pub use session_options::*;
pub use status::*;
pub use text::*;
