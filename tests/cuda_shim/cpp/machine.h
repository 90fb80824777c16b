// What the parts of the emulator know of each other.
#pragma once
#include <cstdint>
#include <string>

// One thread of a block.
struct Fiber {
    void *stack_pointer;
    unsigned number, x, y, z;
    bool ended;
};

// The block that runs, or none.
struct Running {
    const char *kernel = nullptr;
    unsigned block[3] = {0, 0, 0};
    Fiber *fiber = nullptr;
    // Counts the blocks and the barriers of blocks since the start: two accesses of one count have no barrier between
    // them.
    uint64_t epoch = 0;
    // The count at which the block began.
    uint64_t begun = 0;
    // The same for the barriers of each warp.
    uint64_t warp_epoch[32] = {};
};
extern Running running;

// Ends the launch with a message about what the running thread did. Does not return.
[[noreturn]] void fail(const std::string &what);

// Where the stacks of all fibers and the kernels' parameters lie.
extern uintptr_t stacks_begin, stacks_end;
