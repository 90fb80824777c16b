//! A container whose file is still coming: its tensors are fetched as they are wanted, and compared with their digests before they are used.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{
    gguf::{Header, Stored},
    map::Bytes,
    verify,
};
use crate::error::{Error, Result};

/// Bytes that are waited for between two reports of progress.
const PIECE: u64 = 16 << 20;

/// Brings the bytes of a file that has its full length already, and holds zeros where nothing has come. Several threads ask at once.
pub trait Arrival: Send + Sync {
    /// Waits until the file has its own bytes in `range`, as long as `go_on`, which is asked several times a second, says so.
    ///
    /// # Errors
    /// Why they do not come. One of the kind [`Interrupted`](io::ErrorKind::Interrupted) says that nobody wants to wait for them any more.
    fn bring(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> io::Result<()>;

    /// These bytes will be waited for soon, in the order of the calls: they come before others.
    fn expect(&self, range: Range<u64>);

    /// What has come in `range` is wrong, and is fetched again when it is asked for next. Returns the bytes that are not there any more: these, and
    /// perhaps some around them.
    fn reject(&self, range: Range<u64>) -> Range<u64>;
}

/// The tensors of such a file.
pub struct Arriving {
    arrival: Arc<dyn Arrival>,
    path: PathBuf,
    bytes: Bytes,
    /// In the order of their offsets.
    tensors: Vec<Tensor>,
}

struct Tensor {
    name: String,
    range: Range<u64>,
    digest: String,
    is_expert: bool,
    /// Held by the thread that waits for the tensor and checks it.
    turn: Mutex<()>,
    /// Whether it is there, and is what was written.
    is_right: AtomicBool,
}

impl Arriving {
    /// The tensors of `header`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a file without digests; [`Error::BadFile`] for one with too few of them.
    pub fn new(arrival: Arc<dyn Arrival>, header: &Header, bytes: &Bytes, path: &Path) -> Result<Self> {
        let digests = verify::digests(header, path)?;
        let mut tensors: Vec<_> = header
            .tensors
            .iter()
            .zip(digests)
            .map(|(desc, digest)| Tensor {
                name: desc.name.clone(),
                range: desc.offset..desc.offset + desc.bytes,
                digest: digest.clone(),
                is_expert: matches!(desc.stored, Stored::Tiles(_)),
                turn: Mutex::default(),
                is_right: AtomicBool::new(false),
            })
            .collect();
        tensors.sort_by_key(|tensor| tensor.range.start);
        Ok(Self { arrival, path: path.into(), bytes: bytes.clone(), tensors })
    }

    /// Asks for everything but the experts, and does not wait. Returns how many bytes that is.
    pub fn expect_trunk(&self) -> u64 {
        let trunk = self.tensors.iter().filter(|tensor| !tensor.is_expert);
        trunk.clone().for_each(|tensor| self.arrival.expect(tensor.range.clone()));
        trunk.map(|tensor| tensor.range.end - tensor.range.start).sum()
    }

    /// Asks for the tensor that begins at `offset`, and does not wait.
    pub fn expect(&self, offset: u64) {
        if let Some(tensor) = self.find(offset)
            && !tensor.is_right.load(Relaxed)
        {
            self.arrival.expect(tensor.range.clone());
        }
    }

    /// Where the tensor begins that has the byte at `offset`.
    pub fn start_of(&self, offset: u64) -> Option<u64> {
        self.find(offset).map(|tensor| tensor.range.start)
    }

    /// Waits for the tensor that has the byte at `offset`, and checks it unless that was done before. `progress` hears how many bytes have come, and says
    /// several times a second whether to go on.
    ///
    /// # Errors
    /// [`Error::Io`] where it does not come; [`Error::Checksum`] where it is another than was written: it is fetched again when it is asked for next;
    /// [`Error::Cancelled`] when `progress` says so.
    pub fn bring(&self, offset: u64, progress: &dyn Fn(u64) -> bool) -> Result<()> {
        let Some(tensor) = self.find(offset) else { return Ok(()) };
        if tensor.is_right.load(Relaxed) {
            return Ok(());
        }
        let _turn = tensor.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if tensor.is_right.load(Relaxed) {
            return Ok(());
        }
        self.come(tensor.range.clone(), progress)?;
        let place = tensor.range.start as usize..tensor.range.end as usize;
        let bytes = self.bytes.slice(place).expect("the header was checked against the file");
        let checked = verify::tensor(&self.path, &tensor.name, &tensor.digest, &bytes, &|_| progress(0));
        // It is read from the file where it is wanted, and need not stay here.
        bytes.cool();
        self.bytes.check_file(&self.path)?;
        match checked {
            Err(damaged @ Error::Checksum { .. }) => {
                let gone = self.arrival.reject(tensor.range.clone());
                let is_gone = |t: &&Tensor| t.range.start < gone.end && gone.start < t.range.end;
                self.tensors.iter().filter(is_gone).for_each(|t| t.is_right.store(false, Relaxed));
                Err(damaged)
            }
            Err(other) => Err(other),
            Ok(()) => {
                tensor.is_right.store(true, Relaxed);
                Ok(())
            }
        }
    }

    /// Waits for all of the file, unchecked.
    ///
    /// # Errors
    /// As [`Arriving::bring`].
    pub fn bring_all(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        self.come(0..self.bytes.len() as u64, &|_| go_on())
    }

    fn come(&self, range: Range<u64>, progress: &dyn Fn(u64) -> bool) -> Result<()> {
        for start in range.clone().step_by(PIECE as usize) {
            let piece = start..range.end.min(start + PIECE);
            let length = piece.end - piece.start;
            come(&*self.arrival, piece, &|| progress(0), &self.path)?;
            if !progress(length) {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }

    fn find(&self, offset: u64) -> Option<&Tensor> {
        let behind = self.tensors.partition_point(|tensor| tensor.range.start <= offset);
        self.tensors[..behind].last().filter(|tensor| offset < tensor.range.end)
    }
}

/// Waits for these bytes of the file at `path`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Cancelled`].
pub fn come(arrival: &dyn Arrival, range: Range<u64>, go_on: &dyn Fn() -> bool, path: &Path) -> Result<()> {
    arrival.bring(range, go_on).map_err(|problem| match problem.kind() {
        io::ErrorKind::Interrupted => Error::Cancelled,
        _ => Error::io("fetch", path)(problem),
    })
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let right = self.tensors.iter().filter(|tensor| tensor.is_right.load(Relaxed)).count();
        write!(f, "Arriving({right} of {} tensors are there)", self.tensors.len())
    }
}
