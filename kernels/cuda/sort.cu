// Slots by expert: a counting sort in one block. A warp counts, and then places, the slots of one expert after another;
// slots stay in order.
#include "common.cuh"

KERNEL __launch_bounds__(BLOCK) sort_slots(const int *experts, int *starts, int *order, int slots, int count) {
    __shared__ int first[257];
    int lane = lane_of();
    for (int e = warp_of(); e < count; e += WARPS) {
        int n = 0;
        for (int s = 0; s < slots; s += WARP)
            n += __popc(__ballot_sync(~0u, s + lane < slots && experts[s + lane] == e));
        if (lane == 0) first[e + 1] = n;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        first[0] = 0;
        for (int e = 0; e < count; e++) first[e + 1] += first[e];
    }
    __syncthreads();
    for (int e = threadIdx.x; e <= count; e += BLOCK) starts[e] = first[e];
    for (int e = warp_of(); e < count; e += WARPS) {
        int at = first[e];
        for (int s = 0; s < slots; s += WARP) {
            bool mine = s + lane < slots && experts[s + lane] == e;
            unsigned all = __ballot_sync(~0u, mine);
            if (mine) order[at + __popc(all & ((1u << lane) - 1))] = s + lane;
            at += __popc(all);
        }
    }
}
