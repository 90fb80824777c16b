// Causal attention over a layer's cache, in spans of 512 positions as on the CPU, each of which is one page: each span
// has a softmax of its own, not yet divided by its sum, and spans are put together from the first to the last. So a
// query's result depends neither on the queries beside it, of its sequence or of others, nor on who took which span.
//
// Within a span: scores (a warp has eight dot products at a time), the softmax (a warp has a query), the mix of the
// values (a thread has a column, and goes through the positions in order).
#include "rows.cuh"

const int SPAN = PAGE;
const int MOST_DIM = 256;

// Q queries of one head.
template <int Q>
struct Queries {
    float q[Q][MOST_DIM];
    BlockQ8x8 q8[Q];
    // [position][query], first scores, then e^(score - max).
    float scores[SPAN * Q];
    float max[Q], sum[Q];
    // Positions of the span that each query sees: a later one sees at least as many.
    int seen[Q];
};

// A lane's columns of Q queries, held in registers while keys go by; `scores` makes eight dot products at a time, those
// of keys i..i + 8 / Q.
template <int Q, class Cache>
struct Held;

// Lane l has columns l, l + 32, ...
template <int Q>
struct Held<Q, u16> {
    float q[Q][MOST_DIM / WARP];

    __device__ inline void load(const Queries<Q> &queries) {
#pragma unroll
        for (int t = 0; t < Q; t++) {
#pragma unroll
            for (int j = 0; j < MOST_DIM / WARP; j++) q[t][j] = queries.q[t][32 * j + lane_of()];
        }
    }

    __device__ inline void scores(const u16 *keys, int dim, int i, int last, float scale, Queries<Q> &queries) const {
        int lane = lane_of();
        float v[8] = {};
#pragma unroll
        for (int k = 0; k < 8 / Q; k++) {
            const u16 *key = keys + (u64)min(i + k, last) * dim;
#pragma unroll
            for (int j = 0; j < MOST_DIM / WARP; j++) {
                if (32 * j >= dim) break;
                float x = from_f16(key[32 * j + lane]);
#pragma unroll
                for (int t = 0; t < Q; t++) v[k * Q + t] += x * q[t][j];
            }
        }
        float score = sum_lanes_of_eight(v) * scale;
        if (lane % 4 == 0 && i + lane / 4 / Q <= last) queries.scores[i * Q + lane / 4] = score;
    }
};

// Queries are quantized as other activations are that meet Q8_0. Lane l has eight columns of block l / 4; the block's
// scales meet its whole sum, and blocks are added from the first to the last.
template <int Q>
struct Held<Q, BlockQ8_0> {
    int low[Q], high[Q];

    __device__ inline void load(const Queries<Q> &queries) {
#pragma unroll
        for (int t = 0; t < Q; t++) {
            const i8 *q = queries.q8[t].qs + 8 * lane_of();
            low[t] = word_at(q), high[t] = word_at(q + 4);
        }
    }

    __device__ inline void scores(const BlockQ8_0 *keys, int dim, int i, int last, float scale,
                                  Queries<Q> &queries) const {
        int lane = lane_of(), blocks = dim / 32, b = lane / 4;
        int v[8] = {};
        if (b < blocks) {
#pragma unroll
            for (int k = 0; k < 8 / Q; k++) {
                // Blocks of 34 bytes: only pairs of bytes are aligned.
                const u16 *pairs = (const u16 *)keys[(u64)min(i + k, last) * blocks + b].qs + lane % 4 * 4;
                int first = pairs[0] | pairs[1] << 16, second = pairs[2] | pairs[3] << 16;
#pragma unroll
                for (int t = 0; t < Q; t++) v[k * Q + t] = __dp4a(second, high[t], __dp4a(first, low[t], 0));
            }
        }
        // Four lanes have a block: halved twice, and two of the eight sums are left for each of them.
#pragma unroll
        for (int bit = 1, n = 4; bit < 4; bit *= 2, n /= 2) {
            bool upper = lane & bit;
#pragma unroll
            for (int j = 0; j < n; j++) {
                int mine = upper ? v[j + n] : v[j], theirs = upper ? v[j] : v[j + n];
                v[j] = mine + __shfl_xor_sync(~0u, theirs, bit);
            }
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int number = (lane & 1) * 4 + (lane & 2) + j, k = number / Q, t = number % Q;
            float part = 0.0f, mine = b < blocks ? from_f16(keys[(u64)min(i + k, last) * blocks + b].d) * (float)v[j] *
                                                       queries.q8[t].d[b]
                                                 : 0.0f;
            for (int from = 0; from < blocks; from++) part += __shfl_sync(~0u, mine, 4 * from + lane % 4);
            if (lane < 4 && i + k <= last) queries.scores[i * Q + number] = part * scale;
        }
    }
};

