// The rows that a convolution of two taps multiplies: the previous input beside the current one, in f32 and in blocks
// of 8 bits. The previous input of a sequence's first row is the sequence's own, `pitch` numbers from that of the one
// before. A warp makes 256 columns.
#include "rows.cuh"

KERNEL __launch_bounds__(BLOCK) filter_pairs(const float *x, const float *last, const Row *rows, float *pairs, void *q8,
                                             int scale, int cols, int pitch, int interleaved, int tokens) {
    int blocks = (2 * cols + 255) / 256, block = blockIdx.x * WARPS + warp_of(), t = block / blocks;
    if (t >= tokens) return;
    const float *current = x + (u64)t * cols;
    const float *previous = rows[t].first ? last + (u64)rows[t].sequence * pitch : current - cols;
    int first = block % blocks * 256;
    auto value = [&](int i) {
        int c = first + i;
        if (c >= 2 * cols) return 0.0f;
        if (interleaved) return (c % 2 ? current : previous)[c / 2];
        return c < cols ? previous[c] : current[c - cols];
    };
    if (pairs) {
        for (int i = lane_of(); i < 256 && first + i < 2 * cols; i += WARP)
            pairs[(u64)t * 2 * cols + first + i] = value(i);
    }
    if (q8) quantize_block(value, q8, block, scale);
}
