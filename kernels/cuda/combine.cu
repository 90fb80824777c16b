// The outputs of a token's experts, each times its weight, added up in the order of the experts' numbers, and then to
// the residual.
#include "common.cuh"

KERNEL __launch_bounds__(BLOCK)
    combine(const float *out, const int *experts, const float *weights, float *x, int hidden, int used) {
    int c = blockIdx.x * BLOCK + threadIdx.x;
    u64 slot = (u64)blockIdx.y * used;
    if (c >= hidden) return;
    float y = 0.0f;
    for (int i = 0, before = -1; i < used; i++) {
        int next = -1;
        for (int j = 0; j < used; j++) {
            if (experts[slot + j] > before && (next < 0 || experts[slot + j] < experts[slot + next])) next = j;
        }
        if (next < 0) break;
        y += weights[slot + next] * out[(slot + next) * hidden + c];
        before = experts[slot + next];
    }
    x[(u64)blockIdx.y * hidden + c] += y;
}
