// Routed experts of a few tokens: every slot (a choice of a token) has blocks of its own, so both experts of a token
// run together. Slots of one expert lie beside each other in the grid and share its panels in the L2 cache. An expert
// that is not in device memory (0 in the table) is skipped: the host computes it.
#include "few.cuh"

// A tile: 16 groups of a row of gate panels and a row of up panels, then a down panel for every 16 outputs.
template <class Panel>
__device__ inline const Panel *tile_of(const u64 *table, int expert, int tile, int hidden) {
    const Panel *first = (const Panel *)table[expert];
    return first ? first + (u64)tile * (32 * (hidden / 256) + hidden / 16) : nullptr;
}

// h = silu(gate) * up of sixteen neurons.
template <class Panel>
__device__ void gate_up(const u64 *table, const int *experts, const BlockOf<Panel> *x, float *h, int used, int hidden,
                        int tiles, Parts<1> &parts) {
    int slot = blockIdx.x, group = blockIdx.y, width = hidden / 256;
    const Panel *tile = tile_of<Panel>(table, experts[slot], group / 16, hidden);
    if (!tile) return;
    float sums[2];
    sum_panels<1>(tile + group % 16 * 2 * width, 1, 2 * width, x + (u64)(slot / used) * width, width, 1, parts, sums);
    if (threadIdx.x < 16) h[((u64)slot * tiles * 16 + group) * 16 + threadIdx.x] = silu(sums[0]) * sums[1];
}

// Sixteen outputs, tile after tile.
template <class Panel>
__device__ void down(const u64 *table, const int *experts, const BlockOf<Panel> *h, float *out, int hidden, int tiles,
                     Parts<1> &parts) {
    int slot = blockIdx.x, group = blockIdx.y, width = hidden / 256;
    const Panel *tile = tile_of<Panel>(table, experts[slot], 0, hidden);
    if (!tile) return;
    float sums[2];
    sum_panels<1>(tile + 32 * width + group, 32 * width + hidden / 16, tiles, h + (u64)slot * tiles, tiles, 1, parts,
                  sums);
    if (threadIdx.x < 16) out[(u64)slot * hidden + 16 * group + threadIdx.x] = sums[0];
}

#define EXPERTS(name, Panel)                                                                                        \
    KERNEL __launch_bounds__(BLOCK, 2) expert_gate_up_##name(                                                       \
        const u64 *table, const int *experts, const BlockOf<Panel> *x, float *h, int used, int hidden, int tiles) { \
        __shared__ Parts<1> parts;                                                                                  \
        gate_up<Panel>(table, experts, x, h, used, hidden, tiles, parts);                                           \
    }                                                                                                               \
    KERNEL __launch_bounds__(BLOCK, 2) expert_down_##name(                                                          \
        const u64 *table, const int *experts, const BlockOf<Panel> *h, float *out, int hidden, int tiles) {         \
        __shared__ Parts<1> parts;                                                                                  \
        down<Panel>(table, experts, h, out, hidden, tiles, parts);                                                  \
    }
EXPERTS(q4_0, PanelQ4_0)
EXPERTS(q4_k, PanelQ4K)
EXPERTS(q3_k, PanelQ3K)
EXPERTS(q6_k, PanelQ6K)
EXPERTS(q8_0, PanelQ8_0)
