#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pm {

namespace {

using Clock = std::chrono::steady_clock;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Waits until ready() holds: spins, and lets others run from time to time, since the thread that
// is waited for may need this very core.
template <typename Ready>
void wait_awake(const Ready& ready) {
  for (int i = 1; !ready(); ++i) {
    if (i % 2048 == 0) std::this_thread::yield();
    pause();
  }
}

}  // namespace

// What the caller and its workers share. After a fork the child has no workers and the locks are in
// any state: it leaves this where it is and makes a new one.
struct Crew {
  // Generation of the loop << 32 | items not yet taken. An item is taken by counting it down, so a
  // worker that comes late finds no item and touches nothing: no one has to wait for it.
  std::atomic<uint64_t> state{0};
  std::atomic<uint32_t> done{0};
  // Of the present loop. Written only when no item is left, read only by those who hold one.
  void (*job)(const void*, int64_t, int) = nullptr;
  const void* context = nullptr;
  uint32_t items = 0;

  std::atomic<bool> busy{false}, stop{false};
  std::atomic<int> sleepers{0};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  int wanted = 0;
  pid_t process = getpid();

  void take_items(int thread) {
    uint64_t seen = state.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(seen) != 0) {
      if (!state.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
        continue;
      job(context, items - static_cast<uint32_t>(seen), thread);
      done.fetch_add(1, std::memory_order_release);
      seen = state.load(std::memory_order_acquire);
    }
  }

  bool something_to_do() const {
    return static_cast<uint32_t>(state.load(std::memory_order_seq_cst)) != 0 || stop.load();
  }

  void work(int thread, std::chrono::microseconds spin) {
    while (!stop.load(std::memory_order_relaxed)) {
      take_items(thread);
      Clock::time_point idle_since = Clock::now();
      for (int i = 1; !something_to_do(); ++i) {
        pause();
        if (i % 64 != 0) continue;
        if (busy.load(std::memory_order_relaxed)) {
          idle_since = Clock::now();
          if (i % 2048 == 0) std::this_thread::yield();
        } else if (Clock::now() - idle_since >= spin) {
          sleep();
        }
      }
    }
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(mutex);
    sleepers.fetch_add(1, std::memory_order_seq_cst);  // before looking; see wake_all
    wake.wait(lock, [this] { return something_to_do(); });
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

  // After a change to what something_to_do() looks at: either this sees the sleeper, or the
  // sleeper, which counts itself first, sees the change.
  void wake_all() {
    if (sleepers.load(std::memory_order_seq_cst) == 0) return;
    { std::lock_guard<std::mutex> lock(mutex); }
    wake.notify_all();
  }
};

void Pool::start() {
  crew_ = new Crew;
  crew_->wanted = threads_ - 1;
  crew_->workers.reserve(threads_ - 1);
  Crew* crew = crew_;
  const std::chrono::microseconds spin(spin_us_);
  try {
    for (int thread = 1; thread < threads_; ++thread)
      crew->workers.emplace_back([crew, thread, spin] { crew->work(thread, spin); });
  } catch (const std::system_error&) {
    // Those that could be made will do: results do not depend on the number; see missing().
  }
}

int Pool::missing() const {
  return crew_ ? crew_->wanted - static_cast<int>(crew_->workers.size()) : 0;
}

Pool::~Pool() {
  if (!crew_ || crew_->process != getpid()) return;
  crew_->stop.store(true, std::memory_order_seq_cst);
  crew_->wake_all();
  for (std::thread& worker : crew_->workers) worker.join();
  delete crew_;
}

void Pool::set_busy(bool busy) {
  if (crew_) crew_->busy.store(busy, std::memory_order_relaxed);
}

void Pool::run(int64_t items, Job job, const void* context) {
  if (items <= 0) return;
  if (items == 1 || threads_ == 1) {
    for (int64_t item = 0; item < items; ++item) job(context, item, 0);
    return;
  }
  if (!crew_ || crew_->process != getpid()) start();
  Crew& crew = *crew_;
  crew.job = job;
  crew.context = context;
  crew.items = static_cast<uint32_t>(items);
  crew.done.store(0, std::memory_order_relaxed);
  const uint64_t generation = (crew.state.load(std::memory_order_relaxed) >> 32) + 1;
  crew.state.store(generation << 32 | crew.items, std::memory_order_seq_cst);
  crew.wake_all();
  crew.take_items(0);
  wait_awake([&] { return crew.done.load(std::memory_order_acquire) == crew.items; });
}

}  // namespace pm
