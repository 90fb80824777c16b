// Rows of the embedding, widened as kernels/src/dequant.rs widens them.
#include "blocks.cuh"

__device__ inline float weight_at(const float *row, int c) { return row[c]; }

__device__ inline float weight_at(const BlockQ8_0 *row, int c) {
    return (float)row[c / 32].qs[c % 32] * from_f16(row[c / 32].d);
}

__device__ inline float weight_at(const BlockQ4_0 *row, int c) {
    int q = row[c / 32].qs[c % 16] >> (c % 32 < 16 ? 0 : 4) & 15;
    return (float)(q - 8) * from_f16(row[c / 32].d);
}

__device__ inline float weight_at(const BlockQ4K *row, int c) {
    const BlockQ4K &block = row[c / 256];
    int s = c % 256 / 32, q = block.qs[32 * (s / 2) + c % 32] >> 4 * (s % 2) & 15;
    // Bytes 0..4 have scales 0..4, bytes 4..8 mins 0..4; the others lie in nibbles and upper bits (blocks.rs).
    const u8 *b = block.scales;
    int scale = s < 4 ? b[s] & 63 : (b[s + 4] & 15) | b[s - 4] >> 6 << 4;
    int min = s < 4 ? b[s + 4] & 63 : b[s + 4] >> 4 | b[s] >> 6 << 4;
    return from_f16(block.d) * (float)scale * (float)q - from_f16(block.dmin) * (float)min;
}

__device__ inline float weight_at(const BlockQ3K *row, int c) {
    const BlockQ3K &block = row[c / 256];
    int j = c % 256 / 32, k = c % 32, s = c % 256 / 16;
    int low = block.qs[32 * (j / 4) + k] >> 2 * (j % 4) & 3, high = block.hmask[k] >> j & 1;
    int scale = (block.scales[s % 8] >> 4 * (s / 8) & 15) | (block.scales[8 + s % 4] >> 2 * (s / 4) & 3) << 4;
    return (float)((low | high << 2) - 4) * (from_f16(block.d) * (float)(scale - 32));
}

__device__ inline float weight_at(const BlockQ6K *row, int c) {
    const BlockQ6K &block = row[c / 256];
    int half = c % 256 / 128, quarter = c % 128 / 32, k = c % 32;
    int low = block.ql[64 * half + 32 * (quarter % 2) + k] >> 4 * (quarter / 2) & 15;
    int high = block.qh[32 * half + k] >> 2 * quarter & 3;
    return (float)((low | high << 4) - 32) * (from_f16(block.d) * (float)block.scales[c % 256 / 16]);
}

struct F16 {
    u16 bits;
};
struct BF16 {
    u16 bits;
};
__device__ inline float weight_at(const F16 *row, int c) { return from_f16(row[c].bits); }
__device__ inline float weight_at(const BF16 *row, int c) { return from_bf16(row[c].bits); }

// One token a block.
template <class Block>
__device__ void embed(const Block *table, int block_len, const int *ids, float *out, int cols) {
    const Block *row = table + (u64)ids[blockIdx.x] * (cols / block_len);
    for (int c = threadIdx.x; c < cols; c += BLOCK) out[(u64)blockIdx.x * cols + c] = weight_at(row, c);
}

#define EMBED(name, Block, block_len)                                                                        \
    KERNEL __launch_bounds__(BLOCK) embed_##name(const Block *table, const int *ids, float *out, int cols) { \
        embed(table, block_len, ids, out, cols);                                                             \
    }
EMBED(f32, float, 1)
EMBED(f16, F16, 1)
EMBED(bf16, BF16, 1)
EMBED(q8_0, BlockQ8_0, 32)
EMBED(q4_0, BlockQ4_0, 32)
EMBED(q4_k, BlockQ4K, 256)
EMBED(q3_k, BlockQ3K, 256)
EMBED(q6_k, BlockQ6K, 256)
