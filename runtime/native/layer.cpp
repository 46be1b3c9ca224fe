#include "layer.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace pm {

Buffer::~Buffer() { std::free(data_); }

uint8_t* Buffer::at_least(int64_t bytes) {
  if (bytes <= bytes_) return data_;
  std::free(data_);
  bytes_ = 0;
  data_ = static_cast<uint8_t*>(std::aligned_alloc(64, round_up(bytes, 64)));
  if (!data_) throw std::bad_alloc();
  bytes_ = round_up(bytes, 64);
  return data_;
}

namespace {

// Rows of an item of work: enough to be worth fetching an item, few enough to share them evenly.
// A few tokens read memory, the more in a row the better; many tokens compute.
constexpr int64_t MOST_ROWS = 512, FEWEST_ROWS = 32;
constexpr int FEW_TOKENS = 4;
int64_t rows_of_item(int64_t rows_of_all, int64_t tokens, int threads) {
  int64_t rows = FEWEST_ROWS;
  while (tokens <= FEW_TOKENS && rows < MOST_ROWS && rows_of_all >= 8 * rows * threads) rows *= 2;
  return rows;
}

RecordLayout layout_of(const Matrix& matrix) {
  return {matrix.precision == INT4 ? 4 : 8, matrix.block, matrix.columns};
}

Matrix matrix_of(const pm_format& format, int projection) {
  const bool down = projection == 2;
  Matrix matrix{};
  matrix.precision = format.precision;
  matrix.block = format.block;
  matrix.rows = down ? format.hidden : format.intermediate;
  matrix.columns = down ? format.intermediate : format.hidden;
  return matrix;
}

Matrix matrix_at(Matrix matrix, const pm_format& format, int projection, const void* page) {
  const uint8_t* start = static_cast<const uint8_t*>(page);
  const int64_t* offsets = format.offsets + 3 * projection;
  matrix.weights = start + offsets[0];
  matrix.scales = offsets[1] < 0 ? nullptr : start + offsets[1];
  matrix.bias = offsets[2] < 0 ? nullptr : reinterpret_cast<const float*>(start + offsets[2]);
  return matrix;
}

// From this row on.
Next next_at(const Matrix& matrix, int64_t row) {
  const uint8_t* scales = matrix.scales;
  if (scales) scales += row * matrix.blocks() * (matrix.wide_scales ? 4 : 2);
  return {matrix.weights + row * matrix.row_bytes(), scales};
}

// Tokens as products take them: records made of x, or rows of x itself. wanted: which tokens will be
// asked for; null for all.
class Inputs {
 public:
  Inputs(Engine& engine, const Matrix& matrix, int64_t n_tokens, const float* x,
         const uint8_t* wanted)
      : x_(x), columns_(matrix.columns) {
    if (!is_quantized(matrix.precision)) return;
    const RecordLayout layout = layout_of(matrix);
    bytes_ = layout.bytes();
    records_ = engine.inputs.at_least(n_tokens * bytes_);
    const auto quantize = [&](int64_t t, int) {
      if (wanted && !wanted[t]) return;
      engine.kernels.quantize(x + t * columns_, 0, layout.blocks(), layout, records_ + t * bytes_);
    };
    if (n_tokens < 4)  // sharing so little costs more than it saves
      for (int64_t t = 0; t < n_tokens; ++t) quantize(t, 0);
    else
      engine.pool.loop(n_tokens, quantize);
  }

  const void* token(int64_t t) const {
    if (records_) return records_ + t * bytes_;
    return x_ + t * columns_;
  }

 private:
  const float* x_;
  int64_t columns_, bytes_ = 0;
  uint8_t* records_ = nullptr;
};

// A thread's memory: what kernels want, and `floats` results.
struct Workspace {
  Scratch scratch;
  float* results;

  static int64_t bytes(const ScratchSizes& sizes, int64_t floats) {
    return sizes.bytes() + floats * 4;
  }
  Workspace(Buffer& buffer, const ScratchSizes& sizes) {
    uint8_t* at = buffer.at_least(0);
    uint8_t* sums = at + sizes.packed;
    uint8_t* scales = sums + sizes.sums;
    scratch = {at, reinterpret_cast<float*>(sums), reinterpret_cast<float*>(scales),
               scales + sizes.scales};
    results = reinterpret_cast<float*>(at + sizes.bytes());
  }
};

void reserve(Engine& engine, const ScratchSizes& sizes, int64_t floats) {
  for (Buffer& buffer : engine.scratch) buffer.at_least(Workspace::bytes(sizes, floats));
}

// Up to MAX_TOKENS tokens of one expert: [first, first + count) of the batch's token list.
struct Group {
  int expert;
  int64_t first;
  int count;
};

std::vector<Group> groups_of(const Batch& batch) {
  std::vector<Group> groups;
  for (int e = 0; e < batch.experts; ++e)
    for (int64_t p = batch.starts[e]; p < batch.starts[e + 1]; p += MAX_TOKENS)
      groups.push_back({e, p, static_cast<int>(std::min<int64_t>(batch.starts[e + 1] - p,
                                                                  MAX_TOKENS))});
  return groups;
}

}  // namespace

