// What a set of kernels for one instruction set offers, and the data that they work on.
// Everything above this table (layer.cpp, api.cpp) is the same for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pm {

enum Precision : int32_t { INT4 = 0, INT8 = 1, FP16 = 2, FP32 = 3 };

inline bool is_quantized(int32_t precision) { return precision == INT4 || precision == INT8; }

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Elements are padded to whole chunks, so that kernels need no tail in the activations.
constexpr int64_t CHUNK = 128;
// At most so many tokens are given to one product: bounds the scratch memory.
constexpr int MAX_TOKENS = 128;
// Rows that a kernel may work on at once, in any instruction set.
constexpr int MAX_PANEL = 32;
// Transposed scales are padded to a multiple of this many blocks.
constexpr int64_t SCALE_PAD = 16;
// Columns that are packed at a time: a panel's part of them stays in the first-level cache.
constexpr int64_t PACKED_COLUMNS = 512;

// W [rows, columns], row-major; its block scales [rows, columns / block] are fp16, or fp32 where
// wide_scales is set. bias: fp32 [rows], or null.
struct Matrix {
  int32_t precision;
  int32_t block;
  bool wide_scales;
  int64_t rows, columns;
  const uint8_t* weights;
  const uint8_t* scales;
  const float* bias;

  int64_t row_bytes() const {
    constexpr int64_t bits[] = {4, 8, 16, 32};
    return columns * bits[precision] / 8;
  }
  int64_t blocks() const { return columns / block; }
};

// Where a token's quantized activations lie within its record:
//   int8 values [padded columns], float scales [padded blocks], int32 corrections [padded blocks].
// Values for int8 weights are in order. For int4 weights each chunk of 128 holds its 64 even
// elements, then its 64 odd ones: the order in which a byte's nibbles come apart.
// A correction is what must be added to the integer dot product of a block, because weights are
// made unsigned by an offset where the instructions want that.
struct RecordLayout {
  int32_t bits, block;
  int64_t columns;

  int64_t padded() const { return round_up(columns, CHUNK); }
  int64_t blocks() const { return columns / block; }
  int64_t padded_blocks() const { return padded() / block; }
  int64_t scales_at() const { return padded(); }
  int64_t corrections_at() const { return padded() + 4 * padded_blocks(); }
  int64_t bytes() const { return round_up(padded() + 8 * padded_blocks(), 64); }
};

struct Activation {
  int32_t kind;  // 0: silu(g) · u. 1: clamped, g' · sigmoid(alpha · g') · (u' + 1)
  float alpha, limit;
};

// Memory of one thread; `scratch_bytes` says how much. Aligned to 64 bytes.
struct Scratch {
  uint8_t* packed;  // some columns of a panel, one byte each: [MAX_PANEL · PACKED_COLUMNS]
  float* sums;      // a panel's results so far, [MAX_TOKENS, panel]
  float* scales;    // a panel's scales, [blocks, panel]; or terms of some rows, [16, blocks]
  uint8_t* rows;    // the last rows, filled up to a panel with zeros: [panel, row_bytes]
};

// The block scales of a panel: as stored, `row_bytes` for each row, and transposed, [blocks, panel],
// for kernels that want them so.
struct PanelScales {
  const uint8_t* stored;
  bool wide;  // fp32, not fp16
  int rows;   // there may be fewer than in a panel
  int64_t row_bytes;
  const float* transposed;
};

// What is likely to be read next: a hint for fetching it early. Null is fine.
struct Next {
  const uint8_t* weights;
  const uint8_t* scales;
};

// Sums of floats are made in so many lanes in every instruction set, element i in lane i % LANES,
// and then added up: lanes i and i + 8, of these i and i + 4, then (0 + 2) + (1 + 3).
constexpr int64_t LANES = 16;

// Pairs of a head that rotate() takes at most.
constexpr int64_t MOST_PAIRS = 512;

// What the steps of a segment want beside products: see rows.inl. All are floats.
struct RowKernels {
  // A norm; see pm_norm. x, weight, bias, y: [n]. y may be x.
  void (*norm)(const float* x, int64_t n, const float* weight, const float* bias, float eps,
               float* y);

