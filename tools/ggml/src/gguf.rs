//! ggml's reader of GGUF files.

use std::{
    ffi::{CStr, CString},
    path::Path,
    ptr,
};

use ggml_sys::*;

use crate::init::init;

/// A tensor as a file's header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// ggml's number of its type.
    pub kind: u32,
    /// Where its data begin in the file.
    pub offset: usize,
    /// Bytes of its data.
    pub bytes: usize,
}

/// The tensors of a file in its order, or `None` where ggml refuses it.
///
/// # Panics
/// For a path with a zero byte.
pub fn tensors_of(path: &Path) -> Option<Vec<Listed>> {
    init();
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without zeros");
    let parameters = gguf_init_params { no_alloc: true, ctx: ptr::null_mut() };
    // SAFETY: `path` ends with a zero, and no context for the data is asked for.
    let file = unsafe { gguf_init_from_file(path.as_ptr(), parameters) };
    if file.is_null() {
        return None;
    }
    // SAFETY: `file` is what ggml just made; `i` is below the number of its tensors; names live as long as it does, and are
    // copied before it is freed, once.
    unsafe {
        let of = |i| Listed {
            name: CStr::from_ptr(gguf_get_tensor_name(file, i)).to_string_lossy().into_owned(),
            kind: gguf_get_tensor_type(file, i),
            offset: gguf_get_data_offset(file) + gguf_get_tensor_offset(file, i),
            bytes: gguf_get_tensor_size(file, i),
        };
        let tensors = (0..gguf_get_n_tensors(file)).map(of).collect();
        gguf_free(file);
        Some(tensors)
    }
}
