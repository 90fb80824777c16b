// What the kernels find in place of CUDA. Everything that has a state lies behind functions of machine.cpp, which is
// compiled without checks.
#pragma once
#include <math.h>
#include <string.h>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One section, which memory.cpp knows the bounds of. A block's threads are fibers of one thread, so statics are shared
// by them.
#define __shared__ static __attribute__((section("yuan_shared")))
#define DYNAMIC_SHARED(T, name) T *name = (T *)shim_dynamic_shared()
#define KERNEL static void

struct uint2 {
    unsigned x, y;
} __attribute__((aligned(8)));
struct float2 {
    float x, y;
} __attribute__((aligned(8)));
// Copied word by word: a compiler may copy a plain struct by a function that is not looked at.
struct __attribute__((aligned(16))) uint4 {
    unsigned x, y, z, w;
    uint4(unsigned x, unsigned y, unsigned z, unsigned w) : x(x), y(y), z(z), w(w) {}
    uint4(const uint4 &from) : x(from.x), y(from.y), z(from.z), w(from.w) {}
    uint4 &operator=(const uint4 &from) {
        x = from.x, y = from.y, z = from.z, w = from.w;
        return *this;
    }
};
struct ShimIndex {
    unsigned x, y, z;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern "C" {
// A fiber's indices do not change while it lives.
ShimIndex shim_thread() __attribute__((const));
ShimIndex shim_block() __attribute__((const));
void *shim_dynamic_shared();
void shim_sync_block();
void shim_sync_warp(unsigned mask);
unsigned long long shim_exchange(unsigned mask, unsigned long long value, int from);
unsigned shim_ballot(unsigned mask, int predicate);
void shim_mma_m16n8k32(int *c, const int *a, const int *b);
void shim_mma_m8n8k16(int *c, int a, int b);
float shim_from_f16(unsigned short bits);
unsigned short shim_to_f16(float x);
int shim_lane() __attribute__((const));
}

#define threadIdx (shim_thread())
#define blockIdx (shim_block())
inline void __syncthreads() { shim_sync_block(); }
inline void __syncwarp(unsigned mask = ~0u) { shim_sync_warp(mask); }

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "a word or two");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shim_exchange(mask, bits, from & 31);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return __shfl_sync(mask, value, shim_lane() ^ bits);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return shim_ballot(mask, predicate); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (signed char)(a >> 8 * i) * (signed char)(b >> 8 * i);
    return c;
}
inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
template <class T>
inline T max(T a, T b) {
    return a > b ? a : b;
}
template <class T>
inline T min(T a, T b) {
    return a < b ? a : b;
}
