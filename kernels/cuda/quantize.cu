// Rows of activations to blocks of 8 bits, `scale` columns of which share a scale. A warp makes one block; the last one
// of a row is filled up with zeros.
#include "blocks.cuh"

KERNEL __launch_bounds__(BLOCK) quantize(const float *x, void *out, int scale, int cols, int rows) {
    int blocks = (cols + 255) / 256, block = blockIdx.x * WARPS + warp_of();
    if (block >= rows * blocks) return;
    const float *row = x + (u64)(block / blocks) * cols;
    int first = block % blocks * 256;
    quantize_block([&](int c) { return first + c < cols ? row[first + c] : 0.0f; }, out, block, scale);
}
