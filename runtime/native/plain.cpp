// Plain C++, for processors without any of the others, and to compare with.
#include <cstring>

#include "kernels.h"
#include "target.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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
  typedef float V __attribute__((vector_size(16)));
  static constexpr int WIDTH = 4, ROWS = 2, TILE_ROWS = 2, TILE_TOKENS = 1;
  static V zero() { return V{}; }
  static V load(const float* x) {
    V v;
    std::memcpy(&v, x, sizeof v);
    return v;
  }
  static V load_half(const uint16_t* x) {
    uint16_t half[WIDTH];
    std::memcpy(half, x, sizeof half);
    return V{half_to_float(half[0]), half_to_float(half[1]), half_to_float(half[2]),
             half_to_float(half[3])};
  }
  static V held(V v) { return v; }
#if defined(__SSE2__) && !defined(__FP_FAST_FMAF)
  // Processors without fused multiply-adds. In double the product is exact, and the sum, rounded
  // to a float, the right one: but where it lies halfway between two floats, or is so small that
  // floats have fewer bits. Those are looked at again.
  static V fma(V a, V b, V c) {
    const auto sum = [](V a, V b, V c) {  // of the lower two
      return _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), _mm_cvtps_pd(c));
    };
    const auto upper = [](V v) { return _mm_movehl_ps(v, v); };
    const __m128d low = sum(a, b, c), high = sum(upper(a), upper(b), upper(c));
    V v = _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
    const __m128i below = _mm_castps_si128(
        _mm_shuffle_ps(_mm_castpd_ps(low), _mm_castpd_ps(high), _MM_SHUFFLE(2, 0, 2, 0)));
    const __m128i halfway = _mm_cmpeq_epi32(_mm_and_si128(below, _mm_set1_epi32(0x1fffffff)),
                                            _mm_set1_epi32(0x10000000));
    const __m128i exponents = _mm_and_si128(_mm_castps_si128(v), _mm_set1_epi32(0x7f800000));
    const __m128i small = _mm_cmpeq_epi32(exponents, _mm_setzero_si128());
    const int doubtful = _mm_movemask_ps(_mm_castsi128_ps(_mm_or_si128(halfway, small)));
    if (__builtin_expect(doubtful, 0)) look_again(doubtful, a, b, c, v);
    return v;
  }
  PM_OUT_OF_LINE static void look_again(int lanes, V a, V b, V c, V& v) {
    for (int i = 0; i < WIDTH; ++i)
      if (lanes >> i & 1) v[i] = __builtin_fmaf(a[i], b[i], c[i]);
  }
#else
  static V fma(V a, V b, V c) {
    for (int i = 0; i < WIDTH; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
  }
#endif
  static float sum(const V (&v)[4]) {
    const V four = (v[0] + v[2]) + (v[1] + v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
};

#include "quantized.inl"
#include "floats.inl"
#include "rows.inl"
#include "doubles.inl"

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
  static const Kernels kernels{
      "plain",    plain::quantize, plain::product,      plain::activate, plain::accumulate,
      plain::scale, plain::read,     &plain::row_kernels, &plain::double_kernels};
  return &kernels;
}

}  // namespace pm
