// c += a b for a 16 x 32 matrix a and a 32 x 8 matrix b of signed bytes: one sub-block of a panel times eight tokens.
//
// With g = lane / 4 and i = lane % 4 a lane has
//   a[0], a[1]: rows g, g + 8, columns 4 i..4 i + 4      a[2], a[3]: the same rows, columns 16 + 4 i..   (a word of a
//   panel's line i) b[0], b[1]: column g, rows 4 i..4 i + 4 and 16 + 4 i.. c[0], c[1]: row g, columns 2 i, 2 i + 1
//   c[2], c[3]: row g + 8
#pragma once
#include "common.cuh"

__device__ inline void mma(int (&c)[4], const int (&a)[4], const int (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    shim_mma_m16n8k32(c, a, b);
#endif
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    // Turing multiplies 8 rows with 16 columns: its fragments are parts of the same ones.
    for (int i = 0; i < 4; i++) {
        int *half = c + i / 2 * 2;
#ifdef __CUDACC__
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+r"(half[0]), "+r"(half[1])
            : "r"(a[i / 2 + i % 2 * 2]), "r"(b[i % 2]));
#else
        shim_mma_m8n8k16(half, a[i / 2 + i % 2 * 2], b[i % 2]);
#endif
    }
#else
    // Without tensor cores: the lanes of a row and of a column show each other their words.
    int lane = lane_of(), g = lane / 4, i = lane % 4;
    for (int k = 0; k < 4; k++) {
        int rows[4], low[2], high[2];
        for (int j = 0; j < 4; j++) rows[j] = __shfl_sync(~0u, a[j], 4 * g + k);
        for (int j = 0; j < 2; j++) {
            low[j] = __shfl_sync(~0u, b[0], 4 * (2 * i + j) + k);
            high[j] = __shfl_sync(~0u, b[1], 4 * (2 * i + j) + k);
        }
        for (int j = 0; j < 4; j++) {
            c[j] = __dp4a(rows[j / 2], low[j % 2], c[j]);
            c[j] = __dp4a(rows[2 + j / 2], high[j % 2], c[j]);
        }
    }
#endif
}
