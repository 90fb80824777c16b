// Matrices of floats in rows times rows of f32, plus a bias: the router, and trunks that are not quantized. A warp has
// a row of the matrix and up to four tokens; column c is summed by lane c % 32.
#include "common.cuh"

const int TOGETHER = 4;

template <class Weight, class Widen>
__device__ void float_product(const Weight *w, const float *x, const float *bias, float *out, int rows, int cols,
                              int tokens, Widen widen) {
    int row = blockIdx.x * WARPS + warp_of(), first = blockIdx.y * TOGETHER, lane = lane_of();
    if (row >= rows) return;
    const float *x_rows[TOGETHER];
    float sums[TOGETHER] = {};
    for (int n = 0; n < TOGETHER; n++) x_rows[n] = x + (u64)min(first + n, tokens - 1) * cols;
#pragma unroll 4
    for (int c = lane; c < cols; c += WARP) {
        float weight = widen(w[(u64)row * cols + c]);
        for (int n = 0; n < TOGETHER; n++) sums[n] += weight * x_rows[n][c];
    }
    for (int n = 0; n < TOGETHER; n++) {
        float sum = sum_lanes(sums[n]);
        if (lane == n && first + n < tokens) out[(u64)(first + n) * rows + row] = bias ? sum + bias[row] : sum;
    }
}

#define FLOAT_PRODUCT(name, Weight, widen)                                                                         \
    KERNEL __launch_bounds__(BLOCK) product_##name(const Weight *w, const float *x, const float *bias, float *out, \
                                                   int rows, int cols, int tokens) {                               \
        float_product(w, x, bias, out, rows, cols, tokens, [](Weight v) { return widen(v); });                     \
    }
FLOAT_PRODUCT(f32, float, )
FLOAT_PRODUCT(f16, u16, from_f16)
FLOAT_PRODUCT(bf16, u16, from_bf16)