void run_experts(Engine& engine, const pm_format& format, const Batch& batch, float* out,
                 float* terms) {
  const std::vector<Group> groups = groups_of(batch);
  if (groups.empty()) return;
  const Kernels& kernels = engine.kernels;
  const int64_t hidden = format.hidden, intermediate = format.intermediate;
  const int64_t n_groups = static_cast<int64_t>(groups.size());
  const Matrix gate_form = matrix_of(format, 0), down_form = matrix_of(format, 2);
  const bool quantized = is_quantized(format.precision);
  int most = 0;
  for (const Group& group : groups) most = std::max(most, group.count);
  const Activation activation{format.activation, format.alpha, format.limit};

  // An item of gate and up makes whole blocks of inner activations, so that it can quantize them.
  const int64_t inner_rows = std::max<int64_t>(
      rows_of_item(n_groups * intermediate, most, engine.pool.threads()), format.block);
  const int64_t outer_rows = rows_of_item(hidden, most, engine.pool.threads());
  const int64_t inner_items = (intermediate + inner_rows - 1) / inner_rows;
  const int64_t outer_items = (hidden + outer_rows - 1) / outer_rows;

  const ScratchSizes sizes(std::max(hidden, intermediate),
                           std::max(gate_form.row_bytes(), down_form.row_bytes()), quantized);
  reserve(engine, sizes, most * std::max(2 * inner_rows, outer_rows));

  const RecordLayout inner_layout = quantized ? layout_of(down_form) : RecordLayout{};
  const int64_t inner_bytes = quantized ? inner_layout.bytes() : round_up(4 * intermediate, 64);
  uint8_t* inner = engine.inner.at_least(batch.starts[batch.experts] * inner_bytes);

  std::vector<uint8_t> wanted(batch.n_tokens);
  for (int64_t p = 0; p < batch.starts[batch.experts]; ++p) wanted[batch.tokens[p]] = 1;

  const Pool::Awake awake(engine.pool);
  const Inputs inputs(engine, gate_form, batch.n_tokens, batch.x, wanted.data());

  engine.pool.loop(n_groups * inner_items, [&](int64_t item, int thread) {
    const Group& group = groups[item / inner_items];
    const int64_t row = item % inner_items * inner_rows;
    const int64_t rows = std::min(inner_rows, intermediate - row);
    const Workspace work(engine.scratch[thread], sizes);
    const Matrix gate = matrix_at(gate_form, format, 0, batch.pages[group.expert]);
    const Matrix up = matrix_at(gate_form, format, 1, batch.pages[group.expert]);
    const void* x[MAX_TOKENS];
    for (int t = 0; t < group.count; ++t) x[t] = inputs.token(batch.tokens[group.first + t]);
    float* g = work.results;
    float* u = g + group.count * inner_rows;
    kernels.product(gate, row, rows, x, group.count, work.scratch, g, inner_rows, next_at(up, row));
    kernels.product(up, row, rows, x, group.count, work.scratch, u, inner_rows,
                    next_at(gate, row + rows));
    for (int t = 0; t < group.count; ++t) {
      uint8_t* to = inner + (group.first + t) * inner_bytes;
      float* h = quantized ? g + t * inner_rows : reinterpret_cast<float*>(to) + row;
      kernels.activate(activation, rows, g + t * inner_rows, u + t * inner_rows, h);
      if (quantized)
        kernels.quantize(h, row / format.block, rows / format.block, inner_layout, to);
    }
  });

  engine.pool.loop(outer_items, [&](int64_t item, int thread) {
    const int64_t row = item * outer_rows, rows = std::min(outer_rows, hidden - row);
    const Workspace work(engine.scratch[thread], sizes);
    // In the order of experts: each token's sum is rounded the same way whatever is computed when.
    for (int64_t i = 0; i < n_groups; ++i) {
      const Group& group = groups[i];
      const Matrix down = matrix_at(down_form, format, 2, batch.pages[group.expert]);
      const void* page_after = batch.pages[groups[i + 1 < n_groups ? i + 1 : 0].expert];
      const int64_t row_after = i + 1 < n_groups ? row : row + rows;
      const void* h[MAX_TOKENS];
      for (int t = 0; t < group.count; ++t) h[t] = inner + (group.first + t) * inner_bytes;
      kernels.product(down, row, rows, h, group.count, work.scratch, work.results, outer_rows,
                      next_at(matrix_at(down_form, format, 2, page_after), row_after));
      for (int t = 0; t < group.count; ++t) {
        const int64_t p = group.first + t;
        const float* y = work.results + t * outer_rows;
        if (out)
          kernels.accumulate(rows, batch.weights[p], y, out + batch.tokens[p] * hidden + row);
        else
          kernels.scale(rows, batch.weights[p], y, terms + p * hidden + row);
      }
    }
  });
}

