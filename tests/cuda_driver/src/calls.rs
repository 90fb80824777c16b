//! The functions, by their names in libcuda.
#![allow(non_snake_case, clippy::missing_safety_doc, reason = "the CUDA Driver API documents them")]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void},
    slice,
};

use cudarc::driver::sys::{
    CUDA_KERNEL_NODE_PARAMS, CUDA_MEMCPY2D, CUDA_MEMCPY3D,
    CUdevice_attribute_enum::{self as Attribute, *},
    CUmemorytype_enum::{self, CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST},
    CUresult::{self, *},
};
use yuan_cuda::Kernel;

use crate::machine::{
    Answer, Graph, MEMORY, Machine, Object, Work, arguments, call, in_context, initialize, on_device,
};

/// A handle, or the address of device memory.
type Handle = u64;

/// What the real one says of itself where it is asked.
const VERSION: c_int = 12040;

/// Puts a result where the caller wants it.
///
/// # Safety
/// `to` is null or has room for it.
unsafe fn give<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

fn is_stream(object: &Object) -> bool {
    matches!(object, Object::Stream)
}

fn is_event(object: &Object) -> bool {
    matches!(object, Object::Event)
}

fn is_exec(object: &Object) -> bool {
    matches!(object, Object::Exec(_))
}

fn graph(object: &mut Object) -> Option<&mut Graph> {
    if let Object::Graph(graph) = object { Some(graph) } else { None }
}

