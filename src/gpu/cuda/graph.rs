//! Graphs of kernels and copies, in which each piece waits for the one before. They are put together piece by piece, and not captured from a
//! stream: a capture fails when another thread waits for the stream meanwhile.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::{CudaDevice, fault, place};
use crate::gpu::driver::{Fault, Work};

/// A graph of work, ready to be launched.
pub fn instantiate(device: &CudaDevice, work: &[Work]) -> Result<sys::CUgraphExec, Fault> {
    let mut plan = Plan::new()?;
    work.iter().try_for_each(|work| plan.add(device, work))?;
    // SAFETY: the graph is there; what comes of it does not need it any more.
    let made = unsafe { result::graph::instantiate(plan.graph, sys::CUgraphInstantiate_flags(0)) };
    fault("cuGraphInstantiate", made)
}

/// Work on its way to a graph.
struct Plan {
    graph: sys::CUgraph,
    last: Option<sys::CUgraphNode>,
}

impl Plan {
    fn new() -> Result<Self, Fault> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: a place for the graph, which is destroyed with this value.
        fault("cuGraphCreate", unsafe { sys::cuGraphCreate(&mut graph, 0).result() })?;
        Ok(Self { graph, last: None })
    }

    fn add(&mut self, device: &CudaDevice, work: &Work) -> Result<(), Fault> {
        let before = self.last.as_slice();
        let mut node = std::ptr::null_mut();
        match work {
            Work::Copy { to, from, bytes } => {
                let copy = copy_within(*to, *from, *bytes);
                // SAFETY: the graph and the nodes before are there; nothing is copied now.
                let added = unsafe {
                    sys::cuGraphAddMemcpyNode(
                        &mut node,
                        self.graph,
                        before.as_ptr(),
                        before.len(),
                        &copy,
                        device.context,
                    )
                };
                fault("cuGraphAddMemcpyNode", added.result())?;
            }
            Work::Launch(launch, args) => {
                let mut places: Vec<*mut c_void> = args.iter().map(place).collect();
                let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
                let params = sys::CUDA_KERNEL_NODE_PARAMS {
                    func: device.function(launch.kernel)?,
                    gridDimX: grid_x,
                    gridDimY: grid_y,
                    gridDimZ: grid_z,
                    blockDimX: block_x,
                    blockDimY: block_y,
                    blockDimZ: block_z,
                    sharedMemBytes: launch.shared,
                    kernelParams: places.as_mut_ptr(),
                    extra: std::ptr::null_mut(),
                    kern: std::ptr::null_mut(),
                    ctx: std::ptr::null_mut(),
                };
                // SAFETY: as above; the driver copies the arguments before it returns.
                let added = unsafe {
                    sys::cuGraphAddKernelNode_v2(
                        &mut node,
                        self.graph,
                        before.as_ptr(),
                        before.len(),
                        &params,
                    )
                };
                fault("cuGraphAddKernelNode", added.result())?;
            }
        }
        self.last = Some(node);
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and nobody has it any more.
        let _ = unsafe { result::graph::destroy(self.graph) };
    }
}

/// A copy of bytes that lie side by side, in the only form that graphs have.
fn copy_within(to: u64, from: u64, bytes: usize) -> sys::CUDA_MEMCPY3D {
    use sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as DEVICE;
    sys::CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: from,
        srcArray: std::ptr::null_mut(),
        reserved0: std::ptr::null_mut(),
        srcPitch: 0,
        srcHeight: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        reserved1: std::ptr::null_mut(),
        dstPitch: 0,
        dstHeight: 0,
        WidthInBytes: bytes,
        Height: 1,
        Depth: 1,
    }
}
