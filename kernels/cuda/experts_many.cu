// Routed experts of a batch. Slots are sorted by expert (sort.cu), a block takes up to 32 slots of one expert, and
// reads their activations where they lie. Blocks find their expert by themselves: there are as many as there could be
// at most, and those behind the last end at once.
#include "many.cuh"

// The expert of the y-th 32 slots, and its slots order[first..end].
__device__ inline bool find_slots(const int *starts, int experts, int y, int &expert, int &first, int &end) {
    for (expert = 0; expert < experts; expert++) {
        end = starts[expert + 1];
        int blocks = (end - starts[expert] + TOKENS - 1) / TOKENS;
        if (y < blocks) {
            first = starts[expert] + y * TOKENS;
            return true;
        }
        y -= blocks;
    }
    return false;
}

template <class Panel>
__device__ void gate_up_many(const u64 *table, const int *starts, const int *order, const BlockOf<Panel> *x, float *h,
                             int used, int hidden, int tiles, int experts, Staged<BlockOf<Panel>> &staged) {
    int expert, first, end, width = hidden / 256;
    if (!find_slots(starts, experts, blockIdx.y, expert, first, end) || !table[expert]) return;
    int group = blockIdx.x * MANY_WARPS + threadIdx.x / WARP, at = first + threadIdx.x / 4;
    const Panel *tile = (const Panel *)table[expert] + (u64)(group / 16) * (32 * width + hidden / 16);
    const Panel *gate = tile + group % 16 * 2 * width;
    const Panel *const panels[2] = {gate, gate + width};
    Sums sums[2] = {};
    add_panels<2>(panels, 1, width, at < end ? x + (u64)(order[at] / used) * width : nullptr, staged, sums);
    each_sum([&](int e, int q) {
        int i = first + token_of(e, q);
        if (i < end) h[((u64)order[i] * tiles * 16 + group) * 16 + row_of(q)] = silu(sums[0][e][q]) * sums[1][e][q];
    });
}

template <class Panel>
__device__ void down_many(const u64 *table, const int *starts, const int *order, const BlockOf<Panel> *h, float *out,
                          int hidden, int tiles, int experts, Staged<BlockOf<Panel>> &staged) {
    int expert, first, end, width = hidden / 256;
    if (!find_slots(starts, experts, blockIdx.y, expert, first, end) || !table[expert]) return;
    int group = blockIdx.x * MANY_WARPS + threadIdx.x / WARP, at = first + threadIdx.x / 4;
    const Panel *const panels[1] = {16 * group < hidden ? (const Panel *)table[expert] + 32 * width + group : nullptr};
    Sums sums[1] = {};
    add_panels<1>(panels, 32 * width + hidden / 16, tiles, at < end ? h + (u64)order[at] * tiles : nullptr, staged,
                  sums);
    if (!panels[0]) return;
    each_sum([&](int e, int q) {
        int i = first + token_of(e, q);
        if (i < end) out[(u64)order[i] * hidden + 16 * group + row_of(q)] = sums[0][e][q];
    });
}

#define EXPERTS_MANY(name, Panel)                                                                                  \
    KERNEL __launch_bounds__(MANY_BLOCK, 3)                                                                        \
        expert_gate_up_many_##name(const u64 *table, const int *starts, const int *order, const BlockOf<Panel> *x, \
                                   float *h, int used, int hidden, int tiles, int experts) {                       \
        __shared__ Staged<BlockOf<Panel>> staged;                                                                  \
        gate_up_many<Panel>(table, starts, order, x, h, used, hidden, tiles, experts, staged);                     \
    }                                                                                                              \
    KERNEL __launch_bounds__(MANY_BLOCK, 3)                                                                        \
        expert_down_many_##name(const u64 *table, const int *starts, const int *order, const BlockOf<Panel> *h,    \
                                float *out, int hidden, int tiles, int experts) {                                  \
        __shared__ Staged<BlockOf<Panel>> staged;                                                                  \
        down_many<Panel>(table, starts, order, h, out, hidden, tiles, experts, staged);                            \
    }
EXPERTS_MANY(q4_0, PanelQ4_0)
EXPERTS_MANY(q4_k, PanelQ4K)
EXPERTS_MANY(q3_k, PanelQ3K)
EXPERTS_MANY(q6_k, PanelQ6K)
EXPERTS_MANY(q8_0, PanelQ8_0)
