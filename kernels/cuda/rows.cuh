// The rows of a pass: those of one sequence lie side by side, and where one stands is said by four numbers. Keys and
// values lie in pages of 512 positions, which belong to a sequence: [layers][keys, values][heads][PAGE][dim].
#pragma once
#include "blocks.cuh"

const int PAGE = 512;

struct Row {
    // In its sequence, from 0.
    int position;
    // Of the pass, from 0.
    int sequence;
    // Whether it is the first of its sequence: what it needs of the row before comes from an earlier pass.
    int first;
    int unused;
};

// Addresses of pages, [sequences][stride].
typedef u64 PageTable;

template <class Cache>
__device__ inline Cache *page_of(const PageTable *pages, int stride, int sequence, int page) {
    return (Cache *)pages[(u64)sequence * stride + page];
}

// The number of the first entry of a head's keys in a page; its values are `values_behind` entries further on.
__device__ inline u64 keys_at(int layer, int head, int heads, int dim) {
    return ((u64)2 * layer * heads + head) * PAGE * dim;
}
__device__ inline u64 values_behind(int heads, int dim) { return (u64)heads * PAGE * dim; }
