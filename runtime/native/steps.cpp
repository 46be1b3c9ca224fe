#include "steps.h"

#include <algorithm>
#include <cstring>

namespace pm {

Matrix matrix_from(const pm_matrix& matrix) {
  return {matrix.precision,
          matrix.block,
          matrix.wide_scales != 0,
          matrix.rows,
          matrix.columns,
          static_cast<const uint8_t*>(matrix.weights),
          static_cast<const uint8_t*>(matrix.scales),
          matrix.bias};
}

namespace {

void add(Engine& engine, const pm_add& step, const Rows& rows) {
  const int64_t width = rows.width(step.to);
  for_each_row(engine, rows.count, [&](int64_t row, int) {
    const float* a = rows.of(step.a, row);
    const float* b = rows.of(step.b, row);
    float* to = rows.of(step.to, row);
    if (step.factor == 1.0f)
      for (int64_t i = 0; i < width; ++i) to[i] = a[i] + b[i];
    else
      for (int64_t i = 0; i < width; ++i) to[i] = a[i] + step.factor * b[i];
  });
}

void norm(Engine& engine, const pm_norm& step, const Rows& rows) {
  for_each_row(engine, rows.count, [&](int64_t row, int) {
    const float* from = rows.of(step.from, row);
    float* to = rows.of(step.to, row);
    for (int32_t i = 0; i < step.groups; ++i, from += step.size, to += step.size)
      engine.kernels.rows->norm(from, step.size, step.weight, step.bias, step.eps, to);
  });
}

void products(Engine& engine, const pm_products& step, const Rows& rows) {
  Matrix matrices[4];
  float* to[4];
  for (int32_t i = 0; i < step.count; ++i) {
    matrices[i] = matrix_from(step.matrices[i]);
    to[i] = rows.of(step.to[i]);
  }
  run_products(engine, matrices, step.count, rows.count, rows.of(step.from), to);
}

// to[i] = f(from[i])
template <typename F>
void map(Engine& engine, const pm_map& step, const Rows& rows, const F& f) {
  const int64_t width = rows.width(step.to);
  for_each_row(engine, rows.count, [&](int64_t row, int) {
    const float* from = rows.of(step.from, row);
    float* to = rows.of(step.to, row);
    for (int64_t i = 0; i < width; ++i) to[i] = f(from[i]);
  });
}

void gate(Engine& engine, const pm_map& step, const Rows& rows) {
  const int64_t width = rows.width(step.to);
  const bool single = rows.width(step.with) == 1;
  for_each_row(engine, rows.count, [&](int64_t row, int) {
    engine.kernels.rows->gate(rows.of(step.from, row), rows.of(step.with, row), width, single,
                              rows.of(step.to, row));
  });
}

void rotate(Engine& engine, const pm_rotate& step, const Rows& rows) {
  const int64_t head_dim = rows.width(step.of) / step.heads, pairs = rows.width(step.cos);
  for_each_row(engine, rows.count, [&](int64_t row, int) {
    float* x = rows.of(step.of, row);
    for (int32_t head = 0; head < step.heads; ++head, x += head_dim)
      engine.kernels.rows->rotate(x, rows.of(step.cos, row), rows.of(step.sin, row), pairs,
                                  step.interleaved != 0);
  });
}

void activate(Engine& engine, const pm_activate& step, const Rows& rows) {
  const Activation activation{step.activation, step.alpha, step.limit};
  for_each_row(engine, rows.count, [&](int64_t row, int) {
    engine.kernels.activate(activation, rows.width(step.to), rows.of(step.gate, row),
                            rows.of(step.up, row), rows.of(step.to, row));
  });
}

// Rows move to the front alone, so `to` may be `from`.
void keep_last(const pm_map& step, Rows& rows, const pm_part* parts, int64_t n_parts) {
  int64_t end = 0, kept = 0;
  for (int64_t i = 0; i < n_parts; ++i) {
    end += parts[i].tokens;
    std::memmove(rows.of(step.to, kept), rows.of(step.from, end - parts[i].kept),
                 parts[i].kept * rows.width(step.to) * sizeof(float));
    kept += parts[i].kept;
  }
  rows.count = kept;
}

void route_rows(Engine& engine, const pm_route& step, const Rows& rows) {
  for (Buffer& buffer : engine.scratch) buffer.at_least(routing_bytes(step));
  for_each_row(engine, rows.count, [&](int64_t row, int thread) {
    const float* logits = step.logits < 0 ? nullptr : rows.of(step.logits, row);
    int64_t* ids = static_cast<int64_t*>(rows.buffers[step.ids].data) + row * step.top_k;
    route(engine.kernels, step, logits, engine.scratch[thread].at_least(0),
          rows.of(step.weights, row), ids);
  });
}

}  // namespace

void run_steps(Engine& engine, const pm_step* steps, int64_t n_steps, const pm_buffer* buffers,
               const pm_part* parts, int64_t n_parts) {
  Rows rows{buffers, 0};
  for (int64_t i = 0; i < n_parts; ++i) rows.count += parts[i].tokens;
  const Pool::Awake awake(engine.pool);
  for (int64_t i = 0; i < n_steps; ++i) {
    const void* what = steps[i].what;
    switch (steps[i].op) {
      case PM_ADD: add(engine, *static_cast<const pm_add*>(what), rows); break;
      case PM_NORM: norm(engine, *static_cast<const pm_norm*>(what), rows); break;
      case PM_PRODUCTS: products(engine, *static_cast<const pm_products*>(what), rows); break;
      case PM_CLIP: {
        const pm_map& step = *static_cast<const pm_map*>(what);
        map(engine, step, rows, [&](float x) {  // NaN stays
          return x < -step.value ? -step.value : (x > step.value ? step.value : x);
        });
        break;
      }
      case PM_SCALE: {
        const pm_map& step = *static_cast<const pm_map*>(what);
        map(engine, step, rows, [&](float x) { return x * step.value; });
        break;
      }
      case PM_GATE: gate(engine, *static_cast<const pm_map*>(what), rows); break;
      case PM_ROTATE: rotate(engine, *static_cast<const pm_rotate*>(what), rows); break;
      case PM_ATTEND:
        attend(engine, *static_cast<const pm_attend*>(what), rows, parts, n_parts);
        break;
      case PM_ACTIVATE: activate(engine, *static_cast<const pm_activate*>(what), rows); break;
      case PM_ROUTE: route_rows(engine, *static_cast<const pm_route*>(what), rows); break;
      case PM_LAST: keep_last(*static_cast<const pm_map*>(what), rows, parts, n_parts); break;
    }
  }
}

}  // namespace pm
