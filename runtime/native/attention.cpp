// Grouped-query attention over a cache, with a softmax that is made part by part.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "steps.h"

namespace pm {

namespace {

// Positions of a part. Parts start at multiples of it, so that a query's result does not depend on
// the queries that it is computed with.
constexpr int64_t PART = 256;
// Queries of an item of work: of one key head, so that each key and value serves all of them.
constexpr int64_t QUERIES = 32;

// A part and its cache. first: where its first token goes there. skew: by how much a place in the
// cache lags behind its position in the text, as far as parts of it are concerned.
struct Sequence {
  const pm_cache* cache;
  int64_t row, tokens, first, skew, items;
};

void store(Engine& engine, const pm_attend& step, const Rows& rows, const Sequence& sequence) {
  const int64_t size = step.head_dim;
  const pm_cache& cache = *sequence.cache;
  for_each_row(engine, sequence.tokens, [&](int64_t token, int) {
    const float* k = rows.of(step.k, sequence.row + token);
    const float* v = rows.of(step.v, sequence.row + token);
    for (int64_t head = 0; head < step.kv_heads; ++head) {
      const int64_t at = (head * cache.capacity + sequence.first + token) * size;
      std::memcpy(cache.keys + at, k + head * size, size * sizeof(float));
      std::memcpy(cache.values + at, v + head * size, size * sizeof(float));
    }
  });
}

// Queries of some heads of a group and some tokens.
struct Block {
  int64_t kv_head, first_head, heads, first_token, tokens;
};

// scores: [QUERIES, PART], of a part at a time. Queries and what comes out are rows of
// [tokens, heads, head_dim]; keys and values of a head [capacity, head_dim].
void attend_block(const Kernels& kernels, const pm_attend& step, const Rows& rows,
                  const Sequence& sequence, const Block& block, float* scores) {
  const pm_cache& cache = *sequence.cache;
  const int64_t size = step.head_dim, offset = block.kv_head * cache.capacity * size;
  const int64_t first = sequence.first, skew = sequence.skew;
  const float* values = cache.values + offset;
  Matrix keys{};
  keys.precision = FP32;
  keys.rows = cache.capacity;
  keys.columns = size;
  keys.weights = reinterpret_cast<const uint8_t*>(cache.keys + offset);

  const int queries = static_cast<int>(block.heads * block.tokens);
  const void* q[QUERIES];
  float* out[QUERIES];
  float most[QUERIES], sum[QUERIES], factors[QUERIES];
  int64_t low[QUERIES], high[QUERIES];
  for (int i = 0; i < queries; ++i) {
    const int64_t token = block.first_token + i / block.heads;
    const int64_t head = block.first_head + i % block.heads;
    q[i] = rows.of(step.q, sequence.row + token) + head * size;
    out[i] = rows.of(step.to, sequence.row + token) + head * size;
    std::fill(out[i], out[i] + size, 0.0f);
    most[i] = step.sinks ? step.sinks[head] : -INFINITY;
    sum[i] = step.sinks ? 1.0f : 0.0f;
  }
  const auto lowest = [&](int64_t position) {
    return step.window ? std::max<int64_t>(0, position - step.window + 1) : 0;
  };
  const int64_t end = first + block.first_token + block.tokens;
  int64_t part = (lowest(first + block.first_token) + skew) / PART * PART - skew;
  for (; part < end; part += PART) {
    // Of the first part some places may have been dropped: the lanes of the others stay as they are.
    const int64_t dropped = std::max<int64_t>(0, -part);
    const int64_t from = part + dropped, n = std::min(PART, end - part);
    const uint8_t* next = reinterpret_cast<const uint8_t*>(values + from * size);
    kernels.product(keys, from, n - dropped, q, queries, Scratch{}, scores + dropped, PART,
                    Next{next, nullptr});
    for (int i = 0; i < queries; ++i) {
      const int64_t position = first + block.first_token + i / block.heads;
      high[i] = std::max<int64_t>(std::min(n, position + 1 - part), dropped);
      low[i] = std::min(std::max<int64_t>(dropped, lowest(position) - part), high[i]);
      factors[i] = kernels.rows->soften(scores + i * PART, n, low[i], high[i], step.scale,
                                        &most[i], &sum[i]);
      low[i] -= dropped;
      high[i] -= dropped;
    }
    kernels.rows->weigh(scores + dropped, PART, queries, values + from * size, size, low, high,
                        factors, out);
  }
  for (int i = 0; i < queries; ++i) {
    const float share = 1.0f / sum[i];
    for (int64_t j = 0; j < size; ++j) out[i][j] *= share;
  }
}

}  // namespace

int64_t attention_bytes() { return QUERIES * PART * static_cast<int64_t>(sizeof(float)); }

void attend(Engine& engine, const pm_attend& step, const Rows& rows, const pm_part* parts,
            int64_t n_parts) {
  const int64_t group = step.heads / step.kv_heads;
  const int64_t heads = std::min(group, QUERIES), head_blocks = (group + heads - 1) / heads;
  const int64_t tokens = QUERIES / heads, in_block = step.kv_heads * head_blocks;
  std::vector<Sequence> sequences;
  int64_t row = 0, items = 0;
  for (int64_t i = 0; i < n_parts; ++i) {
    if (parts[i].tokens == 0) continue;
    const pm_cache& cache = parts[i].caches[step.cache];
    const int64_t count = in_block * ((parts[i].tokens + tokens - 1) / tokens);
    sequences.push_back({&cache, row, parts[i].tokens, cache.place[0] + parts[i].ahead,
                         cache.place[1] % PART, count});
    store(engine, step, rows, sequences.back());
    row += parts[i].tokens;
    items += count;
  }
  for (Buffer& buffer : engine.scratch) buffer.at_least(attention_bytes());
  // A part's last tokens see the most: they come first, so that no thread is left with a long one.
  engine.pool.loop(items, [&](int64_t item, int thread) {
    const Sequence* sequence = sequences.data();
    for (; item >= sequence->items; ++sequence) item -= sequence->items;
    const int64_t which = item % in_block;
    const int64_t token = (sequence->items / in_block - 1 - item / in_block) * tokens;
    const int64_t within = which % head_blocks * heads;
    const Block block{which / head_blocks, which / head_blocks * group + within,
                      std::min(heads, group - within), token,
                      std::min(tokens, sequence->tokens - token)};
    float* scores = reinterpret_cast<float*>(engine.scratch[thread].at_least(0));
    attend_block(engine.kernels, step, rows, *sequence, block, scores);
  });
}

}  // namespace pm