  // See pm_rotate; of one head, in place. x: [2 · pairs], cos, sin: [pairs].
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t pairs, bool interleaved);

  // y[i] = e^x[i]; x, y: [n]. y may be x.
  void (*exponentials)(const float* x, int64_t n, float* y);

  // y[i] = x[i] / (1 + e^−by[i]); x, y: [n], by: [n], or [1] where it is single. y may be x.
  void (*gate)(const float* x, const float* by, int64_t n, bool single, float* y);

  // A part of a softmax: scores [low, high) of n become e^(scale · score − most), the others 0.
  // `most` and `sum` are those of the parts so far. Returns what their weights must be multiplied
  // by. scores: [n], in memory for a multiple of LANES.
  float (*soften)(float* scores, int64_t n, int64_t low, int64_t high, float scale, float* most,
                  float* sum);

  // out[q] = out[q] · factors[q] + Σ_j weights[q · stride + j] · rows[j], each in the order of j,
  // for j from low[q] up to high[q] alone. weights: [queries, stride], rows: [n, width], low, high,
  // factors: [queries], out: [queries][width].
  void (*weigh)(const float* weights, int64_t stride, int queries, const float* rows,
                int64_t width, const int64_t* low, const int64_t* high, const float* factors,
                float* const* out);
};

// What Python computes with: see doubles.inl.
struct DoubleKernels {
  // x[i] = e^x[i]; x: [n].
  void (*exponentials)(double* x, int64_t n);

  // cos, sin [tokens, pairs]: of the angles position · frequency, rounded to float32, times scale.
  // frequencies: [pairs]; positions: from start on.
  void (*rotary_table)(const float* frequencies, int64_t pairs, int64_t start, int64_t tokens,
                       float scale, float* cos, float* sin);
};

struct Kernels {
  const char* name;

  // Quantizes blocks [first, first + count) of a token, x [count · block], into its record
  // [layout.bytes()]. With the last block, fills the padding. A block with a NaN or infinity gets a
  // NaN as scale.
  void (*quantize)(const float* x, int64_t first, int64_t count, const RecordLayout& layout,
                   uint8_t* record);

  // y[t][r] = W[row + r] · x[t] (+ bias), for r < rows and t < tokens <= MAX_TOKENS.
  // x: [tokens] records for int4 and int8, else rows of float [columns]. y: [tokens, y_stride].
  // A result does not depend on which rows and tokens are computed together.
  void (*product)(const Matrix& w, int64_t row, int64_t rows, const void* const* x, int tokens,
                  const Scratch& scratch, float* y, int64_t y_stride, const Next& after);

  // h[i] = activation(gate[i], up[i]); all [n]. h may be one of them.
  void (*activate)(const Activation& activation, int64_t n, const float* gate, const float* up,
                   float* h);

  // out[i] = weight · y[i] + out[i], rounded twice; y, out: [n].
  void (*accumulate)(int64_t n, float weight, const float* y, float* out);

  // out[i] = weight · y[i]; y, out: [n].
  void (*scale)(int64_t n, float weight, const float* y, float* out);

  // Reads memory, data [n], at full speed. n: a multiple of 128.
  uint64_t (*read)(const uint8_t* data, int64_t n);

  const RowKernels* rows;
  const DoubleKernels* doubles;
};

// Bytes of each part of a Scratch for matrices of up to so many columns, with the smallest block.
struct ScratchSizes {
  int64_t packed, sums, scales, rows;
  ScratchSizes(int64_t columns, int64_t row_bytes, bool quantized) {
    const int64_t padded = round_up(columns, CHUNK);
    packed = quantized ? MAX_PANEL * PACKED_COLUMNS : 0;
    sums = quantized ? MAX_PANEL * MAX_TOKENS * 4 : 0;
    scales = quantized ? MAX_PANEL * round_up(padded / 32, SCALE_PAD) * 4 : 0;
    rows = quantized ? round_up(MAX_PANEL * row_bytes, 64) : 0;
  }
  int64_t bytes() const { return packed + sums + scales + rows; }
};

// Null where the library was built without them or the processor lacks them.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();
const Kernels* plain_kernels();

}  // namespace pm