fn kernel(machine: &mut Machine, function: Handle) -> Answer<&'static Kernel> {
    let function = machine.object(function, |o| if let Object::Function(k) = o { Some(k) } else { None });
    function.copied()
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> CUresult {
    if flags == 0 { initialize() } else { CUDA_ERROR_INVALID_VALUE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    // SAFETY: the caller's promise.
    call(|_| unsafe { give(version, VERSION) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    let words: &CStr = match error {
        CUDA_SUCCESS => c"no error",
        CUDA_ERROR_INVALID_VALUE => c"invalid argument",
        CUDA_ERROR_OUT_OF_MEMORY => c"out of memory",
        CUDA_ERROR_NOT_INITIALIZED => c"initialization error",
        CUDA_ERROR_INVALID_CONTEXT => c"invalid device context",
        CUDA_ERROR_INVALID_HANDLE => c"invalid resource handle",
        CUDA_ERROR_NOT_FOUND => c"named symbol not found",
        CUDA_ERROR_LAUNCH_FAILED => c"unspecified launch failure",
        _ => return CUDA_ERROR_INVALID_VALUE,
    };
    // SAFETY: the caller's promise.
    call(|_| unsafe { give(text, words.as_ptr()) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    // SAFETY: the caller's promise.
    call(|_| unsafe { give(count, 1) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, number: c_int) -> CUresult {
    // SAFETY: the caller's promise.
    on_device(number, |_| unsafe { give(device, 0) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> CUresult {
    let text = c"emulated".to_bytes_with_nul();
    on_device(device, |_| match usize::try_from(len) {
        Ok(len) if len >= text.len() && !name.is_null() => {
            // SAFETY: the caller has so much room.
            unsafe { name.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len()) };
            Ok(())
        }
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(to: *mut c_int, which: Attribute, device: c_int) -> CUresult {
    let value = match which {
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 8,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => 0,
        CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE => 1_000_000,
        CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH => 128,
        _ => return CUDA_ERROR_INVALID_VALUE,
    };
    // SAFETY: the caller's promise.
    on_device(device, |_| unsafe { give(to, value) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> CUresult {
    // SAFETY: the caller's promise.
    on_device(device, |machine| unsafe { give(context, machine.retain()) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> CUresult {
    on_device(device, Machine::release)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> CUresult {
    call(|machine| machine.make_current(context))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    in_context(|machine| {
        // SAFETY: the caller's promise.
        unsafe { give(free, MEMORY - machine.device.used()) }?;
        // SAFETY: as above.
        unsafe { give(total, MEMORY) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(at: *mut Handle, bytes: usize) -> CUresult {
    // SAFETY: the caller's promise.
    in_context(|machine| unsafe { give(at, machine.allocate(bytes)?) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(at: Handle) -> CUresult {
    in_context(|machine| machine.free(at))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(at: *mut Handle, bytes: usize, _flags: c_uint) -> CUresult {
    // SAFETY: the caller's promise.
    in_context(|machine| unsafe { give(at, machine.pinned.add(bytes, 0xff)) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(at: Handle) -> CUresult {
    in_context(|machine| machine.pinned.remove(at))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) -> CUresult {
    // SAFETY: the caller's promise.
    in_context(|machine| unsafe { give(stream, machine.add(Object::Stream)) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> CUresult {
    in_context(|machine| machine.remove(stream, is_stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> CUresult {
    in_context(|machine| machine.has(stream, is_stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> CUresult {
    in_context(|machine| machine.has(stream, is_stream).and_then(|()| machine.has(event, is_event)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut Handle, _flags: c_uint) -> CUresult {
    // SAFETY: the caller's promise.
    in_context(|machine| unsafe { give(event, machine.add(Object::Event)) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> CUresult {
    in_context(|machine| machine.remove(event, is_event))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> CUresult {
    in_context(|machine| machine.has(event, is_event).and_then(|()| machine.has(stream, is_stream)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> CUresult {
    in_context(|machine| machine.has(event, is_event))
}

/// Machine code only: what is embedded for compute capability 8.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> CUresult {
    in_context(|machine| {
        // SAFETY: an image is longer than its magic number.
        if image.is_null() || unsafe { slice::from_raw_parts(image.cast::<u8>(), 4) } != b"\x7fELF" {
            return Err(CUDA_ERROR_INVALID_IMAGE);
        }
        // SAFETY: the caller's promise.
        unsafe { give(module, machine.add(Object::Module)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> CUresult {
    in_context(|machine| {
        machine.has(module, |o| matches!(o, Object::Module))?;
        // SAFETY: the caller's promise: a text.
        let name = unsafe { CStr::from_ptr(name) };
        let kernel = name.to_str().ok().and_then(Kernel::named).ok_or(CUDA_ERROR_NOT_FOUND)?;
        // SAFETY: the caller's promise.
        unsafe { give(function, machine.add(Object::Function(kernel))) }
    })
}

/// Between pinned and device memory, one way or the other.
fn copy(to: Handle, from: Handle, bytes: usize, stream: Handle, up: bool) -> CUresult {
    in_context(|machine| {
        machine.has(stream, is_stream)?;
        let (device, host) = if up { (to, from) } else { (from, to) };
        if !machine.device.has(device, bytes) || !machine.pinned.has(host, bytes) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        machine.copy(to, from, bytes)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: Handle, from: Handle, bytes: usize, stream: Handle) -> CUresult {
    copy(to, from, bytes, stream, true)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: Handle, from: Handle, bytes: usize, stream: Handle) -> CUresult {
    copy(to, from, bytes, stream, false)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: Handle, from: Handle, bytes: usize, stream: Handle) -> CUresult {
    in_context(|machine| {
        machine.has(stream, is_stream)?;
        if !machine.device.has(to, bytes) || !machine.device.has(from, bytes) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        machine.copy(to, from, bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(params: *const CUDA_MEMCPY2D, stream: Handle) -> CUresult {
    // SAFETY: the caller's promise.
    let p = unsafe { &*params };
    let place = |kind: CUmemorytype_enum, host: u64, device: u64| match kind {
        CU_MEMORYTYPE_HOST => Ok(host),
        CU_MEMORYTYPE_DEVICE => Ok(device),
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    };
    in_context(|machine| {
        machine.has(stream, is_stream)?;
        let to = place(p.dstMemoryType, p.dstHost as u64, p.dstDevice)?;
        let from = place(p.srcMemoryType, p.srcHost as u64, p.srcDevice)?;
        if p.dstPitch < p.WidthInBytes || p.srcPitch < p.WidthInBytes {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        (0..p.Height).try_for_each(|row| {
            let at = |place: u64, x: usize, y: usize, pitch: usize| place + (x + (y + row) * pitch) as u64;
            let to = at(to, p.dstXInBytes, p.dstY, p.dstPitch);
            machine.copy(to, at(from, p.srcXInBytes, p.srcY, p.srcPitch), p.WidthInBytes)
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: Handle,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> CUresult {
    in_context(|machine| {
        machine.has(stream, is_stream)?;
        let kernel = kernel(machine, function)?;
        // SAFETY: the caller's promise.
        let args = unsafe { arguments(kernel, params) };
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        machine.run(&Work::Launch { kernel, grid, block, shared, args })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphCreate(graph: *mut Handle, flags: c_uint) -> CUresult {
    in_context(|machine| match flags {
        // SAFETY: the caller's promise.
        0 => unsafe { give(graph, machine.add(Object::Graph(Graph::default()))) },
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(handle: Handle) -> CUresult {
    in_context(|machine| machine.remove(handle, |o| matches!(o, Object::Graph(_))))
}

/// Adds a node, which must wait for the one before: then the order of a stream is right.
///
/// # Safety
/// `before` points to `count` nodes, and `node` has room for one.
unsafe fn add_node(
    machine: &mut Machine,
    node: *mut Handle,
    handle: Handle,
    before: *const Handle,
    count: usize,
    work: Work,
) -> Answer {
    let number = machine.number();
    let graph = machine.object(handle, graph)?;
    // SAFETY: the caller's promise.
    let before = if count == 0 { &[] } else { unsafe { slice::from_raw_parts(before, count) } };
    if before != graph.nodes.last().copied().as_slice() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    graph.nodes.push(number);
    graph.work.push(work);
    // SAFETY: the caller's promise.
    unsafe { give(node, number) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddKernelNode_v2(
    node: *mut Handle,
    graph: Handle,
    before: *const Handle,
    count: usize,
    params: *const CUDA_KERNEL_NODE_PARAMS,
) -> CUresult {
    // SAFETY: the caller's promise.
    let p = unsafe { &*params };
    in_context(|machine| {
        let kernel = kernel(machine, p.func as Handle)?;
        let (grid, block) = ([p.gridDimX, p.gridDimY, p.gridDimZ], [p.blockDimX, p.blockDimY, p.blockDimZ]);
        // SAFETY: the caller's promise.
        let args = unsafe { arguments(kernel, p.kernelParams) };
        let work = Work::Launch { kernel, grid, block, shared: p.sharedMemBytes, args };
        // SAFETY: the caller's promise.
        unsafe { add_node(machine, node, graph, before, count, work) }
    })
}

/// Bytes that lie side by side in device memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddMemcpyNode(
    node: *mut Handle,
    graph: Handle,
    before: *const Handle,
    count: usize,
    params: *const CUDA_MEMCPY3D,
    context: Handle,
) -> CUresult {
    // SAFETY: the caller's promise.
    let p = unsafe { &*params };
    in_context(|machine| {
        if !machine.is_context(context) {
            return Err(CUDA_ERROR_INVALID_CONTEXT);
        }
        let within = [p.srcMemoryType, p.dstMemoryType] == [CU_MEMORYTYPE_DEVICE; 2];
        let places = [p.srcXInBytes, p.srcY, p.srcZ, p.srcLOD, p.dstXInBytes, p.dstY, p.dstZ, p.dstLOD];
        if !within || places != [0; 8] || (p.Height, p.Depth) != (1, 1) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let work = Work::Copy { to: p.dstDevice, from: p.srcDevice, bytes: p.WidthInBytes };
        // SAFETY: the caller's promise.
        unsafe { add_node(machine, node, graph, before, count, work) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    exec: *mut Handle,
    handle: Handle,
    flags: c_ulonglong,
) -> CUresult {
    in_context(|machine| {
        let work = machine.object(handle, graph)?.work.clone();
        match flags {
            // SAFETY: the caller's promise.
            0 => unsafe { give(exec, machine.add(Object::Exec(work))) },
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(exec: Handle, stream: Handle) -> CUresult {
    in_context(|machine| {
        machine.has(stream, is_stream)?;
        let work = machine.object(exec, |o| if let Object::Exec(work) = o { Some(work) } else { None })?;
        let work = work.clone();
        work.iter().try_for_each(|work| machine.run(work))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(exec: Handle) -> CUresult {
    in_context(|machine| machine.remove(exec, is_exec))
}
