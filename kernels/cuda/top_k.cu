// The k largest of each chunk of 4096 numbers, best first, equals by place. A chosen number is not taken out: the next
// one is the best of those that come after it in the order.
#include "common.cuh"

const int CHUNK = 4096;

// Larger is better: the value's order above the place's. 0 is worse than all.
__device__ inline u64 rank_of(float x, int place) {
    return (u64)((unsigned)order_of(x) ^ 0x80000000u) << 32 | (unsigned)~place;
}

__device__ inline u64 max_lanes(u64 x) {
    for (int half = 16; half > 0; half /= 2) x = max(x, __shfl_xor_sync(~0u, x, half));
    return x;
}

KERNEL __launch_bounds__(BLOCK) top_k(const float *values, const int *ids, float *best, int *best_ids, int n, int k) {
    __shared__ float chunk[CHUNK];
    __shared__ u64 of_warp[2][WARPS];
    int first = blockIdx.x * CHUNK, here = min(CHUNK, n - first);
    for (int i = threadIdx.x; i < here; i += BLOCK) chunk[i] = values[first + i];
    __syncthreads();
    u64 last = ~0ull;
    for (int round = 0; round < k; round++) {
        u64 found = 0;
        for (int i = threadIdx.x; i < here; i += BLOCK) {
            u64 rank = rank_of(chunk[i], i);
            if (rank < last) found = max(found, rank);
        }
        found = max_lanes(found);
        if (lane_of() == 0) of_warp[round % 2][warp_of()] = found;
        __syncthreads();
        last = max_lanes(of_warp[round % 2][lane_of() % WARPS]);
        if (threadIdx.x == 0) {
            int place = (int)~(unsigned)last;
            best[(u64)blockIdx.x * k + round] = last ? chunk[place] : NOTHING;
            best_ids[(u64)blockIdx.x * k + round] = !last ? -1 : ids ? ids[first + place] : first + place;
        }
    }
}
