//! CUDA's driver, opened when the program asks for it: one build runs with and without a GPU.

mod graph;

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    sync::{Mutex, PoisonError},
};

use cudarc::driver::{DriverError, result, sys};

use super::driver::{Arg, Context, Driver, Event, Fault, Info, Prepared, Rows, Stream, Work};

/// The devices of this machine, by CUDA's driver.
#[derive(Debug)]
pub struct Cuda(());

/// An open device: its primary context, the module of its kernels, and the two streams.
#[derive(Debug)]
struct CudaDevice {
    device: sys::CUdevice,
    context: sys::CUcontext,
    streams: [sys::CUstream; 2],
    functions: HashMap<&'static str, sys::CUfunction>,
    events: Mutex<Vec<sys::CUevent>>,
}

// SAFETY: the driver's handles may be used by any thread that has made the context its current one, which every call does.
unsafe impl Send for CudaDevice {}
// SAFETY: as above; the driver's functions are thread-safe.
unsafe impl Sync for CudaDevice {}

/// The version of the driver's functions that are used, 1000 * major + 10 * minor.
const OLDEST: i32 = 12000;

impl Cuda {
    /// The driver, if the machine has one.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn new() -> Result<Self, String> {
        // SAFETY: looks for a library and loads it, as the program's loader would. Every other function of the driver panics without it.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no CUDA driver on this machine (libcuda)".into());
        }
        result::init().map_err(|e| format!("the CUDA driver does not start: {}", reason(&e)))?;
        let mut version = 0;
        // SAFETY: a place for a number.
        fault("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version).result() })
            .map_err(|fault| format!("the CUDA driver does not say what it is: {}", fault.reason))?;
        // Functions that an older one lacks cannot be asked for.
        if version < OLDEST {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            return Err(format!(
                "the CUDA driver is for CUDA {major}.{minor}, and 12.0 is needed: update it"
            ));
        }
        Ok(Self(()))
    }
}

impl Driver for Cuda {
    fn devices(&self) -> Result<Vec<Info>, Fault> {
        let count = fault("cuDeviceGetCount", result::device::get_count())?;
        (0..count).map(describe).collect()
    }