int64_t scratch_bytes(const pm_format& format, int threads, int64_t n_tokens, int64_t n_rows) {
  const Matrix gate = matrix_of(format, 0), down = matrix_of(format, 2);
  const bool quantized = is_quantized(format.precision);
  const ScratchSizes sizes(std::max(format.hidden, format.intermediate),
                           std::max(gate.row_bytes(), down.row_bytes()), quantized);
  const int64_t results =
      2 * std::max(FEW_TOKENS * MOST_ROWS, std::min<int64_t>(n_rows, MAX_TOKENS) *
                                               std::max<int64_t>(FEWEST_ROWS, format.block));
  const int64_t input = quantized ? layout_of(gate).bytes() : 0;
  const int64_t inner = quantized ? layout_of(down).bytes() : round_up(4 * format.intermediate, 64);
  return threads * round_up(Workspace::bytes(sizes, results), 64) + n_tokens * input +
         n_rows * inner;
}

void add_terms(Engine& engine, int64_t n_terms, int64_t hidden, const int64_t* tokens,
               const float* terms, float* out) {
  constexpr int64_t COLUMNS = 512;
  const auto add = [&](int64_t item, int) {
    const int64_t at = item * COLUMNS, n = std::min(COLUMNS, hidden - at);
    for (int64_t p = 0; p < n_terms; ++p)
      engine.kernels.accumulate(n, 1.0f, terms + p * hidden + at, out + tokens[p] * hidden + at);
  };
  const int64_t items = (hidden + COLUMNS - 1) / COLUMNS;
  if (n_terms < 16)
    for (int64_t item = 0; item < items; ++item) add(item, 0);
  else
    engine.pool.loop(items, add);
}

void run_products(Engine& engine, const Matrix* matrices, int count, int64_t n_tokens,
                  const float* x, float* const* y) {
  int64_t rows_of_all = 0, row_bytes = 0;
  for (int i = 0; i < count; ++i) {
    rows_of_all += matrices[i].rows;
    row_bytes = std::max(row_bytes, matrices[i].row_bytes());
  }
  if (n_tokens == 0 || rows_of_all == 0) return;
  const int64_t item_rows = rows_of_item(rows_of_all, n_tokens, engine.pool.threads());
  const auto items_of = [&](const Matrix& w) { return (w.rows + item_rows - 1) / item_rows; };
  int64_t items = 0;
  for (int i = 0; i < count; ++i) items += items_of(matrices[i]);
  const ScratchSizes sizes(matrices->columns, row_bytes, is_quantized(matrices->precision));
  reserve(engine, sizes, 0);

  const Inputs inputs(engine, *matrices, n_tokens, x, nullptr);
  for (int64_t first = 0; first < n_tokens; first += MAX_TOKENS) {
    const int tokens = static_cast<int>(std::min<int64_t>(MAX_TOKENS, n_tokens - first));
    engine.pool.loop(items, [&](int64_t item, int thread) {
      int i = 0;
      for (; item >= items_of(matrices[i]); ++i) item -= items_of(matrices[i]);
      const Matrix& matrix = matrices[i];
      const int64_t row = item * item_rows, rows = std::min(item_rows, matrix.rows - row);
      const bool ends = row + rows == matrix.rows && i + 1 < count;
      const Workspace work(engine.scratch[thread], sizes);
      const void* each[MAX_TOKENS];
      for (int t = 0; t < tokens; ++t) each[t] = inputs.token(first + t);
      engine.kernels.product(matrix, row, rows, each, tokens, work.scratch,
                             y[i] + first * matrix.rows + row, matrix.rows,
                             ends ? next_at(matrices[i + 1], 0) : next_at(matrix, row + rows));
    });
  }
}

int64_t product_bytes(const Matrix& matrix, int threads, int64_t n_tokens) {
  const bool quantized = is_quantized(matrix.precision);
  const ScratchSizes sizes(matrix.columns, matrix.row_bytes(), quantized);
  return threads * round_up(sizes.bytes(), 64) +
         (quantized ? n_tokens * layout_of(matrix).bytes() : 0);
}

}  // namespace pm
