// Kernels that do wrong, which the emulator must notice.
#include "common.cuh"
#include "table.h"

KERNEL fault_none(int *x) { x[threadIdx.x] = threadIdx.x; }

KERNEL fault_store(int *x, int n) {
    if (threadIdx.x == 5) x[n] = 1;
}

KERNEL fault_load(int *x, int n) { x[0] = x[n]; }

KERNEL fault_misaligned(char *x) { *(int *)(x + 2) = 1; }

// Reverses a block's numbers through shared memory, with or without the barrier that it takes.
KERNEL fault_reverse(int *x, int with_barrier) {
    __shared__ int shared[256];
    shared[threadIdx.x] = x[threadIdx.x];
    if (with_barrier) __syncthreads();
    x[threadIdx.x] = shared[255 - threadIdx.x];
}

// Writes only the first n numbers that it reads.
KERNEL fault_uninitialised(int *x, int n) {
    __shared__ int shared[256];
    if ((int)threadIdx.x < n) shared[threadIdx.x] = 1;
    x[threadIdx.x] = shared[threadIdx.x];
}

KERNEL fault_divergent_barrier(int *) {
    if (threadIdx.x < 64) __syncthreads();
}

// Half of the block waits at its barrier, half of it for a warp whose other half waits at the barrier.
KERNEL fault_deadlock(int *x) {
    if (threadIdx.x < 16) x[0] = __shfl_xor_sync(~0u, 1, 1);
    else __syncthreads();
}

extern "C" const ShimKernel shim_kernels_faults[] = {SHIM_KERNEL(fault_none, "p"),
                                                     SHIM_KERNEL(fault_store, "pi"),
                                                     SHIM_KERNEL(fault_load, "pi"),
                                                     SHIM_KERNEL(fault_misaligned, "p"),
                                                     SHIM_KERNEL(fault_reverse, "pi"),
                                                     SHIM_KERNEL(fault_uninitialised, "pi"),
                                                     SHIM_KERNEL(fault_divergent_barrier, "p"),
                                                     SHIM_KERNEL(fault_deadlock, "p"),
                                                     {nullptr, nullptr, nullptr}};
