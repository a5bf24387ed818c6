// Threads that wait between two pieces of work, and meet inside one.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace gptfast {

class Team {
  public:
    // Starts `size` - 1 threads, or as many of them as the system has.
    explicit Team(int size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return static_cast<int>(helpers_.size()) + 1; }

    // Runs work(member) on all members at once, the caller being member 0. The work must not throw. One caller at a
    // time. Throws std::runtime_error in a process that was forked after the team was made: its threads are not there.
    void run(const std::function<void(int)>& work);

    // Called by every member inside work: returns once all have called it. It spins, because members are to arrive
    // within microseconds of each other (a condition variable takes 5 to 50 us), and gives way where they do not.
    void meet();

  private:
    void help(int member);

    std::mutex mutex_;
    std::condition_variable begin_;
    const std::function<void(int)>* work_ = nullptr;
    unsigned round_ = 0;  // of run()
    bool ended_ = false;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> meeting_{0};
    std::vector<std::thread> helpers_;
#if defined(__unix__) || defined(__APPLE__)
    const pid_t process_ = getpid();
    bool forked() const { return process_ != getpid(); }
#else
    bool forked() const { return false; }
#endif
};

}  // namespace gptfast
