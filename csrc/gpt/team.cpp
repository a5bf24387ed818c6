#include "team.hpp"

#include <stdexcept>
#include <system_error>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gptfast {
namespace {

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int size) {
    for (int member = 1; member < size; ++member) {
        try {
            helpers_.emplace_back([this, member] { help(member); });
        } catch (const std::system_error&) {
            break;  // the system has no more threads: the ones there are do the work
        }
    }
}

Team::~Team() {
    if (forked()) {
        for (std::thread& helper : helpers_) helper.detach();
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ended_ = true;
    }
    begin_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
}

void Team::run(const std::function<void(int)>& work) {
    if (forked()) throw std::runtime_error("this was made before the process was forked; make it anew");
    if (!helpers_.empty()) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            ++round_;
        }
        begin_.notify_all();
    }
    work(0);
    meet();  // all are done with `work`
}

void Team::help(int member) {
    for (unsigned seen = 0;;) {
        const std::function<void(int)>* work;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            begin_.wait(lock, [&] { return ended_ || round_ != seen; });
            if (ended_) return;
            seen = round_;
            work = work_;
        }
        (*work)(member);
        meet();
    }
}

void Team::meet() {
    const unsigned meeting = meeting_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
        arrived_.store(0, std::memory_order_relaxed);
        meeting_.store(meeting + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; meeting_.load(std::memory_order_acquire) == meeting; ++spins) {
        if (spins < 4096)
            pause();
        else
            std::this_thread::yield();
    }
}

}  // namespace gptfast
