// What every kernel stands on: short names, conversions, and the float functions of kernels/src/scalar.rs.
//
// Compiled without fused multiply-add, so that each float operation rounds once, in the order in which it is written:
// as on the CPU.
#pragma once

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define DYNAMIC_SHARED(T, name) extern __shared__ T name[]
#else
#include "shim.h"  // tests/cuda_shim: the same sources as C++ on the CPU
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef signed char i8;
typedef unsigned long long u64;

const int WARP = 32;
// Every kernel but the products of many tokens has blocks of 8 warps.
const int WARPS = 8;
const int BLOCK = WARPS * WARP;

__device__ inline int lane_of() { return threadIdx.x % WARP; }
__device__ inline int warp_of() { return threadIdx.x / WARP; }

__device__ inline float as_float(unsigned bits) { return __int_as_float((int)bits); }
__device__ inline unsigned as_bits(float x) { return (unsigned)__float_as_int(x); }

// Minus infinity: the largest of no numbers.
#define NOTHING as_float(0xff800000u)

__device__ inline float from_f16(u16 bits) {
#ifdef __CUDACC__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return shim_from_f16(bits);
#endif
}

// Rounded to nearest, ties to even.
__device__ inline u16 to_f16(float x) {
#ifdef __CUDACC__
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    return shim_to_f16(x);
#endif
}

__device__ inline float from_bf16(u16 bits) { return as_float((unsigned)bits << 16); }

// The integer whose order is the order of floats, NaN included (f32::total_cmp).
__device__ inline int order_of(float x) {
    int bits = __float_as_int(x);
    return bits ^ (int)((unsigned)(bits >> 31) >> 1);
}

// e^x with x held within -87 and 88: see scalar.rs.
__device__ inline float exp_(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504088896340736f);
    float r = (x - n * 0.6933594f) - n * -2.1219444e-4f;
    float sum = 1.0f / 5040.0f;
    sum = sum * r + 1.0f / 720.0f;
    sum = sum * r + 1.0f / 120.0f;
    sum = sum * r + 1.0f / 24.0f;
    sum = sum * r + 1.0f / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return sum * as_float((unsigned)((int)n + 127) << 23);
}

// e^x, or zero where it is nothing beside the largest score's 1.
__device__ inline float weight_of(float x) { return x < -60.0f ? 0.0f : exp_(x); }

__device__ inline float silu(float x) { return x / (1.0f + exp_(-x)); }

// The upper half of the lanes onto the lower half, until one is left: every lane gets the sum. The order of scalar.rs,
// since a sum of two has none.
__device__ inline float sum_lanes(float x) {
    for (int half = 16; half > 0; half /= 2) x += __shfl_xor_sync(~0u, x, half);
    return x;
}

// Eight sums in nine exchanges instead of forty, with the same tree: while lanes are halved, so are the values that a
// lane is for. Lane l gets the sum of v[l / 4].
__device__ inline float sum_lanes_of_eight(float (&v)[8]) {
    int lane = lane_of();
#pragma unroll
    for (int half = 16, n = 4; half > 2; half /= 2, n /= 2) {
        bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < n; i++) {
            float mine = upper ? v[i + n] : v[i], theirs = upper ? v[i] : v[i + n];
            v[i] = mine + __shfl_xor_sync(~0u, theirs, half);
        }
    }
    float x = v[0];
    x += __shfl_xor_sync(~0u, x, 2);
    return x + __shfl_xor_sync(~0u, x, 1);
}

__device__ inline float max_lanes(float x) {
    for (int half = 16; half > 0; half /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, half));
    return x;
}
