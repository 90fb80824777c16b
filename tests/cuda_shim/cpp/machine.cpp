// Blocks one after another, threads as fibers of the thread that launches: a fiber runs until it waits for a barrier,
// of its block or of its warp.
#include "machine.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>

#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

struct ShimIndex {
    unsigned x, y, z;
};
struct ShimKernel {
    const char *name, *kinds;
    void (*call)(const char *slots);
};

Running running;
uintptr_t stacks_begin, stacks_end;

namespace {
const size_t STACK = 64 << 10, MOST_THREADS = 1024, DYNAMIC = 48 << 10;
__attribute__((section("yuan_shared"))) char dynamic_shared[DYNAMIC] __attribute__((aligned(16))) = {1};

// Those who wait, and how many it takes.
struct Barrier {
    unsigned expected = 0;
    std::vector<Fiber *> waiting;
};
struct Warp {
    Barrier barrier;
    // What lanes show each other: two, used in turn, since a lane may come to the next exchange before another has read
    // the last.
    uint64_t shown[2][32][6];
    unsigned turn = 0, kind = 0;
};
enum Kind { SYNC = 1, EXCHANGE, BALLOT, MMA };

std::vector<Fiber> fibers(MOST_THREADS);
std::vector<Fiber *> ready;
size_t next_ready;
Barrier block_barrier;
Warp warps[32];
unsigned threads, ended;
void *main_stack;
const ShimKernel *kernel;
char *slots;
std::string problem;

#ifdef __x86_64__
extern "C" void shim_switch(void **from, void *to);
asm(".text\n.globl shim_switch\nshim_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
void *fresh_stack(char *stack, void (*entry)()) {
    auto top = (uintptr_t *)(stack + STACK);
    *--top = 0;
    *--top = (uintptr_t)entry;
    for (int i = 0; i < 6; i++) *--top = 0;
    return top;
}
#else
ucontext_t contexts[MOST_THREADS + 1];
void shim_switch(void **from, void *to) {
    auto here = from == &main_stack
                    ? &contexts[MOST_THREADS]
                    : &contexts[(Fiber *)((char *)from - offsetof(Fiber, stack_pointer)) - fibers.data()];
    *from = here;
    swapcontext(here, (ucontext_t *)to);
}
void *fresh_stack(char *stack, void (*entry)()) {
    ucontext_t *context = &contexts[(stack - (char *)stacks_begin) / STACK];
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

void wake(Barrier &barrier) {
    ready.insert(ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
}

// Goes on with another fiber. Where none can run, the threads that are left wait for each other.
void switch_away(void **from) {
    if (next_ready < ready.size()) {
        running.fiber = ready[next_ready++];
        if (next_ready == ready.size()) ready.clear(), next_ready = 0;
        shim_switch(from, running.fiber->stack_pointer);
        return;
    }
    if (ended < threads) {
        char text[160];
        snprintf(text, sizeof text,
                 "a barrier that not all threads reach: %zu of %u threads wait at __syncthreads, the others in a warp",
                 block_barrier.waiting.size(), threads - ended);
        fail(text);
    }
    shim_switch(from, main_stack);
}

// Waits for all `expected`; the last to come goes on, and says so.
bool wait(Barrier &barrier) {
    if (barrier.waiting.size() + 1 == barrier.expected) {
        wake(barrier);
        return true;
    }
    barrier.waiting.push_back(running.fiber);
    switch_away(&running.fiber->stack_pointer);
    return false;
}

Warp &warp() { return warps[running.fiber->number / 32]; }

// All lanes of the warp come together for one kind of thing; returns the set of what they show.
uint64_t (*meet(unsigned mask, unsigned kind, const uint64_t *values, size_t n))[6] {
    Warp &w = warp();
    if (mask != ~0u) fail("a partial mask of a warp, which is not emulated");
    if (w.barrier.expected != 32) fail("a warp meets, of which some threads have ended or never were");
    if (!w.barrier.waiting.empty() && w.kind != kind) fail("threads of one warp meet for different operations");
    w.kind = kind;
    auto shown = w.shown[w.turn];
    if (n) memcpy(shown[running.fiber->number % 32], values, n * sizeof *values);
    if (w.barrier.waiting.size() + 1 == w.barrier.expected) {
        w.turn ^= 1;
        if (kind == SYNC) running.warp_epoch[running.fiber->number / 32]++;
    }
    wait(w.barrier);
    return shown;
}

void thread_main() {
    kernel->call(slots);
    Fiber *fiber = running.fiber;
    fiber->ended = true;
    ended++;
    if (!block_barrier.waiting.empty())
        fail("a barrier that not all threads reach: this thread ended, others wait at __syncthreads");
    Barrier &barrier = warp().barrier;
    if (!barrier.waiting.empty()) fail("this thread ended while its warp meets");
    barrier.expected--;
    switch_away(&fiber->stack_pointer);
}

void run_block(const unsigned (&block)[3]) {
    running.begun = ++running.epoch;
    block_barrier.waiting.clear();
    ready.clear();
    next_ready = 0;
    ended = 0;
    for (unsigned w = 0; w < (threads + 31) / 32; w++) {
        warps[w].barrier.waiting.clear();
        warps[w].barrier.expected = threads - 32 * w < 32 ? threads - 32 * w : 32;
    }
    for (unsigned i = 0; i < threads; i++) {
        Fiber &f = fibers[i];
        f = {fresh_stack((char *)stacks_begin + i * STACK, thread_main),
             i,
             i % block[0],
             i / block[0] % block[1],
             i / (block[0] * block[1]),
             false};
        ready.push_back(&f);
    }
    switch_away(&main_stack);
}
}  // namespace

void fail(const std::string &what) {
    if (problem.empty()) {
        const Fiber &f = *running.fiber;
        char place[256];
        snprintf(place, sizeof place, "%s, block (%u, %u, %u), thread (%u, %u, %u): ", running.kernel, running.block[0],
                 running.block[1], running.block[2], f.x, f.y, f.z);
        problem = place + what;
    }
    void *left;
#ifdef __x86_64__
    shim_switch(&left, main_stack);
#else
    setcontext((ucontext_t *)main_stack);
#endif
    __builtin_unreachable();
}

extern "C" {
ShimIndex shim_thread() { return {running.fiber->x, running.fiber->y, running.fiber->z}; }
ShimIndex shim_block() { return {running.block[0], running.block[1], running.block[2]}; }
int shim_lane() { return running.fiber->number % 32; }
void *shim_dynamic_shared() { return dynamic_shared; }

void shim_sync_block() {
    if (ended) fail("a barrier that not all threads reach: some have ended");
    if (block_barrier.waiting.size() + 1 == threads) running.epoch++;
    wait(block_barrier);
}

void shim_sync_warp(unsigned mask) { meet(mask, SYNC, nullptr, 0); }

unsigned long long shim_exchange(unsigned mask, unsigned long long value, int from) {
    uint64_t shown = value;
    return meet(mask, EXCHANGE, &shown, 1)[from][0];
}

unsigned shim_ballot(unsigned mask, int predicate) {
    uint64_t shown = predicate != 0;
    auto all = meet(mask, BALLOT, &shown, 1);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (unsigned)all[i][0] << i;
    return bits;
}

// The tables of the PTX manual, "Matrix fragments for mma.m16n8k32" with .s8: which lane, register and byte has an
// element.
void shim_mma_m16n8k32(int *c, const int *a, const int *b) {
    uint64_t shown[6];
    for (int i = 0; i < 4; i++) shown[i] = (uint32_t)a[i];
    for (int i = 0; i < 2; i++) shown[4 + i] = (uint32_t)b[i];
    auto all = meet(~0u, MMA, shown, 6);
    int lane = shim_lane();
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 32; k++) {
            auto left = (int8_t)(all[row % 8 * 4 + k % 16 / 4][(row >= 8) + 2 * (k >= 16)] >> 8 * (k % 4));
            auto right = (int8_t)(all[column * 4 + k % 16 / 4][4 + (k >= 16)] >> 8 * (k % 4));
            c[i] += left * right;
        }
    }
}

// The same for mma.m8n8k16.
void shim_mma_m8n8k16(int *c, int a, int b) {
    const uint64_t shown[2] = {(uint32_t)a, (uint32_t)b};
    auto all = meet(~0u, MMA, shown, 2);
    int lane = shim_lane();
    for (int i = 0; i < 2; i++) {
        int row = lane / 4, column = lane % 4 * 2 + i;
        for (int k = 0; k < 16; k++) {
            auto left = (int8_t)(all[row * 4 + k / 4][0] >> 8 * (k % 4)),
                 right = (int8_t)(all[column * 4 + k / 4][1] >> 8 * (k % 4));
            c[i] += left * right;
        }
    }
}

float shim_from_f16(unsigned short bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float x = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                             : ldexpf(fraction, -24);
    return bits & 0x8000 ? -x : x;
}

unsigned short shim_to_f16(float x) {
    unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return sign | 0x7e00;
    float size = fabsf(x);
    // Half a step above the largest number, and all that follows, is infinite.
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | (unsigned short)nearbyintf(ldexpf(size, 24));
    int exponent;
    frexpf(size, &exponent);
    // A fraction that rounds up to 2048 carries into the exponent.
    return sign | (unsigned short)(((exponent + 13) << 10) + (int)nearbyintf(ldexpf(size, 11 - exponent)));
}

// Runs all blocks. Returns null, or what went wrong, until the next launch. One launch at a time.
const char *shim_launch(const ShimKernel *which, const unsigned *grid, const unsigned *block, unsigned shared,
                        void **args) {
    if (!stacks_begin) {
        size_t bytes = (MOST_THREADS + 1) * STACK;
        void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return "no memory for the stacks of threads";
        stacks_begin = (uintptr_t)at, stacks_end = stacks_begin + bytes;
        slots = (char *)stacks_begin + MOST_THREADS * STACK;
    }
    threads = block[0] * block[1] * block[2];
    if (threads < 1 || threads > MOST_THREADS) return "a block has 1 to 1024 threads";
    if (shared > DYNAMIC) return "more dynamic shared memory than every device has";
    kernel = which;
    running.kernel = which->name;
    problem.clear();
    block_barrier.expected = threads;
    for (size_t i = 0; which->kinds[i]; i++) memcpy(slots + 8 * i, args[i], which->kinds[i] == 'p' ? 8 : 4);
    const unsigned shape[3] = {block[0], block[1], block[2]};
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                running.block[0] = x, running.block[1] = y, running.block[2] = z;
                run_block(shape);
                if (!problem.empty()) return problem.c_str();
            }
        }
    }
    return nullptr;
}
}
