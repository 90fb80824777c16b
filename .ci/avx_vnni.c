// AVX-VNNI on a CPU without it, to be preloaded: the signal of the unknown instruction is answered by doing what it says.
// Knows vpdpbusd and vpdpwssd in the VEX encoding (Intel SDM, volume 2), on 128 and 256 bits. Linux on x86-64.
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

static unsigned upper_halves; // where the saved state has the upper halves of the ymm registers

static int64_t general(const ucontext_t *context, int number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[order[number]];
}

// The operand in memory whose ModRM byte is at `*code`, which is then moved behind it. No immediate follows.
static const uint8_t *address(const ucontext_t *context, const uint8_t **code, int index_bit, int base_bit) {
    const uint8_t *at = *code;
    int mod = *at >> 6, base = *at & 7, next_instruction = mod == 0 && base == 5;
    int64_t where = 0;
    at++;
    if (base == 4) { // SIB
        int index = (*at >> 3 & 7) | index_bit;
        if (index != 4) where += general(context, index) << (*at >> 6);
        base = *at++ & 7;
    }
    int no_base = mod == 0 && base == 5;
    if (mod == 1) {
        where += (int8_t)*at++;
    } else if (mod == 2 || no_base) {
        int32_t wide;
        memcpy(&wide, at, 4);
        where += wide;
        at += 4;
    }
    if (next_instruction) where += (int64_t)at;
    else if (!no_base) where += general(context, base | base_bit);
    *code = at;
    return (const uint8_t *)where;
}

static uint8_t *half(ucontext_t *context, int number, int upper) {
    uint8_t *state = (uint8_t *)context->uc_mcontext.fpregs;
    return upper ? state + upper_halves + 16 * number : (uint8_t *)&context->uc_mcontext.fpregs->_xmm[number];
}

static void answer(int signal_number, siginfo_t *info, void *raw) {
    (void)info;
    ucontext_t *context = raw;
    const uint8_t *code = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    // C4, then map 0F38; W 0 and prefix 66; opcodes 50 and 52.
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x83) != 1 || (code[3] & ~2) != 0x50) {
        signal(signal_number, SIG_DFL);
        return;
    }
    int words = code[3] == 0x52, halves = code[2] & 4 ? 2 : 1, source = ~code[2] >> 3 & 15;
    int target_bit = code[1] & 0x80 ? 0 : 8, index_bit = code[1] & 0x40 ? 0 : 8, base_bit = code[1] & 0x20 ? 0 : 8;
    code += 4;
    int target = (*code >> 3 & 7) | target_bit, other = (*code & 7) | base_bit;
    const uint8_t *memory = *code >> 6 == 3 ? (code++, NULL) : address(context, &code, index_bit, base_bit);
    for (int h = 0; h < halves; h++) {
        const uint8_t *a = half(context, source, h), *b = memory ? memory + 16 * h : half(context, other, h);
        uint32_t sums[4];
        memcpy(sums, half(context, target, h), 16);
        for (int i = 0; i < 16 && !words; i++) sums[i / 4] += (int)a[i] * (int8_t)b[i];
        for (int i = 0; i < 8 && words; i++) {
            int16_t x, y;
            memcpy(&x, a + 2 * i, 2);
            memcpy(&y, b + 2 * i, 2);
            sums[i / 2] += x * y;
        }
        memcpy(half(context, target, h), sums, 16);
        if (halves == 1) memset(half(context, target, 1), 0, 16);
    }
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)code;
}

__attribute__((constructor)) static void begin(void) {
    unsigned a, b, c, d;
    __cpuid_count(0xd, 2, a, b, c, d);
    upper_halves = b;
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
}
