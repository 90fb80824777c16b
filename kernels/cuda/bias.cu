// The bias of a convolution.
#include "common.cuh"

KERNEL __launch_bounds__(BLOCK) bias(float *x, const float *bias, int cols, int n) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) x[i] += bias[i % cols];
}
