// Products of panels with a few tokens: bound by memory, so the panel is read once, in 128-bit loads, exactly as it
// lies.
//
// A warp takes a panel. 512 of its bytes at a time, lane l has 16: in line l / 4 the words of rows 4 (l % 4) and the
// three after it, a word being four columns of a row. So the sums of a row are spread over the eight lanes that agree
// in l % 4, and are put together by `sum_rows`. What panels add to a row is then summed from the first panel to the
// last, as on the CPU.
#pragma once
#include "blocks.cuh"

// Of four rows' partial sums, spread over the lanes that agree in l % 4, lane l gets the total of row 4 (l % 4) +
// row_within(l), first over 16 lanes. Three exchanges; a fourth adds the other half.
__device__ inline int row_within(int lane) { return (lane >> 2 & 1) * 2 + (lane >> 3 & 1); }

__device__ inline int sum_rows(const int (&v)[4]) {
    int lane = lane_of();
    bool second = lane & 4, third = lane & 8;
    int a = second ? v[2] : v[0], b = second ? v[3] : v[1];
    a += __shfl_xor_sync(~0u, second ? v[0] : v[2], 4);
    b += __shfl_xor_sync(~0u, second ? v[1] : v[3], 4);
    int mine = third ? b : a;
    return mine + __shfl_xor_sync(~0u, third ? a : b, 8);
}

__device__ inline int both_halves(int x) { return x + __shfl_xor_sync(~0u, x, 16); }

// The dot products of four words of nibbles with the columns that stand in their low and in their high halves.
__device__ inline void dot_nibbles(const uint4 &w, int low, int high, int (&sums)[4]) {
    const unsigned words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums[i] = __dp4a((int)(words[i] & 0x0f0f0f0fu), low, sums[i]);
        sums[i] = __dp4a((int)(words[i] >> 4 & 0x0f0f0f0fu), high, sums[i]);
    }
}

// What a panel adds to row 4 (l % 4) + row_within(l) of tokens 0..N, of which `x` has the blocks, `stride` apart.
template <int N>
__device__ inline void panel_parts(const PanelQ4K &panel, const BlockQ8 *const (&x)[N], float (&parts)[N]) {
    int lane = lane_of(), r = 4 * (lane % 4), g = lane / 4 % 4, half = lane / 16;
    int sums[N][4] = {}, mins[N][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int s = 2 * i + half;
        uint4 w = *(const uint4 *)(panel.qs + 512 * i + 16 * lane);
        unsigned scales = scales_of(panel, s, r);
#pragma unroll
        for (int n = 0; n < N; n++) {
            int dots[4] = {};
            dot_nibbles(w, word_at(x[n]->qs + 32 * s + 4 * g), word_at(x[n]->qs + 32 * s + 16 + 4 * g), dots);
#pragma unroll
            for (int j = 0; j < 4; j++) sums[n][j] += byte_of(scales, j) * dots[j];
        }
    }
    // Each lane takes the mins of one sub-block.
    int s = 2 * g + half;
    unsigned m = mins_of(panel, s, r);
    int row = r + row_within(lane);
    float d = from_f16(panel.d[row]), dmin = from_f16(panel.dmin[row]);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int j = 0; j < 4; j++) mins[n][j] = byte_of(m, j) * x[n]->sums[s];
        int sum = both_halves(sum_rows(sums[n])), min_sum = both_halves(sum_rows(mins[n]));
        parts[n] = (d * (float)sum - dmin * (float)min_sum) * x[n]->d;
    }
}

template <int N>
__device__ inline void panel_parts(const PanelQ4_0 &panel, const BlockQ8 *const (&x)[N], float (&parts)[N]) {
    int lane = lane_of(), g = lane / 4 % 4, half = lane / 16, row = 4 * (lane % 4) + row_within(lane);
#pragma unroll
    for (int n = 0; n < N; n++) parts[n] = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int s = 2 * i + half;
        uint4 w = *(const uint4 *)(panel.qs + 512 * i + 16 * lane);
        float d = from_f16(panel.d[s][row]);
#pragma unroll
        for (int n = 0; n < N; n++) {
            int dots[4] = {};
            dot_nibbles(w, word_at(x[n]->qs + 32 * s + 4 * g), word_at(x[n]->qs + 32 * s + 16 + 4 * g), dots);
            // Half a warp has the even sub-block, half the odd one: the even one is added first.
            float mine = d * (float)(sum_rows(dots) - 8 * x[n]->sums[s]);
            float other = __shfl_xor_sync(~0u, mine, 16);
            parts[n] += half ? other : mine;
            parts[n] += half ? mine : other;
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) parts[n] *= x[n]->d;
}

