// Steps: a piece of a decoder as operations on buffers of rows, one row for each token.
// Part of the C interface; see pm.h. runtime/native/steps.py has the same structures for ctypes.
#pragma once

#include <stdint.h>

// Rows of float, but that of expert ids: int64. width: elements of a row.
struct pm_buffer {
  void* data;
  int64_t width;
};

// What `what` points to is named by the operation. Numbers of buffers are int32; a step may write
// where it reads, but for products and attention.
enum {
  PM_ADD = 0,       // pm_add
  PM_NORM = 1,      // pm_norm
  PM_PRODUCTS = 2,  // pm_products
  PM_CLIP = 3,      // pm_map: to = from, within ± value
  PM_SCALE = 4,     // pm_map: to = from · value
  PM_GATE = 5,      // pm_map: to = from · sigmoid(with), which is as wide or one element
  PM_ROTATE = 6,    // pm_rotate
  PM_ATTEND = 7,    // pm_attend
  PM_ACTIVATE = 8,  // pm_activate
  PM_ROUTE = 9,     // pm_route
  PM_LAST = 10      // pm_map: to = the last rows of each part; the steps after it work on those alone
};

// Keys and values of a layer that one sequence has seen: float [kv_heads, capacity, head_dim].
// place: how many positions are filled, and how many were dropped before the first of them.
struct pm_cache {
  float* keys;
  float* values;
  int64_t capacity;
  const int64_t* place;
};

// Rows of one sequence, in the order of its tokens. The parts of a call follow one another.
struct pm_part {
  int64_t tokens;                 // its rows
  int64_t kept;                   // the last ones of them, that go on after PM_LAST
  int64_t ahead;                  // positions between those that `place` counts and its own
  const struct pm_cache* caches;  // by number; null where nothing attends
};

struct pm_step {
  int32_t op;
  int32_t reserved;
  const void* what;
};

// to = a + factor · b; all [rows, width].
struct pm_add {
  int32_t a, b, to;
  float factor;
};

// Each row has `groups` of `size` elements, normed one by one with the same weight and bias [size].
// bias: null for x / √(mean(x²) + eps) · weight, else (x − mean) / √(var + eps) · weight + bias.
struct pm_norm {
  int32_t from, to, groups;
  float eps;
  int64_t size;
  const float* weight;
  const float* bias;
};

// to[i] [rows, rowsᵢ] = from [rows, columns] · Wᵢᵀ + biasᵢ, up to four at once. All have the same
// columns, precision and block.
struct pm_products {
  int32_t from, count;
  int32_t to[4];
  const struct pm_matrix* matrices;
};

// from, to: [rows, width]; with: as wide, or [rows, 1].
struct pm_map {
  int32_t from, with, to;
  float value;
};

// of: [rows, heads, head_dim]; cos, sin: [rows, pairs]. Rotates the first 2 · pairs elements of
// each head, in place. interleaved: pairs (2i, 2i + 1)
// come in and (i, i + width) go out.
struct pm_rotate {
  int32_t of, cos, sin, heads, interleaved;
};

// q, to: [rows, heads, head_dim]; k, v: [rows, kv_heads, head_dim].
// Writes k and v into the caches at the positions of the tokens, then attends, each part to its own.
// cache: which of a part's caches. window: positions that a query sees, itself included; 0 for all before it.
// sinks: [heads], a logit more in each softmax; or null.
struct pm_attend {
  int32_t q, k, v, to;
  int32_t heads, kv_heads, head_dim;
  float scale;
  int32_t cache, reserved;
  int64_t window;
  const float* sinks;
};

// to = activation(gate, up), all [rows, width]; the numbers are those of pm_format.
struct pm_activate {
  int32_t gate, up, to;
  int32_t activation;
  float alpha, limit;
};

// A row of scores → the numbers and weights of its experts (RouterSpec in model/spec.py).
// logits: [rows, experts]; weights, ids: [rows, top_k]; correction: [experts], or null.
struct pm_route {
  int32_t logits, weights, ids;
  int32_t experts, top_k;
  int32_t scoring;  // 0 softmax, 1 sigmoid, 2 sparsemixer, 3 always
  int32_t normalize, groups, top_groups;
  int32_t two_best;  // a group's score is the sum of its best two
  float scale, least_sum, jitter;
  int32_t reserved;
  const float* correction;
};
