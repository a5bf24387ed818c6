#include "team.hpp"

#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace gptfast {
namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// What a compiler makes of `#pragma omp parallel`, in the OpenMP that the process uses already (GCC's and LLVM's both
// have it). Linked to one of our own, there would be two of them, each with its threads.
struct OpenMP {
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;

    OpenMP() {
#if defined(__linux__)
        find("GOMP_parallel", parallel);
        find("omp_get_thread_num", thread);
        find("omp_get_num_threads", threads);
#endif
    }
    bool loaded() const { return parallel && thread && threads; }

#if defined(__linux__)
    template <class Function>
    static void find(const char* name, Function& function) {
        function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    }
#endif
};

const OpenMP& openmp() {
    static const OpenMP found;
    return found;
}

}  // namespace

void Barrier::wait(int members) {
    const unsigned round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
        if (spins < 4096)
            pause();
        else
            std::this_thread::yield();
    }
}

void run_team(int threads, const std::function<void(const Member&)>& work) {
    Barrier barrier;
    if (threads < 2) return work({0, 1, &barrier});
    if (openmp().loaded()) {
        struct Work {
            const std::function<void(const Member&)>& work;
            Barrier& barrier;
        } shared{work, barrier};
        const auto member = [](void* data) {
            const Work& mine = *static_cast<const Work*>(data);
            mine.work({openmp().thread(), openmp().threads(), &mine.barrier});
        };
        return openmp().parallel(member, &shared, static_cast<unsigned>(threads), 0);
    }
    // How many there are must be known before one begins: the system may have fewer.
    std::atomic<int> count{0};
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(threads));
    for (int i = 1; i < threads; ++i) {
        try {
            helpers.emplace_back([&, i] {
                while (!count.load(std::memory_order_acquire)) std::this_thread::yield();
                work({i, count.load(std::memory_order_relaxed), &barrier});
            });
        } catch (const std::system_error&) {
            break;
        }
    }
    count.store(static_cast<int>(helpers.size()) + 1, std::memory_order_release);
    work({0, count.load(std::memory_order_relaxed), &barrier});
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace gptfast
