// Asks the processor to fetch a cache line that will be used soon.
#pragma once

namespace gptfast {

inline void prefetch(const void* address) {
#if defined(__GNUC__)
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

}  // namespace gptfast
