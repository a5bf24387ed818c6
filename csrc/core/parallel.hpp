// A loop over several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace gptfast {

// The processor's cores; asked once, since the C library reads a file for it each time.
inline std::size_t core_count() {
    static const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
    return cores;
}

// Runs work(state, i) for each i < count, on at most `threads` threads; each first makes its state with make_state().
// The order is any. The first exception ends the loop and is thrown here.
template <class MakeState, class Work>
void parallel_for(std::size_t count, std::size_t threads, MakeState&& make_state, Work&& work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex mutex;
    const auto run = [&] {
        try {
            auto state = make_state();
            for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(state, i);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> helpers;
    for (std::size_t i = 1; i < std::min(threads, count); ++i) {
        try {
            helpers.emplace_back(run);
        } catch (const std::system_error&) {
            break;  // the system has no more threads: the ones there are do the work
        }
    }
    run();
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace gptfast
