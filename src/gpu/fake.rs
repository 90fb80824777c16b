//! A driver without a GPU, for tests: device memory is the host's, kernels run on the CPU (`yuan-cuda-shim`), every call is written
//! down, and calls can be made to fail.
//!
//! What is queued is not done at once, but as late as waiting allows, or as early as it allows ([`Schedule`]): a copy or a kernel that
//! relies on anything but an event or a wait sees the wrong bytes under one of the two.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::c_void,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use yuan_cuda::Launch;

use super::driver::{Arg, Context, Driver, Event, Fault, Info, Prepared, Rows, Stream, Work};

/// When queued work is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// When the host waits for it, and nothing else with it.
    #[default]
    Late,
    /// As soon as it is queued.
    Early,
}

/// A call, as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    Open(usize),
    Alloc {
        at: u64,
        bytes: usize,
    },
    Free {
        at: u64,
    },
    AllocPinned {
        at: u64,
        bytes: usize,
    },
    FreePinned {
        at: u64,
    },
    Record(Event, Stream),
    Wait(Stream, Event),
    FinishEvent(Event),
    Finish(Stream),
    Upload {
        to: u64,
        bytes: usize,
        stream: Stream,
    },
    Download {
        from: u64,
        bytes: usize,
        stream: Stream,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Launch {
        kernel: &'static str,
    },
    Prepare(Prepared),
    QueuePrepared(Prepared),
    Discard(Prepared),
    /// The call failed, as was asked for.
    Failed(&'static str),
}

/// A machine with one emulated device.
#[derive(Clone, Debug)]
pub struct Fake {
    info: Info,
    schedule: Schedule,
    state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

/// What a test does in the middle of a call of the driver.
struct Hook(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    /// Memory is refused once in so many times, as the numbers come that follow from the first.
    refuses: Option<(u64, u64)>,
    /// Counts down; at 0 a call fails.
    fails_in: Option<(usize, bool)>,
    device: BTreeMap<u64, (usize, Box<[Line]>)>,
    pinned: BTreeMap<u64, Box<[Line]>>,
    /// Bytes of device memory that are taken.
    used: u64,
    streams: [Queue; 2],
    prepared: Vec<Option<Vec<Work>>>,
    /// By event: the stream, and how much of it was queued when it was recorded.
    events: Vec<(usize, u64)>,
}

/// So that memory is aligned as a device's.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(256))]
struct Line([u8; 256]);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Op>,
    /// Operations that are done, and that were ever queued.
    done: u64,
    queued: u64,
}

#[derive(Debug)]
enum Op {
    Copy {
        to: u64,
        to_pitch: usize,
        from: u64,
        from_pitch: usize,
        rows: Rows,
    },
    Launch(Launch, Vec<Arg>),
    /// Until so much of the other stream is done.
    Wait(usize, u64),
}

impl Fake {
    /// A device with so many bytes of memory.
    pub fn new(memory: u64, schedule: Schedule) -> Self {
        let name = "emulated".into();
        let info = Info { number: 0, name, compute: (8, 0), total: memory, free: memory, bandwidth: 0 };
        Self { info, schedule, state: Arc::default(), hook: Arc::default() }
    }

    /// The calls so far, which are forgotten.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().calls)
    }

    /// The call after `calls` others fails: with no memory, or for good.
    pub fn fail_in(&self, calls: usize, no_memory: bool) {
        self.lock().fails_in = Some((calls, no_memory));
    }

    /// From now on memory is refused once in `odds` times, by chance.
    pub fn refuse_memory(&self, seed: u64, odds: u64) {
        self.lock().refuses = Some((seed, odds.max(1)));
    }

    /// Within the next call `hook` is run once.
    pub fn within_next_call(&self, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Hook(Box::new(hook)));
    }

    /// No call fails any more, and memory is not refused.
    pub fn heal(&self) {
        let mut state = self.lock();
        (state.fails_in, state.refuses) = (None, None);
    }

    /// Bytes of device memory, pieces of pinned memory, and pieces of prepared work, that are not given back.
    pub fn held(&self) -> (u64, usize, usize) {
        let state = self.lock();
        (state.used, state.pinned.len(), state.prepared.iter().flatten().count())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call.
    fn call(&self, name: &'static str) -> Result<MutexGuard<'_, State>, Fault> {
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Hook(hook)) = hook {
            hook();
        }
        let mut state = self.lock();
        match &mut state.fails_in {
            Some((0, no_memory)) => {
                let no_memory = *no_memory;
                // A device that is lost fails for good; memory may be had the next time.
                if no_memory {
                    state.fails_in = None;
                }
                state.calls.push(Call::Failed(name));
                Err(Fault { call: name, reason: "as the test asked for".into(), no_memory })
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(state)
            }
            None => Ok(state),
        }
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, stream: Stream, op: Op) -> Result<(), Fault> {
        let queue = &mut state.streams[stream as usize];
        queue.waiting.push_back(op);
        queue.queued += 1;
        match self.schedule {
            Schedule::Late => Ok(()),
            Schedule::Early => state.run(stream as usize, u64::MAX),
        }
    }
}

