// Matrices in panels times 1 to 8 tokens, plus a bias. A block has sixteen rows; its warps share out their panels.
#include "few.cuh"

template <int N, class Panel>
__device__ void product(const Panel *w, const BlockOf<Panel> *x, const float *bias, float *out, int rows, int cols,
                        int tokens, Parts<N> &parts) {
    int width = cols / 256, n = threadIdx.x / 16, row = 16 * blockIdx.x + threadIdx.x % 16;
    float sums[2];
    sum_panels<N>(w + (u64)blockIdx.x * width, 1, width, x, width, tokens, parts, sums);
    if (n < tokens) out[(u64)n * rows + row] = bias ? sums[0] + bias[row] : sums[0];
}

#define PRODUCT(name, Panel, N)                                                                                   \
    KERNEL __launch_bounds__(BLOCK, 2) product_##name##_##N(                                                      \
        const Panel *w, const BlockOf<Panel> *x, const float *bias, float *out, int rows, int cols, int tokens) { \
        __shared__ Parts<N> parts;                                                                                \
        product<N>(w, x, bias, out, rows, cols, tokens, parts);                                                   \
    }
#define PRODUCTS(name, Panel) \
    PRODUCT(name, Panel, 1) PRODUCT(name, Panel, 2) PRODUCT(name, Panel, 4) PRODUCT(name, Panel, 8)
PRODUCTS(q8_0, PanelQ8_0)
PRODUCTS(q4_0, PanelQ4_0)
PRODUCTS(q4_k, PanelQ4K)
PRODUCTS(q3_k, PanelQ3K)
PRODUCTS(q6_k, PanelQ6K)
