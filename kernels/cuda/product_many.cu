// Matrices in panels times many tokens, plus a bias.
#include "many.cuh"

template <class Panel>
__device__ void product_many(const Panel *w, const BlockOf<Panel> *x, const float *bias, float *out, int rows, int cols,
                             int tokens, Staged<BlockOf<Panel>> &staged) {
    int width = cols / 256, group = blockIdx.x * MANY_WARPS + threadIdx.x / WARP, first = blockIdx.y * TOKENS;
    int token = first + threadIdx.x / 4;
    const Panel *const panels[1] = {16 * group < rows ? w + (u64)group * width : nullptr};
    Sums sums[1] = {};
    add_panels<1>(panels, 1, width, token < tokens ? x + (u64)token * width : nullptr, staged, sums);
    if (!panels[0]) return;
    each_sum([&](int e, int q) {
        int t = first + token_of(e, q), row = 16 * group + row_of(q);
        if (t < tokens) out[(u64)t * rows + row] = bias ? sums[0][e][q] + bias[row] : sums[0][e][q];
    });
}

#define PRODUCT_MANY(name, Panel)                                                                                 \
    KERNEL __launch_bounds__(MANY_BLOCK, 3) product_##name##_many(                                                \
        const Panel *w, const BlockOf<Panel> *x, const float *bias, float *out, int rows, int cols, int tokens) { \
        __shared__ Staged<BlockOf<Panel>> staged;                                                                 \
        product_many(w, x, bias, out, rows, cols, tokens, staged);                                                \
    }
PRODUCT_MANY(q8_0, PanelQ8_0)
PRODUCT_MANY(q4_0, PanelQ4_0)
PRODUCT_MANY(q4_k, PanelQ4K)
PRODUCT_MANY(q3_k, PanelQ3K)
PRODUCT_MANY(q6_k, PanelQ6K)
