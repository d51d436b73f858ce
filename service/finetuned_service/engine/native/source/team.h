// The threads that compute a step together: each phase's units are shared out one by one, and nobody goes on
// before all are done.
//
// Within a step a thread that waits spins for a moment and then sleeps, so that a core that another process
// has taken is not waited for at full power; between steps all sleep.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <functional>
#include <thread>
#include <vector>

namespace finetuned {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A number that only changes, and those who wait for its change.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }

  void advance() {
    value_.fetch_add(1, std::memory_order_acq_rel);
    if (sleeping_.load(std::memory_order_seq_cst) > 0)
      syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

  void wait_while(uint32_t old, int spins) {
    for (int i = 0; i < spins; ++i) {
      if (value() != old) return;
      pause_briefly();
    }
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == old)
      syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleeping_{0};
};

class Team {
 public:
  // Throws std::system_error if the system gives fewer threads; those it gave have ended then.
  explicit Team(int threads) : size_(threads), done_(static_cast<size_t>(threads)) {
    try {
      for (int i = 1; i < threads; ++i) others_.emplace_back([this, i] { serve(i); });
    } catch (...) {
      end();  // no destructor will, and a thread that nobody joins ends the process
      throw;
    }
  }

  ~Team() { end(); }

  int size() const { return size_; }

  // Run `work(thread)` on all threads, the caller being thread 0; returns when all have.
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    begin_.advance();
    work(0);
    barrier();
  }

  // Within `work`, which calls this alike on all threads: `body(unit)` for each of `units`, shared out. Each thread
  // has a run of neighbours, which lie side by side in memory, and then helps the others with theirs.
  template <typename Body>
  void each(int thread, long units, const Body& body) {
    for (int helped = 0; helped < size_; ++helped) {
      const int owner = (thread + helped) % size_;
      const long first = units * owner / size_, end = units * (owner + 1) / size_;
      for (long unit; (unit = first + done_[owner].units.fetch_add(1, std::memory_order_relaxed)) < end;) body(unit);
    }
    barrier();
  }

 private:
  static constexpr int kSpins = 4000;

  void end() {
    over_ = true;
    begin_.advance();
    for (auto& thread : others_) thread.join();
  }

  void barrier() {
    uint32_t round = passed_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      for (auto& run : done_) run.units.store(0, std::memory_order_relaxed);
      passed_.advance();
    } else {
      passed_.wait_while(round, kSpins);
    }
  }

  void serve(int thread) {
    uint32_t seen = 0;
    while (true) {
      begin_.wait_while(seen, 0);
      seen = begin_.value();
      if (over_) return;
      (*work_)(thread);
      barrier();
    }
  }

  const int size_;
  std::vector<std::thread> others_;
  struct alignas(64) Run {
    std::atomic<long> units{0};
  };

  std::vector<Run> done_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) Signal begin_;
  alignas(64) Signal passed_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<bool> over_{false};
};

}  // namespace finetuned