__device__ inline float mixed(const u16 *values, int dim, int i, int d, float p) {
    return p * from_f16(values[(u64)i * dim + d]);
}

__device__ inline float mixed(const BlockQ8_0 *values, int dim, int i, int d, float p) {
    const BlockQ8_0 &block = values[((u64)i * dim + d) / 32];
    return p * from_f16(block.d) * (float)block.qs[d % 32];
}

// Brings `count` queries, from the first on, to where a block works on them.
template <int Q>
__device__ inline void load_queries(const float *from, int width, int dim, int count, Queries<Q> &queries) {
    for (int i = threadIdx.x; i < Q * MOST_DIM; i += BLOCK) {
        int t = i / MOST_DIM, d = i % MOST_DIM;
        queries.q[t][d] = t < count && d < dim ? from[(u64)t * width + d] : 0.0f;
    }
    __syncthreads();
}

template <int Q>
__device__ inline void quantize_queries(const BlockQ8_0 *, Queries<Q> &queries) {
    for (int t = warp_of(); t < Q; t += WARPS)
        quantize_block([&](int d) { return queries.q[t][d]; }, queries.q8, t, 32);
    __syncthreads();
}
template <int Q>
__device__ inline void quantize_queries(const u16 *, Queries<Q> &) {}

// One span of a head whose keys and values are given from the span's first position on; the first query sees `visible`
// of its positions and those behind it, each other one more. Leaves max and sum in `queries`, and returns the thread's
// column of the mix in y.
template <int Q, class Cache>
__device__ inline void attend_span(const Cache *keys, const Cache *values, int dim, int visible, int count,
                                   Queries<Q> &queries, float (&y)[Q]) {
    int lane = lane_of(), d = threadIdx.x;
    if (d < Q) queries.seen[d] = d < count ? min(max(visible + d, 0), SPAN) : 0;
    __syncthreads();
    int n = queries.seen[count - 1];
    float scale = 1.0f / sqrtf((float)dim);
    Held<Q, Cache> held;
    held.load(queries);
    for (int i = warp_of() * (8 / Q); i < n; i += WARPS * (8 / Q)) held.scores(keys, dim, i, n - 1, scale, queries);
    __syncthreads();
    for (int t = warp_of(); t < Q; t += WARPS) {
        int seen = queries.seen[t];
        float most = NOTHING, sum = 0.0f;
        for (int i = lane; i < seen; i += WARP) most = fmaxf(most, queries.scores[i * Q + t]);
        most = max_lanes(most);
        for (int i = lane; i < seen; i += WARP) {
            float e = weight_of(queries.scores[i * Q + t] - most);
            queries.scores[i * Q + t] = e;
            sum += e;
        }
        sum = sum_lanes(sum);
        if (lane == 0) queries.max[t] = most, queries.sum[t] = sum;
    }
    __syncthreads();
    for (int t = 0; t < Q; t++) y[t] = 0.0f;
    if (d >= dim) return;
    // What all see, and then the last positions, which only the later ones see.
    int common = queries.seen[0];
#pragma unroll 8
    for (int i = 0; i < common; i++) {
        for (int t = 0; t < Q; t++) {
            if (t < count) y[t] += mixed(values, dim, i, d, queries.scores[i * Q + t]);
        }
    }
    for (int i = common; i < n; i++) {
        for (int t = 0; t < Q; t++) {
            if (i < queries.seen[t]) y[t] += mixed(values, dim, i, d, queries.scores[i * Q + t]);
        }
    }
}

// Entries of the cache's type in which a page counts.
template <class Cache>
__device__ inline u64 behind(int heads, int dim) {
    return values_behind(heads, dim) / (sizeof(Cache) == sizeof(BlockQ8_0) ? 32 : 1);
}

// The keys of a head in a page.
template <class Cache>
__device__ inline const Cache *head_of(const PageTable *pages, int stride, int sequence, int page, int layer, int head,
                                       int heads, int dim) {
    u64 at = keys_at(layer, head, heads, dim) / (sizeof(Cache) == sizeof(BlockQ8_0) ? 32 : 1);
    return page_of<Cache>(pages, stride, sequence, page) + at;
}

