//! The device, and what was made on it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    ffi::c_void,
    sync::{Mutex, PoisonError},
};

use cudarc::driver::sys::CUresult::{self, *};
use yuan_cuda::{Kernel, Param};

/// What a call gives, or why it is refused.
pub type Answer<T = ()> = Result<T, CUresult>;

/// Bytes of device memory.
pub const MEMORY: usize = 1 << 30;

static MACHINE: Mutex<Machine> = Mutex::new(Machine {
    initialized: false,
    context: 0,
    retained: 0,
    device: Memory(BTreeMap::new()),
    pinned: Memory(BTreeMap::new()),
    objects: BTreeMap::new(),
    last: 0,
});

thread_local! {
    /// The context that the thread has made its current one.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// The one device of the machine.
pub struct Machine {
    initialized: bool,
    /// Its primary context, 0 where nobody retains it.
    context: u64,
    retained: usize,
    /// The device's memory, and pinned memory of the host.
    pub device: Memory,
    pub pinned: Memory,
    objects: BTreeMap<u64, Object>,
    last: u64,
}

/// What a handle stands for.
pub enum Object {
    Stream,
    Event,
    Module,
    Function(&'static Kernel),
    Graph(Graph),
    Exec(Vec<Work>),
}

/// A graph on its way: its work, and the handles of its nodes.
#[derive(Default)]
pub struct Graph {
    pub work: Vec<Work>,
    pub nodes: Vec<u64>,
}

/// What is launched, or is a node of a graph.
#[derive(Clone)]
pub enum Work {
    Launch { kernel: &'static Kernel, grid: [u32; 3], block: [u32; 3], shared: u32, args: Vec<u64> },
    Copy { to: u64, from: u64, bytes: usize },
}

/// Pieces of memory, by their addresses.
pub struct Memory(BTreeMap<u64, (usize, Box<[Line]>)>);

/// As the driver aligns memory.
#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Line([u8; 256]);

/// From now on the driver is there.
pub fn initialize() -> CUresult {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner).initialized = true;
    CUDA_SUCCESS
}

/// Does what is asked for without a context.
pub fn call(body: impl FnOnce(&mut Machine) -> Answer) -> CUresult {
    let mut machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match machine.initialized {
        true => body(&mut machine).err().unwrap_or(CUDA_SUCCESS),
        false => CUDA_ERROR_NOT_INITIALIZED,
    }
}

/// Does what is asked for of a device, of which there is one.
pub fn on_device(number: i32, body: impl FnOnce(&mut Machine) -> Answer) -> CUresult {
    call(|machine| if number == 0 { body(machine) } else { Err(CUDA_ERROR_INVALID_DEVICE) })
}

/// Does what is asked for in the context, which must be the thread's current one.
pub fn in_context(body: impl FnOnce(&mut Machine) -> Answer) -> CUresult {
    call(|machine| match machine.is_context(CURRENT.get()) {
        true => body(machine),
        false => Err(CUDA_ERROR_INVALID_CONTEXT),
    })
}

impl Machine {
    pub fn retain(&mut self) -> u64 {
        if self.retained == 0 {
            self.context = self.number();
        }
        self.retained += 1;
        self.context
    }

    /// With the last one everything that was made in the context is gone.
    pub fn release(&mut self) -> Answer {
        self.retained = self.retained.checked_sub(1).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
        if self.retained == 0 {
            self.context = 0;
            self.objects.clear();
            self.pinned.0.clear();
            while let Some((&at, _)) = self.device.0.first_key_value() {
                self.free(at)?;
            }
        }
        Ok(())
    }

    pub fn is_context(&self, context: u64) -> bool {
        context != 0 && context == self.context
    }

    pub fn make_current(&self, context: u64) -> Answer {
        if context != 0 && !self.is_context(context) {
            return Err(CUDA_ERROR_INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    }

    pub fn add(&mut self, object: Object) -> u64 {
        let handle = self.number();
        self.objects.insert(handle, object);
        handle
    }

    /// The object of a handle, if it is of the kind that `is` picks.
    pub fn object<T>(
        &mut self,
        handle: u64,
        is: impl FnOnce(&mut Object) -> Option<&mut T>,
    ) -> Answer<&mut T> {
        self.objects.get_mut(&handle).and_then(is).ok_or(CUDA_ERROR_INVALID_HANDLE)
    }

    pub fn has(&self, handle: u64, is: impl FnOnce(&Object) -> bool) -> Answer {
        self.objects.get(&handle).filter(|o| is(o)).map(|_| ()).ok_or(CUDA_ERROR_INVALID_HANDLE)
    }

    pub fn remove(&mut self, handle: u64, is: impl FnOnce(&Object) -> bool) -> Answer {
        self.has(handle, is)?;
        self.objects.remove(&handle);
        Ok(())
    }

    /// A handle that nothing else has or had, and that looks like none of the machine's addresses.
    pub fn number(&mut self) -> u64 {
        self.last += 1;
        self.last << 4
    }

    pub fn allocate(&mut self, bytes: usize) -> Answer<u64> {
        match bytes {
            0 => Err(CUDA_ERROR_INVALID_VALUE),
            _ if bytes > MEMORY - self.device.used() => Err(CUDA_ERROR_OUT_OF_MEMORY),
            _ => {
                // What nobody should see: NaN.
                let at = self.device.add(bytes, 0xff);
                yuan_cuda_shim::register(at as *const c_void, bytes);
                Ok(at)
            }
        }
    }

    pub fn free(&mut self, at: u64) -> Answer {
        self.device.0.remove(&at).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        yuan_cuda_shim::unregister(at as *const c_void);
        Ok(())
    }

    /// Copies within the machine.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Answer {
        let known = |at| self.device.has(at, bytes) || self.pinned.has(at, bytes);
        if !known(to) || !known(from) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: both places are memory of this machine, which the lock keeps for this call.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    pub fn run(&self, work: &Work) -> Answer {
        match work {
            Work::Copy { to, from, bytes } => self.copy(*to, *from, *bytes),
            Work::Launch { kernel, grid, block, shared, args } => {
                let mut args = args.clone();
                let mut places: Vec<*mut c_void> =
                    args.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
                // SAFETY: there is a word for every parameter (`arguments`); the lock keeps the memory for this call.
                let done =
                    unsafe { yuan_cuda_shim::launch(kernel.name, *grid, *block, *shared, &mut places) };
                done.map_err(|problem| {
                    eprintln!("{}: {problem}", kernel.name);
                    CUDA_ERROR_LAUNCH_FAILED
                })
            }
        }
    }
}

impl Memory {
    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        self.0.values().map(|piece| piece.0).sum()
    }

    pub fn add(&mut self, bytes: usize, fill: u8) -> u64 {
        let mut lines = vec![Line([fill; 256]); bytes.div_ceil(256)].into_boxed_slice();
        let at = lines.as_mut_ptr() as u64;
        self.0.insert(at, (bytes, lines));
        at
    }

    pub fn remove(&mut self, at: u64) -> Answer {
        self.0.remove(&at).map(|_| ()).ok_or(CUDA_ERROR_INVALID_VALUE)
    }

    /// Whether these bytes are in one piece.
    pub fn has(&self, at: u64, bytes: usize) -> bool {
        let piece = self.0.range(..=at).next_back();
        piece.is_some_and(|(&first, &(size, _))| at - first + bytes as u64 <= size as u64)
    }
}

/// The values of a kernel's parameters, each at the beginning of a word.
///
/// # Safety
/// `params` points to as many addresses as the kernel has parameters, each of a value of its kind.
pub unsafe fn arguments(kernel: &Kernel, params: *mut *mut c_void) -> Vec<u64> {
    let value = |(i, kind): (usize, &Param)| {
        // SAFETY: the caller's promise.
        let at = unsafe { *params.add(i) };
        match kind {
            // SAFETY: as above: an address.
            Param::Pointer => unsafe { at.cast::<u64>().read_unaligned() },
            // SAFETY: as above: four bytes.
            Param::I32 | Param::F32 => u64::from(unsafe { at.cast::<u32>().read_unaligned() }),
        }
    };
    kernel.params.iter().enumerate().map(value).collect()
}
