//! The arguments of a C program, checked as far as they can be: null, alignment, lengths that cannot be, UTF-8.

use std::{
    ffi::{CStr, c_char},
    path::PathBuf,
    slice,
};

use super::status::{Failure, yuan_status::YUAN_ERROR_BUFFER_TOO_SMALL};

/// Elements that no array and no text of a caller has more of. A larger count is a negative number or a mistake.
const MOST: usize = 1 << 30;

/// A place of the caller for one value, neither null nor misaligned.
#[derive(Clone, Copy)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `place`, where it is neither null nor misaligned, is valid for writes until the call returns.
    pub unsafe fn new(what: &str, place: *mut T) -> Result<Self, Failure> {
        check(what, place)?;
        Ok(Self(place))
    }

    pub fn write(self, value: T) {
        // SAFETY: `new` checked what can be, and its contract is the rest. The old value is the caller's and not dropped.
        unsafe { self.0.write(value) }
    }
}

/// A buffer of the caller and the place where the length that the answer needs is written.
pub(super) struct Buffer<T> {
    start: *mut T,
    capacity: usize,
    needed: Out<usize>,
}

impl<T: Copy> Buffer<T> {
    /// # Safety
    /// `start` has room for `capacity` elements, and `needed`, where it is not null, for one, until the call returns.
    pub unsafe fn new(start: *mut T, capacity: usize, needed: *mut usize) -> Result<Self, Failure> {
        // SAFETY: the contract of this function.
        let needed = unsafe { Out::new("the place of the length", needed) }?;
        if capacity > 0 {
            check("the buffer", start)?;
            count("the capacity of the buffer", capacity, size_of::<T>(), start.addr())?;
        }
        Ok(Self { start, capacity, needed })
    }

    /// Writes the length of `data`, and `data` if there is room. With a capacity of 0 the caller asked for the length only.
    pub fn fill(self, data: &[T]) -> Result<(), Failure> {
        self.needed.write(data.len());
        if self.capacity == 0 {
            return Ok(());
        }
        if data.len() > self.capacity {
            return Err(Failure::new(
                YUAN_ERROR_BUFFER_TOO_SMALL,
                format!("the buffer has room for {}, and {} are needed", self.capacity, data.len()),
            ));
        }
        // SAFETY: there is room for `capacity` elements (the contract of `new`), and `data` is the library's own memory.
        unsafe { self.start.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }
}

impl Buffer<c_char> {
    /// Writes a text and a NUL behind it. The length that is written counts the NUL.
    pub fn fill_text(self, text: &str) -> Result<(), Failure> {
        let bytes: Vec<c_char> = text.bytes().chain([0]).map(|b| b as c_char).collect();
        self.fill(&bytes)
    }
}

/// A caller's array.
///
/// # Safety
/// `start`, where it is neither null nor misaligned, points to `length` elements that nobody changes until the call returns.
pub(super) unsafe fn array<'a, T>(what: &str, start: *const T, length: usize) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    check(what, start)?;
    count(what, length, size_of::<T>(), start.addr())?;
    // SAFETY: not null, aligned, no longer than memory can be, and the contract of this function.
    Ok(unsafe { slice::from_raw_parts(start, length) })
}

/// A caller's text of `length` bytes.
///
/// # Safety
/// As [`array`].
pub(super) unsafe fn text<'a>(what: &str, start: *const c_char, length: usize) -> Result<&'a str, Failure> {
    // SAFETY: the contract of this function.
    let bytes = unsafe { array(what, start.cast::<u8>(), length) }?;
    utf8(what, bytes)
}

/// A caller's text that ends with a NUL.
///
/// # Safety
/// `start`, where it is not null, points to bytes that end with a NUL, and that nobody changes until the call returns.
pub(super) unsafe fn c_text<'a>(what: &str, start: *const c_char) -> Result<&'a str, Failure> {
    // SAFETY: the contract of this function.
    let bytes = unsafe { c_bytes(what, start) }?;
    utf8(what, bytes)
}

/// A caller's path: on Unix any bytes, elsewhere UTF-8.
///
/// # Safety
/// As [`c_text`].
pub(super) unsafe fn path(start: *const c_char) -> Result<PathBuf, Failure> {
    // SAFETY: the contract of this function.
    let bytes = unsafe { c_bytes("the path", start) }?;
    if bytes.is_empty() {
        return Err(Failure::argument("the path is empty"));
    }
    #[cfg(unix)]
    let path = std::os::unix::ffi::OsStrExt::from_bytes(bytes);
    #[cfg(unix)]
    let path = std::ffi::OsStr::to_owned(path).into();
    #[cfg(not(unix))]
    let path = utf8("the path", bytes)?.into();
    Ok(path)
}

/// # Safety
/// As [`c_text`].
unsafe fn c_bytes<'a>(what: &str, start: *const c_char) -> Result<&'a [u8], Failure> {
    check(what, start)?;
    // SAFETY: the contract of this function.
    Ok(unsafe { CStr::from_ptr(start) }.to_bytes())
}

fn utf8<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Failure> {
    std::str::from_utf8(bytes)
        .map_err(|e| Failure::argument(format!("{what} is no UTF-8 from byte {} on", e.valid_up_to())))
}

fn check<T>(what: &str, pointer: *const T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{what} is null")));
    }
    if !pointer.is_aligned() {
        let (align, address) = (align_of::<T>(), pointer.addr());
        return Err(Failure::argument(format!("{what} at {address:#x} is not aligned to {align} bytes")));
    }
    Ok(())
}

fn count(what: &str, length: usize, size: usize, address: usize) -> Result<(), Failure> {
    let end = length.checked_mul(size).and_then(|bytes| address.checked_add(bytes));
    if length > MOST || end.is_none_or(|end| end > isize::MAX as usize) {
        return Err(Failure::argument(format!("{what}: a length of {length} cannot be")));
    }
    Ok(())
}
