// Plain C++, for processors without any of the others, and to compare with.
#include <cstring>

#include "kernels.h"
#include "target.h"

namespace pm {
namespace plain {

constexpr int32_t INT8_OFFSET = 0;
#include "common.inl"

inline int nibble(int bits) { return (bits ^ 8) - 8; }

// Works straight from the page always: packing has nothing to win here.
struct Q {
  static constexpr int PANEL = 4, TILE = 6, FEW = MAX_TOKENS;
  static constexpr bool DOT_TRANSPOSES = true;

  static void transpose_scales(const uint8_t* scales, bool wide, int rows, int64_t blocks,
                               float* out) {
    for (int64_t b = 0; b < blocks; ++b) {
      for (int r = 0; r < PANEL; ++r) {
        float value = 0.0f;
        uint16_t half;
        if (r < rows && wide) std::memcpy(&value, scales + (r * blocks + b) * 4, 4);
        if (r < rows && !wide) {
          std::memcpy(&half, scales + (r * blocks + b) * 2, 2);
          value = half_to_float(half);
        }
        out[b * PANEL + r] = value;
      }
    }
  }

  template <int BITS, int PIECES>
  static void dot(const uint8_t* weights, const PanelScales& panel, const RecordLayout& layout,
                  const uint8_t* x, const Next&, const Scratch&, float* y) {
    const int64_t row_bytes = layout.columns * BITS / 8;
    const float* scales = panel.transposed;
    const float* x_scales = reinterpret_cast<const float*>(x + layout.scales_at());
    constexpr int BYTES = 16 * PIECES;
    for (int r = 0; r < PANEL; ++r) {
      const uint8_t* row = weights + r * row_bytes;
      float acc = 0.0f;
      for (int64_t b = 0; b < layout.blocks(); ++b) {
        const uint8_t* w = row + b * BYTES;
        int32_t sum = 0;
        if (BITS == 4) {
          const uint8_t* even = x + b * BYTES / 64 * 128 + b * BYTES % 64;
          const uint8_t* odd = even + 64;
          for (int i = 0; i < BYTES; ++i)
            sum += nibble(w[i] & 15) * static_cast<int8_t>(even[i]) +
                   nibble(w[i] >> 4) * static_cast<int8_t>(odd[i]);
        } else {
          const uint8_t* values = x + b * BYTES;
          for (int i = 0; i < BYTES; ++i)
            sum += static_cast<int8_t>(w[i]) * static_cast<int8_t>(values[i]);
        }
        acc += static_cast<float>(sum) * (scales[b * PANEL + r] * x_scales[b]);
      }
      y[r] = acc;
    }
  }

  template <int BITS>
  static void pack(const uint8_t*, int64_t, int64_t, const uint8_t*, uint8_t*) {}
  template <int BITS, int PIECES, int N>
  static void tile(const uint8_t*, const float*, const RecordLayout&, int64_t, int64_t,
                   const uint8_t* const*, float*) {}
};

struct F {
  struct V {
    float of[8];
  };
  static constexpr int WIDTH = 8, ROWS = 2, COLUMNS = 1;
  static V zero() { return V{}; }
  static V load(const float* x) {
    V v;
    std::memcpy(v.of, x, sizeof v.of);
    return v;
  }
  static V load_half(const uint16_t* x) {
    V v;
    uint16_t half[WIDTH];
    std::memcpy(half, x, sizeof half);
    for (int i = 0; i < WIDTH; ++i) v.of[i] = half_to_float(half[i]);
    return v;
  }
  static V fma(const V& a, const V& b, const V& c) {
    V v;
    for (int i = 0; i < WIDTH; ++i) v.of[i] = a.of[i] * b.of[i] + c.of[i];
    return v;
  }
  static float sum(const V& v) {
    return ((v.of[0] + v.of[4]) + (v.of[2] + v.of[6])) + ((v.of[1] + v.of[5]) + (v.of[3] + v.of[7]));
  }
};

#include "quantized.inl"
#include "floats.inl"
#include "rows.inl"

uint64_t read(const uint8_t* data, int64_t n) {
  uint64_t sums[4] = {};
  for (int64_t i = 0; i < n; i += 32) {
    uint64_t part[4];
    std::memcpy(part, data + i, 32);
    for (int j = 0; j < 4; ++j) sums[j] += part[j];
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace plain

const Kernels* plain_kernels() {
  static const Kernels kernels{"plain",         plain::quantize,   plain::product, plain::activate,
                               plain::accumulate, plain::scale, plain::read, &plain::row_kernels};
  return &kernels;
}

}  // namespace pm
