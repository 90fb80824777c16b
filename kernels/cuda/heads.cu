// From projections to heads: the joined row q | k is cut into slices of `dim`, the query of head i is slice 2i and its
// key slice 2i + 1; both are rotated. Queries go side by side, keys and values into the page of the row's position. A
// block has one head of one row, a thread one entry.
#include "rows.cuh"

// Entry j of the leading `rot` pairs with entry j + rot / 2.
__device__ inline float rotated(const float *slice, int d, int rot, const float2 *angles) {
    if (d >= rot) return slice[d];
    int half = rot / 2, j = d % half;
    float a = slice[j], b = slice[j + half], cos = angles[j].x, sin = angles[j].y;
    return d < half ? a * cos - b * sin : b * cos + a * sin;
}

__device__ inline void store(u16 *cache, u64 at, int d, float x) { cache[at + d] = to_f16(x); }

// A warp has one block: the largest magnitude becomes 127, ties go away from zero (kernels/src/encode/small.rs).
__device__ inline void store(BlockQ8_0 *cache, u64 at, int d, float x) {
    float d_wide = max_lanes(fabsf(x)) / 127.0f, inverse = 1.0f / d_wide;
    if (!(fabsf(inverse) <= 3.4028235e38f)) inverse = 0.0f;
    BlockQ8_0 *block = cache + (at + d) / 32;
    float whole = fminf(roundf(fabsf(x * inverse)), 127.0f);
    block->qs[d % 32] = (i8)(x < 0.0f ? -whole : whole);
    if (d % 32 == 0) block->d = to_f16(fminf(d_wide, 65504.0f));
}

template <class Cache>
__device__ void split(const float *q, const float *k, const float *v, const float *angles, float *queries,
                      const PageTable *pages, const Row *rows, int layer, int heads, int dim, int rot, int stride) {
    int head = blockIdx.x, t = blockIdx.y, d = threadIdx.x, width = heads * dim;
    if (d >= dim) return;
    // dim divides the width of a projection: a slice lies wholly in q or in k.
    auto slice = [&](int i) { return (i * dim < width ? q + i * dim : k + (i * dim - width)) + (u64)t * width; };
    const float2 *angle = (const float2 *)angles + (u64)t * (rot / 2);
    int position = rows[t].position;
    Cache *page = page_of<Cache>(pages, stride, rows[t].sequence, position / PAGE);
    u64 at = keys_at(layer, head, heads, dim) + (u64)(position % PAGE) * dim;
    queries[(u64)t * width + head * dim + d] = rotated(slice(2 * head), d, rot, angle);
    store(page, at, d, rotated(slice(2 * head + 1), d, rot, angle));
    store(page, at + values_behind(heads, dim), d, v[(u64)t * width + head * dim + d]);
}

#define HEADS(name, Cache)                                                                                          \
    KERNEL __launch_bounds__(BLOCK)                                                                                 \
        heads_##name(const float *q, const float *k, const float *v, const float *angles, float *queries,           \
                     const PageTable *pages, const Row *rows, int layer, int heads, int dim, int rot, int stride) { \
        split<Cache>(q, k, v, angles, queries, pages, rows, layer, heads, dim, rot, stride);                        \
    }
HEADS(f16, u16)
HEADS(q8_0, BlockQ8_0)
