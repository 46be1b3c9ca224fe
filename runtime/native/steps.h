// Steps of a segment over a chunk of tokens, on all threads.
#pragma once

#include <cstdint>

#include "layer.h"
#include "pm_steps.h"

namespace pm {

// The buffers of a call, each [rows, width], and how many of their rows are at work.
struct Rows {
  const pm_buffer* buffers;
  int64_t count;

  float* of(int32_t buffer, int64_t row = 0) const {
    return static_cast<float*>(buffers[buffer].data) + row * buffers[buffer].width;
  }
  int64_t width(int32_t buffer) const { return buffers[buffer].width; }
};

// Calls f(row, thread) for each row. A few rows cost less than telling others about them.
template <typename F>
void for_each_row(Engine& engine, int64_t rows, const F& f) {
  if (rows < 4)
    for (int64_t row = 0; row < rows; ++row) f(row, 0);
  else
    engine.pool.loop(rows, f);
}

// Runs all steps for the rows of all parts; after PM_LAST for those that they keep.
void run_steps(Engine& engine, const pm_step* steps, int64_t n_steps, const pm_buffer* buffers,
               const pm_part* parts, int64_t n_parts);

Matrix matrix_from(const pm_matrix& matrix);

void attend(Engine& engine, const pm_attend& step, const Rows& rows, const pm_part* parts,
            int64_t n_parts);
// Bytes that attend() wants of each thread's scratch memory.
int64_t attention_bytes();

// One token's experts: weights and ids [top_k]. logits: [experts], or null for "always". memory:
// routing_bytes() of it, of any contents, aligned as floats are.
void route(const Kernels& kernels, const pm_route& step, const float* logits, void* memory,
           float* weights, int64_t* ids);
int64_t routing_bytes(const pm_route& step);

}  // namespace pm
