// Every load and store of the kernels is looked at: they are compiled as for the thread sanitizer, whose functions
// these are.
//
// Global memory is what was registered. Shared memory is one section of statics; of each of its bytes is known who
// wrote and who read it since the last barrier, so that a missing barrier is found whatever the order in which fibers
// run, and that nothing is read which the block has not written.
#include "machine.h"

#include <cinttypes>
#include <cstdio>
#include <map>
#include <vector>

extern char __start_yuan_shared[], __stop_yuan_shared[];

namespace {
std::map<uintptr_t, size_t> regions;
uintptr_t last_begin, last_end;

struct Access {
    uint64_t epoch = 0, warp_epoch = 0;
    unsigned thread = 0;
    // Whether another thread may do something to the same byte now that conflicts with this access.
    bool conflicts() const {
        unsigned me = running.fiber->number;
        if (epoch != running.epoch || thread == me) return false;
        return thread / 32 != me / 32 || warp_epoch == running.warp_epoch[me / 32];
    }
    static Access now() {
        return {running.epoch, running.warp_epoch[running.fiber->number / 32], running.fiber->number};
    }
};
// The last write, and the reads of two different threads.
struct Shadow {
    Access write, read, other_read;
};
std::vector<Shadow> shadows;

void fail_at(const char *what, uintptr_t address, size_t size) {
    char text[200];
    snprintf(text, sizeof text, "%s of %zu bytes at 0x%" PRIxPTR, what, size, address);
    fail(text);
}

void look_at_shared(uintptr_t address, size_t size, bool write) {
    auto begin = (uintptr_t)__start_yuan_shared;
    if (shadows.empty()) shadows.resize((uintptr_t)__stop_yuan_shared - begin);
    for (size_t i = 0; i < size; i++) {
        Shadow &s = shadows[address - begin + i];
        if (!write && s.write.epoch < running.begun)
            fail_at("shared memory is read that no thread of the block has written: a load", address, size);
        if (s.write.conflicts() || (write && (s.read.conflicts() || s.other_read.conflicts()))) {
            fail_at("a race in shared memory, no barrier stands between two threads' accesses: an access", address,
                    size);
        }
        if (write) {
            s.write = Access::now();
        } else if (s.read.epoch != running.epoch || s.read.thread == running.fiber->number) {
            s.read = Access::now();
        } else {
            s.other_read = Access::now();
        }
    }
}

void look_at(uintptr_t address, size_t size, bool write) {
    uintptr_t end = address + size;
    if (address >= stacks_begin && end <= stacks_end) return;
    if (address >= (uintptr_t)__start_yuan_shared && end <= (uintptr_t)__stop_yuan_shared)
        return look_at_shared(address, size, write);
    if (address >= last_begin && end <= last_end) return;
    auto after = regions.upper_bound(address);
    if (after != regions.begin()) {
        auto region = std::prev(after);
        if (address - region->first < region->second && end - region->first <= region->second) {
            last_begin = region->first, last_end = region->first + region->second;
            return;
        }
    }
    fail_at(write ? "out of bounds: a store" : "out of bounds: a load", address, size);
}
}  // namespace

extern "C" {
void shim_register(uintptr_t begin, size_t size) { regions[begin] = size; }

void shim_unregister(uintptr_t begin) {
    regions.erase(begin);
    last_begin = last_end = 0;
}

#define ACCESS(n)                                                               \
    void __tsan_read##n(void *p) { look_at((uintptr_t)p, n, false); }           \
    void __tsan_write##n(void *p) { look_at((uintptr_t)p, n, true); }           \
    void __tsan_unaligned_read##n(void *p) { look_at((uintptr_t)p, n, false); } \
    void __tsan_unaligned_write##n(void *p) { look_at((uintptr_t)p, n, true); } \
    void __tsan_read_write##n(void *p) { look_at((uintptr_t)p, n, true); }      \
    void __tsan_unaligned_read_write##n(void *p) { look_at((uintptr_t)p, n, true); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16) void __tsan_read_range(void *p, size_t n) {
    look_at((uintptr_t)p, n, false);
}
void __tsan_write_range(void *p, size_t n) { look_at((uintptr_t)p, n, true); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// Of -fsanitize=alignment: a GPU takes no misaligned access at all.
void __ubsan_handle_type_mismatch_v1(void *, uintptr_t address) {
    if (address) {
        char text[80];
        snprintf(text, sizeof text, "a misaligned access at 0x%" PRIxPTR, address);
        fail(text);
    }
}
}