    fn open(&self, number: usize) -> Result<Box<dyn Context>, Fault> {
        let info = i32::try_from(number).map_or(Err(no_such(number)), describe)?;
        let device = fault("cuDeviceGet", result::device::get(number as i32))?;
        let image = yuan_cuda::image_for(info.compute.0, info.compute.1).ok_or_else(|| Fault {
            call: "cuModuleLoadData",
            reason: format!(
                "there are no kernels for compute capability {}.{}",
                info.compute.0, info.compute.1
            ),
            no_memory: false,
        })?;
        // SAFETY: the device is the driver's; the context is released when the value is dropped.
        let context = fault("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let null = std::ptr::null_mut();
        let mut open = CudaDevice {
            device,
            context,
            streams: [null; 2],
            functions: HashMap::new(),
            events: Mutex::default(),
        };
        open.enter()?;
        for stream in &mut open.streams {
            let kind = result::stream::StreamKind::NonBlocking;
            *stream = fault("cuStreamCreate", result::stream::create(kind))?;
        }
        // SAFETY: the image is a cubin, or PTX with a zero at its end, made by the build.
        let module = unsafe { result::module::load_data(image.bytes.as_ptr().cast()) };
        let module = fault("cuModuleLoadData", module)?;
        for kernel in yuan_cuda::KERNELS {
            let name = CString::new(kernel.name).unwrap_or_default();
            // SAFETY: the module stays loaded as long as the context is there.
            let function =
                fault("cuModuleGetFunction", unsafe { result::module::get_function(module, name) })?;
            open.functions.insert(kernel.name, function);
        }
        Ok(Box::new(open))
    }
}

/// What a device is; its context is opened for a moment, to ask for free memory.
fn describe(number: i32) -> Result<Info, Fault> {
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH as WIDTH, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE as CLOCK,
    };
    let device = fault("cuDeviceGet", result::device::get(number))?;
    let name = fault("cuDeviceGetName", result::device::get_name(device))?;
    // SAFETY: the device is the driver's.
    let attribute =
        |which| fault("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) });
    let compute = (attribute(MAJOR)?.max(0) as u32, attribute(MINOR)?.max(0) as u32);
    // kHz, of which both edges count, and bits.
    let number_of = |which| attribute(which).map_or(0, |n| n.max(0) as u64);
    let bandwidth = 2 * 1000 * number_of(CLOCK) * number_of(WIDTH) / 8;
    // SAFETY: as above; what is retained is released below.
    let context = fault("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
    // SAFETY: the context was just retained.
    let current = unsafe { result::ctx::set_current(context) };
    let memory = current.and_then(|()| result::mem_get_info());
    // SAFETY: retained above.
    let _ = unsafe { result::primary_ctx::release(device) };
    let (free, total) = fault("cuMemGetInfo", memory)?;
    Ok(Info { number: number as usize, name, compute, total: total as u64, free: free as u64, bandwidth })
}

impl CudaDevice {
    /// Makes the context that of this thread.
    fn enter(&self) -> Result<(), Fault> {
        // SAFETY: the context is retained until `drop`.
        fault("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    fn stream(&self, stream: Stream) -> sys::CUstream {
        self.streams[stream as usize]
    }

    fn handle(&self, event: Event) -> sys::CUevent {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events[event.0 as usize]
    }

    fn function(&self, kernel: &'static str) -> Result<sys::CUfunction, Fault> {
        let missing = || Fault { call: kernel, reason: "there is no such kernel".into(), no_memory: false };
        self.functions.get(kernel).copied().ok_or_else(missing)
    }

    /// A copy of rows, each side by its address, its pitch, and whether it is the device's.
    fn copy_rows(
        &self,
        to: (u64, usize, bool),
        from: (u64, usize, bool),
        rows: Rows,
        stream: Stream,
    ) -> Result<(), Fault> {
        use sys::CUmemorytype_enum::{CU_MEMORYTYPE_DEVICE as DEVICE, CU_MEMORYTYPE_HOST as HOST};
        self.enter()?;
        let kind = |device| if device { DEVICE } else { HOST };
        let copy = sys::CUDA_MEMCPY2D_st {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: kind(from.2),
            srcHost: if from.2 { std::ptr::null() } else { from.0 as *const c_void },
            srcDevice: if from.2 { from.0 } else { 0 },
            srcArray: std::ptr::null_mut(),
            srcPitch: from.1,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: kind(to.2),
            dstHost: if to.2 { std::ptr::null_mut() } else { to.0 as *mut c_void },
            dstDevice: if to.2 { to.0 } else { 0 },
            dstArray: std::ptr::null_mut(),
            dstPitch: to.1,
            WidthInBytes: rows.width,
            Height: rows.count,
        };
        // SAFETY: the contract of `upload` and `download`.
        fault("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream(stream)).result() })
    }
}

// SAFETY: memory, order and waiting are those of CUDA's driver: pinned memory is page-locked memory of this process, zeroed before it is handed out, and
// aligned to a page; streams run in order; events and streams are waited for by the driver's own functions.
unsafe impl Context for CudaDevice {
    fn free_memory(&self) -> Result<u64, Fault> {
        self.enter()?;
        Ok(fault("cuMemGetInfo", result::mem_get_info())?.0 as u64)
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Fault> {
        self.enter()?;
        // SAFETY: the memory is written before it is read, by what is queued.
        fault("cuMemAlloc", unsafe { result::malloc_sync(bytes) })
    }

    unsafe fn free(&self, at: u64) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the caller's contract.
        fault("cuMemFree", unsafe { result::free_sync(at) })
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8, Fault> {
        self.enter()?;
        // SAFETY: the bytes are zeroed before anybody sees them.
        let at = fault("cuMemHostAlloc", unsafe { result::malloc_host(bytes, 0) })?.cast::<u8>();
        // SAFETY: the driver has given so many bytes.
        unsafe { at.write_bytes(0, bytes) };
        Ok(at)
    }

    unsafe fn free_pinned(&self, at: *mut u8) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the caller's contract.
        fault("cuMemFreeHost", unsafe { result::free_host(at.cast()) })
    }

    fn event(&self) -> Result<Event, Fault> {
        self.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = fault("cuEventCreate", result::event::create(flags))?;
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event);
        Ok(Event(events.len() as u64 - 1))
    }

    fn record(&self, event: Event, stream: Stream) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: event and stream live until `drop`.
        fault("cuEventRecord", unsafe { result::event::record(self.handle(event), self.stream(stream)) })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), Fault> {
        self.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live until `drop`.
        let waits = unsafe { result::stream::wait_event(self.stream(stream), self.handle(event), flags) };
        fault("cuStreamWaitEvent", waits)
    }

    fn finish_event(&self, event: Event) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the event lives until `drop`.
        fault("cuEventSynchronize", unsafe { result::event::synchronize(self.handle(event)) })
    }

    fn finish(&self, stream: Stream) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the stream lives until `drop`.
        fault("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream(stream)) })
    }

    unsafe fn upload(&self, to: u64, from: *const u8, rows: Rows, stream: Stream) -> Result<(), Fault> {
        if rows.count == 1 {
            self.enter()?;
            // SAFETY: the caller's contract.
            let queued =
                unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), rows.width, self.stream(stream)) };
            return fault("cuMemcpyHtoDAsync", queued.result());
        }
        self.copy_rows((to, rows.pitch, true), (from as u64, rows.width, false), rows, stream)
    }

    unsafe fn download(&self, to: *mut u8, from: u64, rows: Rows, stream: Stream) -> Result<(), Fault> {
        if rows.count == 1 {
            self.enter()?;
            // SAFETY: the caller's contract.
            let queued =
                unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, rows.width, self.stream(stream)) };
            return fault("cuMemcpyDtoHAsync", queued.result());
        }
        self.copy_rows((to as u64, rows.width, false), (from, rows.pitch, true), rows, stream)
    }

    unsafe fn queue(&self, work: &Work) -> Result<(), Fault> {
        self.enter()?;
        let stream = self.stream(Stream::Compute);
        match work {
            Work::Copy { to, from, bytes } => {
                // SAFETY: the caller's contract.
                let queued = unsafe { result::memcpy_dtod_async(*to, *from, *bytes, stream) };
                fault("cuMemcpyDtoDAsync", queued)
            }
            Work::Launch(launch, args) => {
                let function = self.function(launch.kernel)?;
                let mut places: Vec<*mut c_void> = args.iter().map(place).collect();
                let three = |n: [u32; 3]| (n[0], n[1], n[2]);
                let (grid, block) = (three(launch.grid), three(launch.block));
                // SAFETY: the caller's contract; the driver copies the arguments before it returns.
                let queued = unsafe {
                    result::launch_kernel(function, grid, block, launch.shared, stream, &mut places)
                };
                fault(launch.kernel, queued)
            }
        }
    }

    fn prepare(&self, work: &[Work]) -> Result<Prepared, Fault> {
        self.enter()?;
        // The driver's handle is the number.
        Ok(Prepared(graph::instantiate(self, work)? as u64))
    }

    unsafe fn queue_prepared(&self, work: Prepared) -> Result<(), Fault> {
        self.enter()?;
        let (graph, stream) = (work.0 as sys::CUgraphExec, self.stream(Stream::Compute));
        // SAFETY: the caller's contract: `prepare` has made the graph, and it was not destroyed.
        fault("cuGraphLaunch", unsafe { result::graph::launch(graph, stream) })
    }

    unsafe fn discard(&self, work: Prepared) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: as above; the driver frees it when it has run.
        fault("cuGraphExecDestroy", unsafe { result::graph::exec_destroy(work.0 as sys::CUgraphExec) })
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let events = std::mem::take(self.events.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: all of it was made by this value and is not used any more; the driver waits for what is queued.
        unsafe {
            for event in events {
                let _ = result::event::destroy(event);
            }
            for stream in self.streams.into_iter().filter(|stream| !stream.is_null()) {
                let _ = result::stream::destroy(stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Where the value of an argument lies.
fn place(arg: &Arg) -> *mut c_void {
    let at: *const c_void = match arg {
        Arg::At(at) => std::ptr::from_ref(at).cast(),
        Arg::I32(n) => std::ptr::from_ref(n).cast(),
        Arg::F32(x) => std::ptr::from_ref(x).cast(),
    };
    at.cast_mut()
}

fn fault<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, Fault> {
    result.map_err(|error| Fault {
        call,
        reason: reason(&error),
        no_memory: error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    })
}

/// The driver's words for an error.
fn reason(error: &DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("{:?}", error.0))
}

fn no_such(number: usize) -> Fault {
    Fault { call: "cuDeviceGet", reason: format!("there is no device {number}"), no_memory: false }
}
