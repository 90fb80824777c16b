// Element by element: what stands between the products.
#include "common.cuh"

KERNEL __launch_bounds__(BLOCK) add(float *x, const float *y, int n) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) x[i] += y[i];
}

KERNEL __launch_bounds__(BLOCK) swiglu(float *gate, const float *up, int n) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) gate[i] = silu(gate[i]) * up[i];
}

KERNEL __launch_bounds__(BLOCK) bias(float *x, const float *bias, const float *plus, int cols, int n) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= n) return;
    float y = x[i] + bias[i % cols];
    x[i] = plus ? y + plus[i] : y;
}
