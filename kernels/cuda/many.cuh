// Products of panels with many tokens, on tensor cores: a sub-block of a panel is the left matrix of one `mma`, in
// place.
//
// A block of four warps has 4 x 16 rows and 32 tokens. Panel after panel, it stages 256 columns of its tokens in shared
// memory; each warp multiplies its own panel with them, and adds what the panel gives to its sums: in the order of the
// CPU.
#pragma once
#include "blocks.cuh"
#include "mma.cuh"

const int MANY_WARPS = 4;
const int MANY_BLOCK = MANY_WARPS * WARP;
const int TOKENS = 32;
// Columns of an `mma`, and how many of them the tokens fill.
const int EIGHT = 8, EIGHTS = TOKENS / EIGHT;

// 256 columns of the tokens, aligned for 128-bit stores. Rows of 76 words put the eight tokens of an `mma` in different
// banks.
template <class Block>
struct __align__(16) Staged {
    int qs[TOKENS][76];
    short sums[TOKENS][8];
    float d[TOKENS];
};
template <>
struct __align__(16) Staged<BlockQ8x8> {
    int qs[TOKENS][76];
    float d[TOKENS][8];
};

// Lanes' shares of 16 rows x 32 tokens: [eight tokens][as `mma` has them].
typedef float Sums[EIGHTS][4];

// The token of element `q` of the sums of eight tokens `e`, and its row.
__device__ inline int token_of(int e, int q) { return EIGHT * e + 2 * (lane_of() % 4) + q % 2; }
__device__ inline int row_of(int q) { return lane_of() / 4 + 8 * (q / 2); }

// Does something for each of a lane's sums.
template <class Act>
__device__ inline void each_sum(Act act) {
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
#pragma unroll
        for (int q = 0; q < 4; q++) act(e, q);
    }
}

// Four threads bring a token's block; a token that is not there (null) is zeros.
__device__ inline void stage_scales(const BlockQ8 *block, int t, int part, Staged<BlockQ8> &staged) {
    if (part == 0) *(uint4 *)staged.sums[t] = block ? *(const uint4 *)block->sums : make_uint4(0, 0, 0, 0);
    if (part == 1) staged.d[t] = block ? block->d : 0.0f;
}

__device__ inline void stage_scales(const BlockQ8x8 *block, int t, int part, Staged<BlockQ8x8> &staged) {
    if (part < 2)
        *(uint4 *)&staged.d[t][4 * part] = block ? *(const uint4 *)&block->d[4 * part] : make_uint4(0, 0, 0, 0);
}

template <class Block>
__device__ inline void stage(const Block *block, Staged<Block> &staged) {
    int t = threadIdx.x / 4, part = threadIdx.x % 4;
#pragma unroll
    for (int i = part; i < 16; i += 4)
        *(uint4 *)&staged.qs[t][4 * i] = block ? *(const uint4 *)(block->qs + 16 * i) : make_uint4(0, 0, 0, 0);
    stage_scales(block, t, part, staged);
}

// The products of sub-block s with eight tokens.
template <class Block>
__device__ inline void multiply(const int (&a)[4], const Staged<Block> &staged, int s, int e, int (&c)[4]) {
    int lane = lane_of();
    const int *columns = &staged.qs[EIGHT * e + lane / 4][8 * s + lane % 4];
    const int b[2] = {columns[0], columns[4]};
    c[0] = c[1] = c[2] = c[3] = 0;
    mma(c, a, b);
}

// The nibbles of sub-block s as a left matrix.
__device__ inline void nibbles(const u8 *qs, int s, int (&a)[4]) {
    int lane = lane_of();
    const u8 *line = qs + 256 * s + 64 * (lane % 4) + lane / 4 * 4;
    unsigned upper = word_at(line), lower = word_at(line + 32);
    a[0] = upper & 0x0f0f0f0fu, a[1] = lower & 0x0f0f0f0fu;
    a[2] = upper >> 4 & 0x0f0f0f0fu, a[3] = lower >> 4 & 0x0f0f0f0fu;
}

__device__ inline void add_panel(const PanelQ4K &panel, const Staged<BlockQ8> &staged, Sums &sums) {
    int products[EIGHTS][4] = {}, mins[EIGHTS][4] = {};
    int row = row_of(0), four = row & ~3;
#pragma unroll
    for (int s = 0; s < 8; s++) {
        int a[4], c[4];
        nibbles(panel.qs, s, a);
        const int scale[2] = {byte_of(scales_of(panel, s, four), row & 3),
                              byte_of(scales_of(panel, s, four + 8), row & 3)};
        const int min[2] = {byte_of(mins_of(panel, s, four), row & 3), byte_of(mins_of(panel, s, four + 8), row & 3)};
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            multiply(a, staged, s, e, c);
#pragma unroll
            for (int q = 0; q < 4; q++) {
                products[e][q] += scale[q / 2] * c[q];
                mins[e][q] += min[q / 2] * staged.sums[token_of(e, q)][s];
            }
        }
    }
    const float d[2] = {from_f16(panel.d[row]), from_f16(panel.d[row + 8])};
    const float dmin[2] = {from_f16(panel.dmin[row]), from_f16(panel.dmin[row + 8])};
    each_sum([&](int e, int q) {
        sums[e][q] += (d[q / 2] * (float)products[e][q] - dmin[q / 2] * (float)mins[e][q]) * staged.d[token_of(e, q)];
    });
}