// A span of a head and a query: the mix, its largest score, and the sum of its weights.
template <class Cache>
__device__ void attend_spans(const float *from, const PageTable *pages, const Row *rows, float *partials, int layer,
                             int heads, int dim, int stride, int spans, Queries<1> &queries) {
    int head = blockIdx.x, span = blockIdx.y, t = blockIdx.z, d = threadIdx.x;
    float *partial = partials + (((u64)t * heads + head) * spans + span) * (dim + 2);
    int visible = rows[t].position + 1 - span * SPAN;
    if (visible <= 0) {
        if (d == 0) partial[dim] = NOTHING, partial[dim + 1] = 0.0f;
        return;
    }
    const Cache *keys = head_of<Cache>(pages, stride, rows[t].sequence, span, layer, head, heads, dim);
    float y[1];
    load_queries(from + (u64)t * heads * dim + head * dim, heads * dim, dim, 1, queries);
    quantize_queries(keys, queries);
    attend_span<1>(keys, keys + behind<Cache>(heads, dim), dim, visible, 1, queries, y);
    if (d < dim) partial[d] = y[0];
    if (d == 0) partial[dim] = queries.max[0], partial[dim + 1] = queries.sum[0];
}

// Two parts of a query put together, `other` being of later positions; a part that saw nothing changes nothing.
struct Part {
    float y, max, sum;
};
__device__ inline void join(Part &mine, const Part &other) {
    if (other.sum == 0.0f) return;
    float most = fmaxf(mine.max, other.max), a = exp_(mine.max - most), b = exp_(other.max - most);
    mine = {mine.y * a + other.y * b, most, mine.sum * a + other.sum * b};
}

KERNEL __launch_bounds__(BLOCK, 2)
    attend_join(const float *partials, float *out, const Row *rows, int heads, int dim, int spans) {
    int head = blockIdx.x, t = blockIdx.y, d = threadIdx.x;
    if (d >= dim) return;
    const float *partial = partials + ((u64)t * heads + head) * spans * (dim + 2);
    int seen = min(spans, rows[t].position / SPAN + 1);
    Part all = {partial[d], partial[dim], partial[dim + 1]};
    for (int s = 1; s < seen; s++) {
        const float *other = partial + (u64)s * (dim + 2);
        join(all, Part{other[d], other[dim], other[dim + 1]});
    }
    out[((u64)t * heads + head) * dim + d] = all.y / all.sum;
}

// Up to eight queries of a head, of one sequence and one behind the other, over all the spans that they see: `groups`
// says where the first of them lies and how many they are.
template <class Cache>
__device__ void attend_many(const float *from, const PageTable *pages, const Row *rows, const int *groups, float *out,
                            int layer, int heads, int dim, int stride, Queries<8> &queries) {
    int head = blockIdx.x, first = groups[2 * blockIdx.y], d = threadIdx.x, width = heads * dim;
    // The least is what it is anyway: a compiler that knows it unrolls, and keeps all parts in registers.
    int count = min(8, groups[2 * blockIdx.y + 1]), sequence = rows[first].sequence;
    load_queries(from + (u64)first * width + head * dim, width, dim, count, queries);
    quantize_queries((const Cache *)0, queries);
    Part all[8];
    int visible = rows[first].position + 1;
    for (int span = 0; span * SPAN < visible + count - 1; span++) {
        const Cache *keys = head_of<Cache>(pages, stride, sequence, span, layer, head, heads, dim);
        float y[8];
        attend_span<8>(keys, keys + behind<Cache>(heads, dim), dim, visible - span * SPAN, count, queries, y);
        for (int t = 0; t < 8; t++) {
            Part part = {y[t], queries.max[t], queries.sum[t]};
            if (span == 0) all[t] = part;
            else join(all[t], part);
        }
        __syncthreads();
    }
    for (int t = 0; t < count && d < dim; t++) out[(u64)(first + t) * width + head * dim + d] = all[t].y / all[t].sum;
}

#define ATTEND(name, Cache)                                                                                            \
    KERNEL __launch_bounds__(BLOCK, 2)                                                                                 \
        attend_spans_##name(const float *queries, const PageTable *pages, const Row *rows, float *partials, int layer, \
                            int heads, int dim, int stride, int spans) {                                               \
        __shared__ Queries<1> shared;                                                                                  \
        attend_spans<Cache>(queries, pages, rows, partials, layer, heads, dim, stride, spans, shared);                 \
    }                                                                                                                  \
    KERNEL __launch_bounds__(BLOCK, 2)                                                                                 \
        attend_many_##name(const float *queries, const PageTable *pages, const Row *rows, const int *groups,           \
                           float *out, int layer, int heads, int dim, int stride) {                                    \
        __shared__ Queries<8> shared;                                                                                  \
        attend_many<Cache>(queries, pages, rows, groups, out, layer, heads, dim, stride, shared);                      \
    }
ATTEND(f16, u16)
ATTEND(q8_0, BlockQ8_0)
