// A small thread pool: loops over items, shared by the caller and its workers.
#pragma once

#include <cstdint>

namespace pm {

struct Crew;

// One caller at a time. Threads are made by the first loop, and made again after a fork.
class Pool {
 public:
  // threads: the caller included. spin_us: how long an idle worker spins before it sleeps.
  Pool(int threads, int spin_us) : threads_(threads), spin_us_(spin_us) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  // How many workers the system refused to make; known after the first loop.
  int missing() const;

  // Calls f(item, thread) for every item in [0, items), in any order; returns when all are done.
  template <typename F>
  void loop(int64_t items, const F& f) {
    run(items, [](const void* context, int64_t item, int thread) {
      (*static_cast<const F*>(context))(item, thread);
    }, &f);
  }

  // While one lives, workers wait for the next loop awake.
  class Awake {
   public:
    explicit Awake(Pool& pool) : pool_(pool) { pool_.set_busy(true); }
    ~Awake() { pool_.set_busy(false); }

   private:
    Pool& pool_;
  };

 private:
  using Job = void (*)(const void* context, int64_t item, int thread);
  void run(int64_t items, Job job, const void* context);
  void set_busy(bool busy);
  void start();

  int threads_, spin_us_;
  Crew* crew_ = nullptr;
};

}  // namespace pm