__device__ inline void add_panel(const PanelQ4_0 &panel, const Staged<BlockQ8> &staged, Sums &sums) {
    Sums parts = {};
#pragma unroll
    for (int s = 0; s < 8; s++) {
        int a[4], c[4];
        nibbles(panel.qs, s, a);
        const float d[2] = {from_f16(panel.d[s][row_of(0)]), from_f16(panel.d[s][row_of(2)])};
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            multiply(a, staged, s, e, c);
#pragma unroll
            for (int q = 0; q < 4; q++) parts[e][q] += d[q / 2] * (float)(c[q] - 8 * staged.sums[token_of(e, q)][s]);
        }
    }
    each_sum([&](int e, int q) { sums[e][q] += parts[e][q] * staged.d[token_of(e, q)]; });
}

// Sixteen columns have a scale: half of the left matrix is zero in each of two products.
template <class Panel>
__device__ inline void add_sixteens(const Panel &panel, const Staged<BlockQ8> &staged, Sums &sums) {
    int products[EIGHTS][4] = {};
    int row = row_of(0), four = row & ~3, g = lane_of() % 4;
#pragma unroll
    for (int s = 0; s < 8; s++) {
        const Words words[2] = {row_words(panel, s, g, row), row_words(panel, s, g, row + 8)};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int upper = words[0].of[half], lower = words[1].of[half];
            const int a[4] = {half ? 0 : upper, half ? 0 : lower, half ? upper : 0, half ? lower : 0};
            const int scale[2] = {signed_byte_of(sixteen_scales(panel, 2 * s + half, four), row & 3),
                                  signed_byte_of(sixteen_scales(panel, 2 * s + half, four + 8), row & 3)};
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                int c[4];
                multiply(a, staged, s, e, c);
#pragma unroll
                for (int q = 0; q < 4; q++) products[e][q] += scale[q / 2] * c[q];
            }
        }
    }
    const float d[2] = {from_f16(panel.d[row]), from_f16(panel.d[row + 8])};
    each_sum([&](int e, int q) { sums[e][q] += d[q / 2] * (float)products[e][q] * staged.d[token_of(e, q)]; });
}

__device__ inline void add_panel(const PanelQ3K &panel, const Staged<BlockQ8> &staged, Sums &sums) {
    add_sixteens(panel, staged, sums);
}

__device__ inline void add_panel(const PanelQ6K &panel, const Staged<BlockQ8> &staged, Sums &sums) {
    add_sixteens(panel, staged, sums);
}

__device__ inline void add_panel(const PanelQ8_0 &panel, const Staged<BlockQ8x8> &staged, Sums &sums) {
    Sums parts = {};
    int lane = lane_of();
#pragma unroll
    for (int s = 0; s < 8; s++) {
        const i8 *line = panel.qs + 512 * s + 64 * (lane % 4) + lane / 4 * 4;
        const int a[4] = {word_at(line), word_at(line + 32), word_at(line + 256), word_at(line + 288)};
        int c[4];
        const float d[2] = {from_f16(panel.d[s][row_of(0)]), from_f16(panel.d[s][row_of(2)])};
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            multiply(a, staged, s, e, c);
#pragma unroll
            for (int q = 0; q < 4; q++) parts[e][q] += d[q / 2] * (float)c[q] * staged.d[token_of(e, q)][s];
        }
    }
    each_sum([&](int e, int q) { sums[e][q] += parts[e][q]; });
}

// Adds the products of `count` panels, `stride` panels apart, to each of the sets' sums. `row` has the blocks of token
// threadIdx.x / 4, or is null. A warp without rows has null panels, and helps to stage.
template <int SETS, class Panel>
__device__ inline void add_panels(const Panel *const (&panels)[SETS], u64 stride, int count, const BlockOf<Panel> *row,
                                  Staged<BlockOf<Panel>> &staged, Sums (&sums)[SETS]) {
    for (int p = 0; p < count; p++) {
        stage<BlockOf<Panel>>(row ? row + p : nullptr, staged);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < SETS; i++) {
            if (panels[i]) add_panel(panels[i][p * stride], staged, sums[i]);
        }
        __syncthreads();
    }
}
