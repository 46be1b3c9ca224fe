// Grouped-query attention over a cache, with a softmax that is made part by part.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "steps.h"

namespace pm {

namespace {

// Positions of a part. Parts start at multiples of it, so that a query's result does not depend on
// the queries that it is computed with.
constexpr int64_t PART = 256;
// Queries of an item of work: of one key head, so that each key and value serves all of them.
constexpr int64_t QUERIES = 32;

void store(Engine& engine, const pm_attend& step, const Rows& rows, int64_t first) {
  const int64_t size = step.head_dim;
  for_each_row(engine, rows.count, [&](int64_t row, int) {
    for (int64_t head = 0; head < step.kv_heads; ++head) {
      const int64_t at = (head * step.capacity + first + row) * size;
      std::memcpy(step.keys + at, rows.of(step.k, row) + head * size, size * sizeof(float));
      std::memcpy(step.values + at, rows.of(step.v, row) + head * size, size * sizeof(float));
    }
  });
}

// Queries of some heads of a group and some tokens.
struct Block {
  int64_t kv_head, first_head, heads, first_token, tokens;
};

void attend_block(const Kernels& kernels, const pm_attend& step, const Rows& rows, int64_t first,
                  const Block& block, float* scores) {
  const int64_t size = step.head_dim, offset = block.kv_head * step.capacity * size;
  const float* values = step.values + offset;
  Matrix keys{};
  keys.precision = FP32;
  keys.rows = step.capacity;
  keys.columns = size;
  keys.weights = reinterpret_cast<const uint8_t*>(step.keys + offset);

  const int queries = static_cast<int>(block.heads * block.tokens);
  const void* q[QUERIES];
  float* out[QUERIES];
  float most[QUERIES], sum[QUERIES], factors[QUERIES];
  int64_t low[QUERIES], high[QUERIES];
  for (int i = 0; i < queries; ++i) {
    const int64_t token = block.first_token + i / block.heads;
    const int64_t head = block.first_head + i % block.heads;
    q[i] = rows.of(step.q, token) + head * size;
    out[i] = rows.of(step.to, token) + head * size;
    std::fill(out[i], out[i] + size, 0.0f);
    most[i] = step.sinks ? step.sinks[head] : -INFINITY;
    sum[i] = step.sinks ? 1.0f : 0.0f;
  }
  const auto lowest = [&](int64_t position) {
    return step.window ? std::max<int64_t>(0, position - step.window + 1) : 0;
  };
  const int64_t end = first + block.first_token + block.tokens;
  for (int64_t part = lowest(first + block.first_token) / PART * PART; part < end; part += PART) {
    const int64_t n = std::min(PART, end - part);
    const uint8_t* next = reinterpret_cast<const uint8_t*>(values + part * size);
    kernels.product(keys, part, n, q, queries, Scratch{}, scores, PART, Next{next, nullptr});
    for (int i = 0; i < queries; ++i) {
      const int64_t position = first + block.first_token + i / block.heads;
      high[i] = std::max<int64_t>(std::min(n, position + 1 - part), 0);
      low[i] = std::min(std::max<int64_t>(0, lowest(position) - part), high[i]);
      factors[i] = kernels.rows->soften(scores + i * PART, n, low[i], high[i], step.scale,
                                        &most[i], &sum[i]);
    }
    kernels.rows->weigh(scores, PART, queries, values + part * size, size, low, high, factors, out);
  }
  for (int i = 0; i < queries; ++i) {
    const float share = 1.0f / sum[i];
    for (int64_t j = 0; j < size; ++j) out[i][j] *= share;
  }
}

}  // namespace

int64_t attention_bytes() { return QUERIES * PART * static_cast<int64_t>(sizeof(float)); }

void attend(Engine& engine, const pm_attend& step, const Rows& rows) {
  if (rows.count == 0) return;
  const int64_t first = *step.last + 1 - rows.count;
  store(engine, step, rows, first);
  const int64_t group = step.heads / step.kv_heads;
  const int64_t heads = std::min(group, QUERIES), head_blocks = (group + heads - 1) / heads;
  const int64_t tokens = QUERIES / heads, token_blocks = (rows.count + tokens - 1) / tokens;
  for (Buffer& buffer : engine.scratch) buffer.at_least(attention_bytes());
  // The last tokens see the most: they come first, so that no thread is left with a long one.
  engine.pool.loop(step.kv_heads * head_blocks * token_blocks, [&](int64_t item, int thread) {
    const int64_t in_block = step.kv_heads * head_blocks;
    const int64_t which = item % in_block, token = (token_blocks - 1 - item / in_block) * tokens;
    const int64_t within = which % head_blocks * heads;
    const Block block{which / head_blocks, which / head_blocks * group + within,
                      std::min(heads, group - within), token,
                      std::min(tokens, rows.count - token)};
    float* scores = reinterpret_cast<float*>(engine.scratch[thread].at_least(0));
    attend_block(engine.kernels, step, rows, first, block, scores);
  });
}

}  // namespace pm
