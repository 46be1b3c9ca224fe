// AVX-512 with VNNI: vpdpbusd multiplies four unsigned by four signed bytes and adds to a lane.
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "target.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own headers' undefined vectors for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

PM_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

namespace pm {
namespace avx512 {

constexpr int32_t INT8_OFFSET = 128;
#include "common.inl"

inline int32_t load_int(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return value;
}

#include "avx512_lanes.inl"

// A byte's nibbles as the unsigned 0 to 15, eight more than what they stand for: (w & 15) ^ 8.
inline __m512i low_nibbles(__m512i w) {
  return _mm512_ternarylogic_epi32(w, _mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x08), 0x6a);
}
inline __m512i high_nibbles(__m512i w) { return low_nibbles(_mm512_srli_epi16(w, 4)); }

// In line always: else GCC may take it for a function without effects, and leave it out.
PM_IN_LINE void fetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
}

constexpr int GROUP = 16, GROUPS = 2;  // rows of a vector; vectors of a panel

#include "avx512_rows.inl"

struct Q {
  static constexpr int PANEL = GROUP * GROUPS, TILE = 6, FEW = 3;
  static constexpr bool DOT_TRANSPOSES = false;

  static void transpose_scales(const uint8_t* scales, bool wide, int rows, int64_t blocks,
                               float* out) {
    const int size = wide ? 4 : 2;
    for (int64_t b = 0; b < blocks; b += 16) {
      const __mmask16 mask = blocks - b >= 16 ? 0xffff : (1u << (blocks - b)) - 1;
      for (int g = 0; g < GROUPS; ++g) {
        __m512i quads[4][4], columns[4][4];
#pragma GCC unroll 16
        for (int r = 0; r < GROUP; ++r) {
          const int row = g * GROUP + r;
          const uint8_t* from = scales + row * blocks * size;
          __m512 values = _mm512_setzero_ps();
          if (row < rows) values = load_scales(from, wide, b, mask);
          quads[r % 4][r / 4] = _mm512_castps_si512(values);
        }
        transpose(quads, columns);
        for (int j = 0; j < 16; ++j)
          _mm512_store_si512(out + (b + j) * PANEL + g * GROUP, columns[j / 4][j % 4]);
      }
    }
  }

  template <int BITS, int PIECES>
  static void dot(const uint8_t* weights, const PanelScales& scales, const RecordLayout& layout,
                  const uint8_t* x, const Next& next, const Scratch& scratch, float* y) {
    dot_by_rows<BITS, PIECES>(weights, scales, layout, x, next, scratch, y);
  }

  static __m512 add_block(__m512 acc, __m512i sum, const float* scales, float x_scale) {
    const __m512 scale = _mm512_mul_ps(_mm512_load_ps(scales), _mm512_set1_ps(x_scale));
    return _mm512_add_ps(acc, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
  }

  // For each piece and each of its four dwords j, both groups: 16 rows' four bytes. int4: the four
  // vectors of low nibbles (even elements), then those of high ones.
  template <int BITS>
  static void pack(const uint8_t* weights, int64_t row_bytes, int64_t bytes, const uint8_t* next,
                   uint8_t* packed) {
    constexpr int64_t PIECE = (BITS == 4 ? 8 : 4) * GROUPS * 64;
    for (int64_t at = 0; at < bytes; at += 64) {
      const int pieces = static_cast<int>(bytes - at < 64 ? (bytes - at) / 16 : 4);
      const __mmask64 mask = pieces == 4 ? ~0ull : (1ull << (16 * pieces)) - 1;
      for (int g = 0; g < GROUPS; ++g) {
        __m512i quads[4][4], columns[4][4];
#pragma GCC unroll 16
        for (int r = 0; r < GROUP; ++r) {
          const int64_t from = (g * GROUP + r) * row_bytes + at;
          fetch(next + from);
          quads[r % 4][r / 4] = _mm512_maskz_loadu_epi8(mask, weights + from);
        }
        transpose(quads, columns);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
          if (p == pieces) break;
          for (int j = 0; j < 4; ++j) {
            const __m512i w = columns[p][j];
            uint8_t* to = packed + p * PIECE + (j * GROUPS + g) * 64;
            if (BITS == 8) {
              _mm512_store_si512(to, _mm512_xor_si512(w, _mm512_set1_epi8(-128)));
            } else {
              _mm512_store_si512(to, low_nibbles(w));
              _mm512_store_si512(to + PIECE / 2, high_nibbles(w));
            }
          }
        }
      }
      packed += 4 * PIECE;
    }
  }

