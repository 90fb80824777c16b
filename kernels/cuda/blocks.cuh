// Blocks and panels, byte for byte as kernels/src/blocks.rs and panel.rs have them, and blocks of activations.
#pragma once
#include "common.cuh"

struct BlockQ4_0 {
    u16 d;
    u8 qs[16];
};

struct BlockQ8_0 {
    u16 d;
    i8 qs[32];
};

struct BlockQ4K {
    u16 d, dmin;
    u8 scales[12], qs[128];
};

struct BlockQ3K {
    u8 hmask[32], qs[64], scales[12];
    u16 d;
};

struct BlockQ6K {
    u8 ql[128], qh[64];
    i8 scales[16];
    u16 d;
};

// 256 activations.
struct __align__(16) BlockQ8 {
    i8 qs[256];
    short sums[8];
    float d;
    unsigned pad[3];
};

// The same with a scale for each 32 of them.
struct __align__(16) BlockQ8x8 {
    i8 qs[256];
    int starts[8];
    float d[8];
};

// Panels: 16 rows x 256 columns.
struct __align__(16) PanelQ4K {
    u16 d[16], dmin[16];
    u8 scales_lo[64], mins_lo[64], hi[64], qs[2048];
};

struct __align__(16) PanelQ4_0 {
    u16 d[8][16];
    u8 qs[2048];
};

struct __align__(16) PanelQ8_0 {
    u16 d[8][16];
    i8 qs[4096];
};

struct ThreeBits {
    u8 low[128], high[64];
};

struct __align__(16) PanelQ3K {
    u16 d[16];
    u8 scales[12][16];
    ThreeBits sub_blocks[8];
};

struct SixBits {
    u8 low[256], high[128];
};

struct __align__(16) PanelQ6K {
    u16 d[16];
    i8 scales[16][16];
    SixBits sub_blocks[8];
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4K) == 144 &&
                  sizeof(BlockQ6K) == 210 && sizeof(BlockQ3K) == 110,
              "blocks");
static_assert(sizeof(BlockQ8) == 288 && sizeof(BlockQ8x8) == 320 && sizeof(PanelQ4K) == 2304 &&
                  sizeof(PanelQ4_0) == 2304 && sizeof(PanelQ8_0) == 4352 && sizeof(PanelQ6K) == 3360 &&
                  sizeof(PanelQ3K) == 1760,
              "panels");

// The activations that a panel is multiplied with.
template <class Panel>
struct ActivationsOf {
    typedef BlockQ8 Block;
};
template <>
struct ActivationsOf<PanelQ8_0> {
    typedef BlockQ8x8 Block;
};
template <class Panel>
using BlockOf = typename ActivationsOf<Panel>::Block;

__device__ inline int word_at(const void *p) { return *(const int *)p; }

// The scales of sub-block s of four rows, from row r on, a byte each.
__device__ inline unsigned scales_of(const PanelQ4K &panel, int s, int r) {
    unsigned lo = word_at(panel.scales_lo + 16 * (s % 4) + r), hi = word_at(panel.hi + 16 * (s % 4) + r);
    return s < 4 ? (lo & 0x0f0f0f0fu) | (hi & 0x03030303u) << 4
                 : (lo >> 4 & 0x0f0f0f0fu) | (hi >> 2 & 0x03030303u) << 4;
}

// The same for the mins.
__device__ inline unsigned mins_of(const PanelQ4K &panel, int s, int r) {
    unsigned lo = word_at(panel.mins_lo + 16 * (s % 4) + r), hi = word_at(panel.hi + 16 * (s % 4) + r);
    return s < 4 ? (lo & 0x0f0f0f0fu) | (hi >> 4 & 0x03030303u) << 4
                 : (lo >> 4 & 0x0f0f0f0fu) | (hi >> 6 & 0x03030303u) << 4;
}

__device__ inline int byte_of(unsigned word, int i) { return word >> 8 * i & 255; }

__device__ inline int signed_byte_of(unsigned word, int i) { return (i8)(word >> 8 * i); }