impl Driver for Fake {
    fn devices(&self) -> Result<Vec<Info>, Fault> {
        let used = self.lock().used;
        Ok(vec![Info { free: self.info.total.saturating_sub(used), ..self.info.clone() }])
    }

    fn open(&self, number: usize) -> Result<Box<dyn Context>, Fault> {
        self.call("open")?.calls.push(Call::Open(number));
        Ok(Box::new(self.clone()))
    }
}

impl Drop for State {
    /// What a device that has failed was not asked to give back.
    fn drop(&mut self) {
        self.device.values().for_each(|(_, memory)| yuan_cuda_shim::unregister(memory.as_ptr().cast()));
    }
}

impl State {
    /// Whether memory is refused this time.
    fn refuse(&mut self, call: &'static str) -> Result<(), Fault> {
        let Some((number, odds)) = &mut self.refuses else { return Ok(()) };
        *number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if (*number >> 33) % *odds > 0 {
            return Ok(());
        }
        self.calls.push(Call::Failed(call));
        Err(Fault { call, reason: "refused by chance".into(), no_memory: true })
    }

    /// Does what is in a stream up to the operation of this number.
    fn run(&mut self, stream: usize, end: u64) -> Result<(), Fault> {
        while self.streams[stream].done < end {
            let Some(op) = self.streams[stream].waiting.pop_front() else { break };
            self.streams[stream].done += 1;
            self.execute(op)?;
        }
        Ok(())
    }

    /// Whether anything that is queued has a place among the bytes from `at` on. What other threads have queued may: each of them gives
    /// back its own.
    fn uses(&self, at: u64, bytes: usize) -> bool {
        let inside = |place: u64| (at..at + bytes as u64).contains(&place);
        self.streams.iter().flat_map(|stream| &stream.waiting).any(|op| match op {
            Op::Copy { to, from, .. } => inside(*to) || inside(*from),
            Op::Launch(_, args) => args.iter().any(|arg| matches!(arg, Arg::At(place) if inside(*place))),
            Op::Wait(..) => false,
        })
    }

    fn execute(&mut self, op: Op) -> Result<(), Fault> {
        match op {
            Op::Wait(other, end) => self.run(other, end),
            Op::Copy { to, to_pitch, from, from_pitch, rows } => {
                for row in 0..rows.count {
                    let (to, from) = (to as usize + row * to_pitch, from as usize + row * from_pitch);
                    // SAFETY: whoever has queued the copy has checked the sizes; both places are memory of this process that
                    // is not given back while copies of it are queued (`free` and `free_pinned` assert it).
                    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, rows.width) };
                }
                Ok(())
            }
            Op::Launch(launch, args) => {
                let mut words: Vec<u64> = args.iter().map(word).collect();
                let mut places: Vec<*mut c_void> =
                    words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
                let Launch { kernel, grid, block, shared } = launch;
                // SAFETY: `places` has a word for every argument; nobody but this queue uses what is registered, since the lock is held.
                let done = unsafe { yuan_cuda_shim::launch(kernel, grid, block, shared, &mut places) };
                done.map_err(|reason| Fault { call: kernel, reason, no_memory: false })
            }
        }
    }
}