template <int N>
__device__ inline void panel_parts(const PanelQ8_0 &panel, const BlockQ8x8 *const (&x)[N], float (&parts)[N]) {
    int lane = lane_of(), row = 4 * (lane % 4) + row_within(lane);
#pragma unroll
    for (int n = 0; n < N; n++) parts[n] = 0.0f;
#pragma unroll
    for (int s = 0; s < 8; s++) {
        uint4 w = *(const uint4 *)(panel.qs + 512 * s + 16 * lane);
        float d = from_f16(panel.d[s][row]);
#pragma unroll
        for (int n = 0; n < N; n++) {
            int columns = word_at(x[n]->qs + 32 * s + 4 * (lane / 4));
            int dots[4] = {__dp4a((int)w.x, columns, 0), __dp4a((int)w.y, columns, 0), __dp4a((int)w.z, columns, 0),
                           __dp4a((int)w.w, columns, 0)};
            parts[n] += d * (float)both_halves(sum_rows(dots)) * x[n]->d[s];
        }
    }
}

// Sixteen columns have a scale: of a line's bytes, those of the low halves one and those of the high halves another.
template <int N, class Panel>
__device__ inline void sixteen_parts(const Panel &panel, const BlockQ8 *const (&x)[N], float (&parts)[N]) {
    int lane = lane_of(), r = 4 * (lane % 4), g = lane / 4 % 4, half = lane / 16;
    int sums[N][4] = {};
// With eight tokens there are no registers for the weights of two steps.
#pragma unroll(N < 8 ? 4 : 1)
    for (int i = 0; i < 4; i++) {
        int s = 2 * i + half;
        Words words[4];
        four_rows(panel, s, g, r, words);
        unsigned scales[2] = {sixteen_scales(panel, 2 * s, r), sixteen_scales(panel, 2 * s + 1, r)};
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                const i8 *columns = x[n]->qs + 32 * s + 4 * g;
                sums[n][j] += signed_byte_of(scales[0], j) * __dp4a(words[j].of[0], word_at(columns), 0);
                sums[n][j] += signed_byte_of(scales[1], j) * __dp4a(words[j].of[1], word_at(columns + 16), 0);
            }
        }
    }
    float d = from_f16(panel.d[r + row_within(lane)]);
#pragma unroll
    for (int n = 0; n < N; n++) parts[n] = d * (float)both_halves(sum_rows(sums[n])) * x[n]->d;
}

template <int N>
__device__ inline void panel_parts(const PanelQ3K &panel, const BlockQ8 *const (&x)[N], float (&parts)[N]) {
    sixteen_parts<N>(panel, x, parts);
}

template <int N>
__device__ inline void panel_parts(const PanelQ6K &panel, const BlockQ8 *const (&x)[N], float (&parts)[N]) {
    sixteen_parts<N>(panel, x, parts);
}

// Panels that a block's warps take before their parts are summed.
const int ROUND = 32;

template <int N>
struct Parts {
    float of[ROUND][N][16];
};

// A block multiplies `count` panels, `stride` panels apart, with the rows `x` of `tokens <= N` tokens, `width` blocks
// each; panel p meets block p % width. Thread 16 n + r gets the sums of row r and token n: sums[0] over the first
// `width` panels, sums[1] over the others.
template <int N, class Panel>
__device__ inline void sum_panels(const Panel *panels, u64 stride, int count, const BlockOf<Panel> *x, int width,
                                  int tokens, Parts<N> &parts, float (&sums)[2]) {
    int thread = threadIdx.x, lane = lane_of(), row = 4 * (lane % 4) + row_within(lane);
    sums[0] = sums[1] = 0.0f;
    for (int first = 0; first < count; first += ROUND) {
        int last = min(first + ROUND, count);
        for (int p = first + warp_of(); p < last; p += WARPS) {
            const BlockOf<Panel> *blocks[N];
            float found[N];
            // Tokens that are not there are those that are: computed, and not kept.
            for (int n = 0; n < N; n++) blocks[n] = x + (u64)min(n, tokens - 1) * width + p % width;
            panel_parts<N>(panels[p * stride], blocks, found);
            if (lane < 16) {
                for (int n = 0; n < N; n++) parts.of[p - first][n][row] = found[n];
            }
        }
        __syncthreads();
        if (thread < 16 * N) {
            for (int p = first; p < last; p++) {
                // No index that is computed: an array that has one does not stay in registers.
                float part = parts.of[p - first][thread / 16][thread % 16];
                if (p < width) sums[0] += part;
                else sums[1] += part;
            }
        }
        __syncthreads();
    }
}