// Four numbers of 6 bits less 32, from the low 4 bits and the upper 2 bits of each byte. Nothing is borrowed beyond a
// byte, since each has its highest bit while it is subtracted from.
__device__ inline int six_bits(unsigned low, unsigned high) {
    unsigned word = (low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4;
    return (int)(((word | 0x80808080u) - 0x20202020u) ^ 0x80808080u);
}

// Four numbers of 3 bits less 4, from the low 2 bits and the lowest bit of each byte.
__device__ inline int three_bits(unsigned low, unsigned high) {
    unsigned word = (low & 0x03030303u) | (high & 0x01010101u) << 2;
    return (int)(((word | 0x80808080u) - 0x04040404u) ^ 0x80808080u);
}

// The scales of sixteen s of four rows, from row r on, a byte each.
__device__ inline unsigned sixteen_scales(const PanelQ6K &panel, int s, int r) {
    return (unsigned)word_at(panel.scales[s] + r);
}

__device__ inline unsigned sixteen_scales(const PanelQ3K &panel, int s, int r) {
    unsigned low = word_at(panel.scales[s % 8] + r), high = word_at(panel.scales[8 + s % 4] + r);
    return (unsigned)six_bits(low >> 4 * (s / 8), high >> 2 * (s / 4));
}

// Of sub-block s the columns 4 g + i and 16 + 4 g + i of row r, less what makes them unsigned.
struct Words {
    int of[2];
};

__device__ inline Words row_words(const PanelQ6K &panel, int s, int g, int r) {
    unsigned low = word_at(panel.sub_blocks[s].low + 64 * g + 4 * r);
    unsigned high = (unsigned)word_at(panel.sub_blocks[s].high + 64 * (g / 2) + 4 * r) >> 4 * (g % 2);
    return {{six_bits(low, high), six_bits(low >> 4, high >> 2)}};
}

__device__ inline Words row_words(const PanelQ3K &panel, int s, int g, int r) {
    const ThreeBits &bits = panel.sub_blocks[s];
    unsigned first = word_at(bits.low + 4 * r), second = word_at(bits.low + 64 + 4 * r),
             high = word_at(bits.high + 4 * r);
    return {{three_bits(first >> 2 * g, high >> g), three_bits(second >> 2 * g, high >> (4 + g))}};
}

// The same of the four rows from r on.
__device__ inline void four_rows(const PanelQ6K &panel, int s, int g, int r, Words (&words)[4]) {
    uint4 low = *(const uint4 *)(panel.sub_blocks[s].low + 64 * g + 4 * r);
    uint4 high = *(const uint4 *)(panel.sub_blocks[s].high + 64 * (g / 2) + 4 * r);
    const unsigned lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        unsigned upper = highs[j] >> 4 * (g % 2);
        words[j] = {{six_bits(lows[j], upper), six_bits(lows[j] >> 4, upper >> 2)}};
    }
}

__device__ inline void four_rows(const PanelQ3K &panel, int s, int g, int r, Words (&words)[4]) {
    const ThreeBits &bits = panel.sub_blocks[s];
    uint4 a = *(const uint4 *)(bits.low + 4 * r), b = *(const uint4 *)(bits.low + 64 + 4 * r);
    uint4 c = *(const uint4 *)(bits.high + 4 * r);
    const unsigned first[4] = {a.x, a.y, a.z, a.w}, second[4] = {b.x, b.y, b.z, b.w}, high[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
        words[j] = {{three_bits(first[j] >> 2 * g, high[j] >> g), three_bits(second[j] >> 2 * g, high[j] >> (4 + g))}};
}

// A warp makes one block of the values that `value` gives for columns 0..256, `scale` columns of which share a scale:
// 256 (BlockQ8) or 32 (BlockQ8x8). All lanes must call it; a lane has 8 columns.
template <class Value>
__device__ inline void quantize_block(Value value, void *to, u64 number, int scale) {
    int lane = lane_of();
    float x[8];
    unsigned amax_bits = 0;
    for (int i = 0; i < 8; i++) {
        x[i] = value(8 * lane + i);
        amax_bits = max(amax_bits, as_bits(x[i]) & 0x7fffffffu);
    }
    for (int half = scale / 16; half > 0; half /= 2) amax_bits = max(amax_bits, __shfl_xor_sync(~0u, amax_bits, half));
    // Not finite: zeros with the scale NaN. So small that the inverse overflows: zeros with the scale zero.
    float amax = as_float(amax_bits), d = amax / 127.0f, inverse = 127.0f / amax;
    if (amax_bits >= 0x7f800000u) d = as_float(0x7fc00000u), inverse = 0.0f;
    if (inverse > 3.4028235e38f) d = 0.0f, inverse = 0.0f;
    unsigned words[2] = {0, 0};
    int sum = 0;
    for (int i = 0; i < 8; i++) {
        int q = inverse == 0.0f ? 0 : (int)rintf(x[i] * inverse);
        sum += q;
        words[i / 4] |= (unsigned)(q & 255) << 8 * (i % 4);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (scale == 32) {
        BlockQ8x8 *out = (BlockQ8x8 *)to + number;
        *(uint2 *)(out->qs + 8 * lane) = make_uint2(words[0], words[1]);
        if (lane % 4 == 0) out->starts[lane / 4] = -128 * sum, out->d[lane / 4] = d;
        return;
    }
    BlockQ8 *out = (BlockQ8 *)to + number;
    *(uint2 *)(out->qs + 8 * lane) = make_uint2(words[0], words[1]);
    if (lane % 4 == 0) out->sums[lane / 4] = (short)sum;
    if (lane < 4) *(lane == 0 ? (unsigned *)&out->d : &out->pad[lane - 1]) = lane == 0 ? as_bits(d) : 0;
}
