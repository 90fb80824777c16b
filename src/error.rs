//! One error type for the library: every variant says what is wrong, where, and what to do about it.

use std::{fmt, io, path::PathBuf};

/// What every fallible function of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, each with its place and its remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried: "open", "read", "write", …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own reason.
        source: io::Error,
    },

    /// A file is damaged, truncated, hostile, or not what its name says.
    #[error("{}: {place}: {problem}; {remedy}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Where in it: a tensor, a key, a byte offset.
        place: String,
        /// What is wrong there.
        problem: String,
        /// What the reader of the message can do.
        remedy: &'static str,
    },

    /// A file is sound, but asks for something that is not built.
    #[error("{}: {what} is not supported; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, architecture, type or opcode by name.
        what: String,
        /// What the reader of the message can do.
        remedy: String,
    },

    /// A checkpoint's tensors are not the ones that its config asks for.
    #[error("{}: the tensors do not fit the config:{problems}", path.display())]
    Tensors {
        /// The checkpoint folder or container.
        path: PathBuf,
        /// Every missing, unexpected, misshapen or duplicate tensor.
        problems: TensorProblems,
    },

    /// A tensor's bytes are not those that were written.
    #[error("{}: tensor {tensor} is damaged: BLAKE3 is {found}, the container says {expected}; convert or copy the file again", path.display())]
    Checksum {
        /// The container.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The recorded digest, in hex.
        expected: String,
        /// The digest of the bytes as they are, in hex.
        found: String,
    },

    /// The disk is too small for the output.
    #[error("{}: {needed} bytes are needed and {free} are free; make room or choose another folder", path.display())]
    DiskFull {
        /// The folder of the output.
        path: PathBuf,
        /// Bytes that the output takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },

    /// A prompt and its answer do not fit the context.
    #[error(
        "the context holds {capacity} tokens and {wanted} are asked for; shorten the prompt or raise --context"
    )]
    ContextFull {
        /// Tokens that the state can hold.
        capacity: usize,
        /// Tokens that the request would make it hold.
        wanted: usize,
    },

    /// There is not the memory for what the caller asked for.
    #[error("{0}")]
    Memory(String),

    /// A GPU has failed.
    #[error(
        "the GPU {device} has failed: {problem}; the model continues without it; --gpu off runs without a GPU from the start"
    )]
    Gpu {
        /// The device's name.
        device: String,
        /// The call and the driver's reason.
        problem: String,
    },

    /// The caller asked for something impossible.
    #[error("{0}")]
    Argument(String),

    /// A mistake in the library. What was asked for has not happened, and everything is as before.
    #[error("{0}; this is a mistake in the library: please report it")]
    Internal(String),

    /// The caller cancelled the operation.
    #[error("stopped on request")]
    Cancelled,
}

/// What helps against the usual refusals of the system.
fn remedy(error: &io::Error) -> &'static str {
    if is_of_drive(error) {
        return "; the drive may be failing: look into the system's log, and use another drive";
    }
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied => "; check who may use the file and its folder",
        io::ErrorKind::ReadOnlyFilesystem => "; choose another folder",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room or choose another folder",
        _ => "",
    }
}

/// Whether a drive could not do what it was asked to.
fn is_of_drive(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(libc::EIO);
    #[cfg(windows)]
    {
        const ERROR_CRC: i32 = 23;
        const ERROR_IO_DEVICE: i32 = 1117;
        return matches!(error.raw_os_error(), Some(ERROR_CRC | ERROR_IO_DEVICE));
    }
    #[cfg(not(any(unix, windows)))]
    return false;
}

/// The ways in which a set of tensors can differ from what the config asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TensorProblems {
    /// Names that must be there and are not.
    pub missing: Vec<String>,
    /// Names that have no place in the architecture.
    pub unexpected: Vec<String>,
    /// `name: found [a, b], expected [c, d]`.
    pub misshapen: Vec<String>,
    /// Names that stand in more than one file.
    pub duplicate: Vec<String>,
}

impl TensorProblems {
    /// Whether there is nothing to complain about.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unexpected.is_empty()
            && self.misshapen.is_empty()
            && self.duplicate.is_empty()
    }
}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("misshapen", &self.misshapen),
            ("duplicate", &self.duplicate),
        ];
        for (kind, names) in kinds {
            for name in names.iter().take(20) {
                write!(f, "\n  {kind}: {name}")?;
            }
            if names.len() > 20 {
                write!(f, "\n  {kind}: … and {} more", names.len() - 20)?;
            }
        }
        Ok(())
    }
}

impl Error {
    /// An [`Error::Io`] builder for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.into(), source }
    }

    /// The same once more, for another caller who is to hear of it.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Io { action, path, source } => {
                let source = io::Error::new(source.kind(), source.to_string());
                Self::Io { action, path: path.clone(), source }
            }
            Self::BadFile { path, place, problem, remedy } => {
                Self::BadFile { path: path.clone(), place: place.clone(), problem: problem.clone(), remedy }
            }
            Self::Checksum { path, tensor, expected, found } => Self::Checksum {
                path: path.clone(),
                tensor: tensor.clone(),
                expected: expected.clone(),
                found: found.clone(),
            },
            Self::ContextFull { capacity, wanted } => {
                Self::ContextFull { capacity: *capacity, wanted: *wanted }
            }
            Self::Memory(problem) => Self::Memory(problem.clone()),
            Self::Gpu { device, problem } => Self::Gpu { device: device.clone(), problem: problem.clone() },
            Self::Cancelled => Self::Cancelled,
            // The others are of conversions, which have one caller.
            other => Self::Argument(other.to_string()),
        }
    }

    /// An [`Error::BadFile`] with the usual remedy.
    pub fn bad_file(path: impl Into<PathBuf>, place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::BadFile {
            path: path.into(),
            place: place.into(),
            problem: problem.into(),
            remedy: "the file is damaged or incomplete: fetch or convert it again",
        }
    }
}
