// A kernel as the machine calls it: its parameters lie in slots of 8 bytes.
#pragma once
#include <type_traits>
#include <utility>

struct ShimKernel {
    const char *name, *kinds;
    void (*call)(const char *slots);
};

template <class T>
constexpr char shim_kind() {
    return std::is_pointer<T>::value       ? 'p'
           : std::is_same<T, int>::value   ? 'i'
           : std::is_same<T, float>::value ? 'f'
                                           : '?';
}

template <class... A>
constexpr bool shim_fits(void (*)(A...), const char *kinds) {
    const char found[] = {shim_kind<A>()..., 0};
    for (unsigned i = 0; i < sizeof found; i++) {
        if (found[i] != kinds[i]) return false;
    }
    return true;
}

template <class... A, size_t... I>
void shim_spread(void (*kernel)(A...), const char *slots, std::index_sequence<I...>) {
    kernel(*(const A *)(slots + 8 * I)...);
}
template <class... A>
void shim_call(void (*kernel)(A...), const char *slots) {
    shim_spread(kernel, slots, std::index_sequence_for<A...>());
}

#define SHIM_KERNEL(kernel, kinds)                                                                   \
    {#kernel, kinds, [](const char *slots) {                                                         \
         static_assert(shim_fits(kernel, kinds), #kernel " has other parameters than KERNELS says"); \
         shim_call(kernel, slots);                                                                   \
     }}
