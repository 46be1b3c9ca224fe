// One step of a layer: several experts for a batch of tokens, on all threads.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "pm.h"
#include "pool.h"

namespace pm {

// Memory that only grows. Aligned to 64 bytes; its contents are lost when it grows.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  // Throws std::bad_alloc.
  uint8_t* at_least(int64_t bytes);
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct Engine {
  Engine(const Kernels& kernels, int threads, int spin_us)
      : kernels(kernels), pool(threads, spin_us), scratch(threads) {}

  const Kernels& kernels;
  Pool pool;
  // Records of x, [n_tokens, RecordLayout.bytes()].
  Buffer inputs;
  // Inner activations of all rows of work, [starts[experts]]: records, or floats [intermediate].
  Buffer inner;
  // [threads]; of each a Scratch, and behind it its results.
  std::vector<Buffer> scratch;
  std::mutex in_use;
};

// See pm_run_experts.
struct Batch {
  int experts;
  const void* const* pages;  // [experts]
  const int64_t* starts;     // [experts + 1]
  const int64_t* tokens;     // [starts[experts]]
  const float* weights;      // [starts[experts]]
  int64_t n_tokens;
  const float* x;  // [n_tokens, hidden]
};

// Adds to out [n_tokens, hidden], or where it is null writes terms [starts[experts], hidden].
void run_experts(Engine& engine, const pm_format& format, const Batch& batch, float* out,
                 float* terms);

// Bytes of buffers for so many tokens, and rows of work of all experts, at most.
int64_t scratch_bytes(const pm_format& format, int threads, int64_t n_tokens, int64_t n_rows);

// out[tokens[p]] += terms[p], in the order of p. tokens: [n_terms], terms: [n_terms, hidden].
void add_terms(Engine& engine, int64_t n_terms, int64_t hidden, const int64_t* tokens,
               const float* terms, float* out);

// y[i] [n_tokens, rows] = x · Wᵢᵀ + biasᵢ; all with the same columns, precision and block. x:
// [n_tokens, columns].
void run_products(Engine& engine, const Matrix* matrices, int count, int64_t n_tokens,
                  const float* x, float* const* y);

// Bytes of buffers for such a product of so many tokens.
int64_t product_bytes(const Matrix& matrix, int threads, int64_t n_tokens);

}  // namespace pm