  template <int BITS, int PIECES, int N>
  static void tile(const uint8_t* packed, const float* scales, const RecordLayout& layout,
                   int64_t first, int64_t count, const uint8_t* const* x, float* sums) {
    const int64_t scales_at = layout.scales_at() + 4 * first,
                  corrections_at = layout.corrections_at() + 4 * first;
    __m512 acc[N][GROUPS];
    for (int n = 0; n < N; ++n)
      for (int g = 0; g < GROUPS; ++g) acc[n][g] = _mm512_load_ps(sums + n * PANEL + g * GROUP);
    int64_t piece = first * PIECES;
    for (int64_t b = 0; b < count; ++b) {
      __m512i sum[N][GROUPS];
      for (int n = 0; n < N; ++n) {
        const __m512i start = _mm512_set1_epi32(load_int(x[n] + corrections_at + 4 * b));
        for (int g = 0; g < GROUPS; ++g) sum[n][g] = start;
      }
      for (int p = 0; p < PIECES; ++p, ++piece) {
        // Where the piece's activations are: see RecordLayout.
        const int64_t at = BITS == 4 ? piece / 4 * 128 + piece % 4 * 16 : piece * 16;
#pragma GCC unroll 8
        for (int j = 0; j < (BITS == 4 ? 8 : 4); ++j) {
          const __m512i w0 = _mm512_load_si512(packed), w1 = _mm512_load_si512(packed + 64);
          packed += GROUPS * 64;
          const int64_t from = at + (j < 4 ? 4 * j : 64 + 4 * (j - 4));
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) {
            const __m512i v = _mm512_set1_epi32(load_int(x[n] + from));
            sum[n][0] = _mm512_dpbusd_epi32(sum[n][0], w0, v);
            sum[n][1] = _mm512_dpbusd_epi32(sum[n][1], w1, v);
          }
        }
      }
      for (int n = 0; n < N; ++n) {
        float x_scale;
        std::memcpy(&x_scale, x[n] + scales_at + 4 * b, 4);
        for (int g = 0; g < GROUPS; ++g)
          acc[n][g] = add_block(acc[n][g], sum[n][g], scales + b * PANEL + g * GROUP, x_scale);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int g = 0; g < GROUPS; ++g) _mm512_store_ps(sums + n * PANEL + g * GROUP, acc[n][g]);
  }
};

struct F {
  using V = __m512;
  static constexpr int WIDTH = 16, ROWS = 4, TILE_ROWS = 4, TILE_TOKENS = 4;
  static V zero() { return _mm512_setzero_ps(); }
  static V load(const float* x) { return _mm512_loadu_ps(x); }
  static V load_half(const uint16_t* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static V held(V v) { return v; }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(const V (&v)[1]) {
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

#include "quantized.inl"
#include "floats.inl"
#include "rows.inl"
#include "doubles.inl"

uint64_t read(const uint8_t* data, int64_t n) {
  __m512i a = _mm512_setzero_si512(), b = a;
  for (int64_t i = 0; i < n; i += 128) {
    a = _mm512_add_epi64(a, _mm512_loadu_si512(data + i));
    b = _mm512_add_epi64(b, _mm512_loadu_si512(data + i + 64));
  }
  alignas(64) uint64_t parts[8];
  _mm512_store_si512(parts, _mm512_add_epi64(a, b));
  uint64_t sum = 0;
  for (const uint64_t part : parts) sum += part;
  return sum;
}

}  // namespace avx512
}  // namespace pm

PM_TARGET_END

namespace pm {
const Kernels* avx512_kernels() {
  static const Kernels kernels{
      "avx512",    avx512::quantize, avx512::product,      avx512::activate, avx512::accumulate,
      avx512::scale, avx512::read,     &avx512::row_kernels, &avx512::double_kernels};
  __builtin_cpu_init();
  const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
  return here ? &kernels : nullptr;
}
}  // namespace pm

#else
namespace pm {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace pm
#endif
