//! What is asked of a GPU's driver. Two implement it: CUDA's (`cuda.rs`), and one that runs the kernels on the CPU and writes
//! everything down (`fake.rs`).
//!
//! A device has two queues, [`Stream::Compute`] and [`Stream::Copy`]. What is put into one runs in order, beside what is in the other and
//! beside the host; events order the two. Everything above goes through [`super::Device`], which makes no call after one has failed.

use std::fmt::Debug;

use yuan_cuda::Launch;

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// As the system counts them, from 0.
    pub number: usize,
    /// The product's name.
    pub name: String,
    /// The compute capability: major, minor.
    pub compute: (u32, u32),
    /// Bytes of memory.
    pub total: u64,
    /// Bytes of memory that nobody uses.
    pub free: u64,
    /// Bytes that the memory delivers in a second, by its clock and width; 0 where the driver does not say.
    pub bandwidth: u64,
}

/// A queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Kernels, and the copies that they wait for.
    Compute,
    /// Experts on their way to the device.
    Copy,
}

/// A place in a queue, to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub u64);

/// A value of a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// Device memory; 0 for none.
    At(u64),
    /// A number.
    I32(i32),
    /// A number.
    F32(f32),
}

/// Work for [`Stream::Compute`].
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A kernel.
    Launch(Launch, Vec<Arg>),
    /// A copy within the device.
    Copy {
        /// Where to.
        to: u64,
        /// Where from.
        from: u64,
        /// How many.
        bytes: usize,
    },
}

/// Work that was prepared to be queued as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared(pub u64);

/// Why a call did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The call, as the driver names it.
    pub call: &'static str,
    /// The driver's reason.
    pub reason: String,
    /// Whether there was no memory: the device works on.
    pub no_memory: bool,
}

/// Rows of equal width that lie apart in device memory and side by side in the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many.
    pub count: usize,
    /// Bytes of one.
    pub width: usize,
    /// Bytes from the beginning of one to that of the next, on the device.
    pub pitch: usize,
}

impl Rows {
    /// Bytes of the device's memory from the first to the last.
    pub fn span(&self) -> usize {
        self.count.saturating_sub(1) * self.pitch + if self.count > 0 { self.width } else { 0 }
    }
}

/// The devices of a machine. An implementation is trusted with nothing: what memory there is follows from its [`Context`]s.
pub trait Driver: Debug + Send + Sync {
    /// All of them.
    ///
    /// # Errors
    /// The driver's.
    fn devices(&self) -> Result<Vec<Info>, Fault>;

    /// Opens the device of this number with its kernels.
    ///
    /// # Errors
    /// The driver's; for a device that is too old for the kernels.
    fn open(&self, number: usize) -> Result<Box<dyn Context>, Fault>;
}

/// An open device. Calls of several threads are allowed.
///
/// # Safety
/// Safe code makes slices of what an implementation hands out, and reads them when it says that the device is done with them. So:
///
/// - [`Context::alloc_pinned`] gives so many initialized bytes of this process, aligned to 16 at least, that nobody else has, until [`Context::free_pinned`];
///   [`Context::alloc`] gives so many bytes of the device that nobody else has, until [`Context::free`].
/// - Nothing but the copies that are queued through this trait reads or writes them, each within its rows, in the order of its stream.
/// - When [`Context::finish_event`] or [`Context::finish`] has returned without an error, everything is done that was in the stream when the event was
///   recorded, or when the call was made. A recorded event counts from its last [`Context::record`].
///
/// # Errors
/// All calls: the driver's.
#[allow(clippy::missing_errors_doc, reason = "said above")]
pub unsafe trait Context: Debug + Send + Sync {
    /// Bytes that nobody uses.
    fn free_memory(&self) -> Result<u64, Fault>;

    /// Device memory, aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<u64, Fault>;

    /// Gives device memory back.
    ///
    /// # Safety
    /// `at` is from [`Context::alloc`], and nothing that is queued uses it.
    unsafe fn free(&self, at: u64) -> Result<(), Fault>;

    /// Host memory that the device reads and writes by itself, zeroed.
    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8, Fault>;

    /// Gives pinned memory back.
    ///
    /// # Safety
    /// `at` is from [`Context::alloc_pinned`], and nothing that is queued uses it.
    unsafe fn free_pinned(&self, at: *mut u8) -> Result<(), Fault>;

    /// A new event. It lives as long as the device is open.
    fn event(&self) -> Result<Event, Fault>;

    /// The event is that of everything that is in the stream now.
    fn record(&self, event: Event, stream: Stream) -> Result<(), Fault>;

    /// What is put into the stream from now on waits for the event.
    fn wait(&self, stream: Stream, event: Event) -> Result<(), Fault>;

    /// The host waits for the event.
    fn finish_event(&self, event: Event) -> Result<(), Fault>;

    /// The host waits for everything in the stream.
    fn finish(&self, stream: Stream) -> Result<(), Fault>;

    /// Queues a copy of rows to the device.
    ///
    /// # Safety
    /// Both places have room for the rows, and the host's is pinned and not touched before the copy is done.
    unsafe fn upload(&self, to: u64, from: *const u8, rows: Rows, stream: Stream) -> Result<(), Fault>;

    /// Queues a copy of rows from the device.
    ///
    /// # Safety
    /// As [`Context::upload`].
    unsafe fn download(&self, to: *mut u8, from: u64, rows: Rows, stream: Stream) -> Result<(), Fault>;

    /// Queues work on [`Stream::Compute`].
    ///
    /// # Safety
    /// A kernel's arguments are its own (`kernels/cuda/README.md`), and its memory has the sizes that they say; both places of a copy have
    /// room for the bytes.
    unsafe fn queue(&self, work: &Work) -> Result<(), Fault>;

    /// Prepares work, each piece of which will begin when the one before has ended. Nothing is queued yet.
    fn prepare(&self, work: &[Work]) -> Result<Prepared, Fault>;

    /// Queues what was prepared on [`Stream::Compute`], with the addresses of then and the contents of now.
    ///
    /// # Safety
    /// As [`Context::queue`] for every piece; `work` is from [`Context::prepare`] and was not discarded.
    unsafe fn queue_prepared(&self, work: Prepared) -> Result<(), Fault>;

    /// Gives up what was prepared; if it is queued, it is done all the same.
    ///
    /// # Safety
    /// `work` is from [`Context::prepare`] and was not discarded.
    unsafe fn discard(&self, work: Prepared) -> Result<(), Fault>;
}
