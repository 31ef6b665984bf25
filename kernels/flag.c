/* A flag that native code asks while it works: no interpreter, no lock, one relaxed load. */
#include <stdatomic.h>
#include <stdbool.h>

#if defined(_WIN32)
#define EDGE_API __declspec(dllexport)
#else
#define EDGE_API __attribute__((visibility("default")))
#endif

/* Whether the byte at `flag` is not zero. The signature is that of ggml_abort_callback. */
EDGE_API bool edge_flag_is_set(void *flag) {
    return atomic_load_explicit((atomic_uchar *)flag, memory_order_relaxed) != 0;
}