/// The bytes of an argument, at the beginning of a word.
fn word(arg: &Arg) -> u64 {
    let mut word = [0; 8];
    match arg {
        Arg::At(at) => word = at.to_ne_bytes(),
        Arg::I32(n) => word[..4].copy_from_slice(&n.to_ne_bytes()),
        Arg::F32(x) => word[..4].copy_from_slice(&x.to_ne_bytes()),
    }
    u64::from_ne_bytes(word)
}

/// Zeros for pinned memory, and for device memory what no test should see: NaN.
fn lines(bytes: usize, fill: u8) -> Box<[Line]> {
    vec![Line([fill; 256]); bytes.div_ceil(256)].into_boxed_slice()
}

// SAFETY: each piece of memory is a box of its own until it is given back; work is done by `State::run` only, in the order of the streams, which
// `finish` and `finish_event` call before they return.
unsafe impl Context for Fake {
    fn free_memory(&self) -> Result<u64, Fault> {
        let state = self.call("free_memory")?;
        Ok(self.info.total.saturating_sub(state.used))
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Fault> {
        let mut state = self.call("alloc")?;
        state.refuse("alloc")?;
        if state.used + bytes as u64 > self.info.total {
            let reason = format!("{bytes} bytes beside {} of {}", state.used, self.info.total);
            return Err(Fault { call: "alloc", reason, no_memory: true });
        }
        let mut memory = lines(bytes, 0xff);
        let at = memory.as_mut_ptr() as u64;
        yuan_cuda_shim::register(memory.as_ptr().cast(), bytes);
        state.used += bytes as u64;
        state.device.insert(at, (bytes, memory));
        state.calls.push(Call::Alloc { at, bytes });
        Ok(at)
    }

    unsafe fn free(&self, at: u64) -> Result<(), Fault> {
        let mut state = self.call("free")?;
        state.calls.push(Call::Free { at });
        let bytes = state.device.get(&at).expect("device memory is given back once").0;
        assert!(!state.uses(at, bytes), "device memory is given back while what is queued uses it");
        let (_, memory) = state.device.remove(&at).expect("it is there");
        state.used -= bytes as u64;
        yuan_cuda_shim::unregister(memory.as_ptr().cast());
        Ok(())
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8, Fault> {
        let mut state = self.call("alloc_pinned")?;
        state.refuse("alloc_pinned")?;
        let mut memory = lines(bytes, 0);
        let at = memory.as_mut_ptr();
        state.pinned.insert(at as u64, memory);
        state.calls.push(Call::AllocPinned { at: at as u64, bytes });
        Ok(at.cast())
    }

    unsafe fn free_pinned(&self, at: *mut u8) -> Result<(), Fault> {
        let mut state = self.call("free_pinned")?;
        state.calls.push(Call::FreePinned { at: at as u64 });
        let bytes = size_of_val(&**state.pinned.get(&(at as u64)).expect("pinned memory is given back once"));
        assert!(!state.uses(at as u64, bytes), "pinned memory is given back while what is queued uses it");
        state.pinned.remove(&(at as u64));
        Ok(())
    }

    fn event(&self) -> Result<Event, Fault> {
        let mut state = self.call("event")?;
        state.events.push((0, 0));
        Ok(Event(state.events.len() as u64 - 1))
    }

    fn record(&self, event: Event, stream: Stream) -> Result<(), Fault> {
        let mut state = self.call("record")?;
        state.calls.push(Call::Record(event, stream));
        state.events[event.0 as usize] = (stream as usize, state.streams[stream as usize].queued);
        Ok(())
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), Fault> {
        let mut state = self.call("wait")?;
        state.calls.push(Call::Wait(stream, event));
        let (other, end) = state.events[event.0 as usize];
        self.queue(state, stream, Op::Wait(other, end))
    }

    fn finish_event(&self, event: Event) -> Result<(), Fault> {
        let mut state = self.call("finish_event")?;
        state.calls.push(Call::FinishEvent(event));
        let (stream, end) = state.events[event.0 as usize];
        state.run(stream, end)
    }

    fn finish(&self, stream: Stream) -> Result<(), Fault> {
        let mut state = self.call("finish")?;
        state.calls.push(Call::Finish(stream));
        state.run(stream as usize, u64::MAX)
    }

    unsafe fn upload(&self, to: u64, from: *const u8, rows: Rows, stream: Stream) -> Result<(), Fault> {
        let mut state = self.call("upload")?;
        state.calls.push(Call::Upload { to, bytes: rows.count * rows.width, stream });
        let op = Op::Copy { to, to_pitch: rows.pitch, from: from as u64, from_pitch: rows.width, rows };
        self.queue(state, stream, op)
    }

    unsafe fn download(&self, to: *mut u8, from: u64, rows: Rows, stream: Stream) -> Result<(), Fault> {
        let mut state = self.call("download")?;
        state.calls.push(Call::Download { from, bytes: rows.count * rows.width, stream });
        let op = Op::Copy { to: to as u64, to_pitch: rows.width, from, from_pitch: rows.pitch, rows };
        self.queue(state, stream, op)
    }

    unsafe fn queue(&self, work: &Work) -> Result<(), Fault> {
        let mut state = self.call("queue")?;
        state.calls.push(match *work {
            Work::Launch(Launch { kernel, .. }, _) => Call::Launch { kernel },
            Work::Copy { to, from, bytes } => Call::Copy { to, from, bytes },
        });
        self.queue(state, Stream::Compute, op(work))
    }

    fn prepare(&self, work: &[Work]) -> Result<Prepared, Fault> {
        let mut state = self.call("prepare")?;
        let prepared = Prepared(state.prepared.len() as u64);
        state.prepared.push(Some(work.to_vec()));
        state.calls.push(Call::Prepare(prepared));
        Ok(prepared)
    }

    unsafe fn queue_prepared(&self, work: Prepared) -> Result<(), Fault> {
        let mut state = self.call("queue_prepared")?;
        state.calls.push(Call::QueuePrepared(work));
        let work = state.prepared[work.0 as usize].clone().expect("what was discarded is not queued");
        drop(state);
        work.iter().try_for_each(|work| self.queue(self.lock(), Stream::Compute, op(work)))
    }

    unsafe fn discard(&self, work: Prepared) -> Result<(), Fault> {
        let mut state = self.call("discard")?;
        state.calls.push(Call::Discard(work));
        state.prepared[work.0 as usize].take().expect("what was prepared is discarded once");
        Ok(())
    }
}

fn op(work: &Work) -> Op {
    match work {
        Work::Launch(launch, args) => Op::Launch(*launch, args.clone()),
        &Work::Copy { to, from, bytes } => {
            let rows = Rows { count: 1, width: bytes, pitch: bytes };
            Op::Copy { to, to_pitch: bytes, from, from_pitch: bytes, rows }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// One thread's session is dropped while another's call is under way: what that call uses is another's.
    #[test]
    fn memory_is_given_back_beside_what_others_have_queued() {
        let fake = Fake::new(1 << 20, Schedule::Late);
        let device = fake.open(0).unwrap();
        let host = device.alloc_pinned(256).unwrap();
        let [mine, others] = [(); 2].map(|()| device.alloc(256).unwrap());
        let rows = Rows { count: 1, width: 256, pitch: 256 };
        // SAFETY: both have 256 bytes, and the host's are not touched.
        unsafe { device.upload(others, host, rows, Stream::Copy) }.unwrap();
        // SAFETY: the address is from `alloc`; the driver panics where what is queued uses it.
        let free =
            |at| catch_unwind(AssertUnwindSafe(|| unsafe { device.free(at) })).is_ok_and(|r| r.is_ok());
        assert_eq!([free(mine), free(others)], [true, false]);
        device.finish(Stream::Copy).unwrap();
        assert!(free(others));
        assert_eq!(fake.held(), (0, 1, 0));
    }
}
