// Several threads that do one piece of work together and meet inside it.
#pragma once

#include <atomic>
#include <functional>

namespace gptfast {

class Barrier {
  public:
    // Returns once `members` threads have called it. It spins, because they arrive within microseconds of each other
    // (to wake a sleeping thread takes 5 to 50 us), and gives way where they do not.
    void wait(int members);

  private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

struct Member {
    int index, count;
    Barrier* barrier;

    void meet() const { barrier->wait(count); }
};

// Runs work(member) on up to `threads` threads at once, the caller among them. The work must not throw.
//
// They are those of OpenMP where the process has loaded it, as it has with PyTorch: the thread that it has just used
// spins for milliseconds in the hope of more work, and would hold a core that a thread of our own needs (15.0 ms a
// token so, 10.5 with its own: docs/decisions.md).
void run_team(int threads, const std::function<void(const Member&)>& work);

}  // namespace gptfast
