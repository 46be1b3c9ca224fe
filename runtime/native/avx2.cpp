// AVX2: vpmaddubsw multiplies unsigned by signed bytes and adds pairs, in 16 bits with saturation.
// int4 weights are made unsigned and cannot saturate: eight products of pairs fit, 8 · 2 · 15 · 127.
// int8 weights pass their signs to the activations: 2 · 128 · 127 fits.
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "target.h"

PM_TARGET_BEGIN("avx2,fma,f16c")

namespace pm {
namespace avx2 {

constexpr int32_t INT8_OFFSET = 0;
#include "common.inl"

inline int32_t load_int(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return value;
}

inline __m256i load_bytes(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

// 4 × 4 transposition of dwords within each 128-bit lane.
inline void transpose_in_lanes(__m256i (&v)[4]) {
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm256_unpacklo_epi64(a, c);
  v[1] = _mm256_unpackhi_epi64(a, c);
  v[2] = _mm256_unpacklo_epi64(b, d);
  v[3] = _mm256_unpackhi_epi64(b, d);
}

// Four sums of four dwords within each lane, in the order of the vectors.
inline __m256i sums_in_lanes(const __m256i (&v)[4]) {
  return _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
}

inline __m256i add_pairs(__m256i v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }

inline void fetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
}

struct Q {
  static constexpr int PANEL = 8, TILE = 4, FEW = 3;
  static constexpr bool DOT_TRANSPOSES = true;

  static void transpose_scales(const uint8_t* scales, bool wide, int rows, int64_t blocks,
                               float* out) {
    const int size = wide ? 4 : 2;
    for (int64_t b = 0; b < blocks; b += 8) {
      const int64_t valid = blocks - b < 8 ? blocks - b : 8;
      __m256i quads[2][4];  // [l][q]: lane i is blocks 4l.. of row 4i + q
      for (int q = 0; q < 4; ++q) {
        const __m256i low = scales_of(scales, wide, q, rows, blocks, b, valid, size);
        const __m256i high = scales_of(scales, wide, q + 4, rows, blocks, b, valid, size);
        quads[0][q] = _mm256_permute2x128_si256(low, high, 0x20);
        quads[1][q] = _mm256_permute2x128_si256(low, high, 0x31);
      }
      for (int l = 0; l < 2; ++l) {
        transpose_in_lanes(quads[l]);
        for (int j = 0; j < 4; ++j)
          _mm256_store_si256(reinterpret_cast<__m256i*>(out + (b + 4 * l + j) * PANEL),
                             quads[l][j]);
      }
    }
  }

  static __m256i scales_of(const uint8_t* scales, bool wide, int row, int rows, int64_t blocks,
                           int64_t b, int64_t valid, int size) {
    alignas(32) uint8_t part[32] = {};
    const uint8_t* from = scales + (row * blocks + b) * size;
    if (row >= rows) return _mm256_setzero_si256();
    if (valid < 8) {
      std::memcpy(part, from, valid * size);
      from = part;
    }
    if (wide) return load_bytes(from);
    return _mm256_castps_si256(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }

  // Eight rows, 32 bytes of each at a time.
  template <int BITS, int PIECES>
  static void dot(const uint8_t* weights, const PanelScales& panel, const RecordLayout& layout,
                  const uint8_t* x, const Next& next, const Scratch&, float* y) {
    const int64_t row_bytes = layout.columns * BITS / 8;
    const int64_t scale_step = 64 * PANEL * panel.row_bytes / row_bytes;  // for 64 bytes of rows
    const float* scales = panel.transposed;
    const float* x_scales = reinterpret_cast<const float*>(x + layout.scales_at());
    const int32_t* corrections = reinterpret_cast<const int32_t*>(x + layout.corrections_at());
    __m256 acc = _mm256_setzero_ps();
    __m256i sum = _mm256_setzero_si256();
    for (int64_t at = 0; at < row_bytes; at += 32) {
      const bool half = row_bytes - at < 32;  // only int4 rows end so
      __m256i x0, x1;
      if (BITS == 4) {
        const uint8_t* from = x + at / 64 * 128 + at % 64;
        x0 = load_bytes(from);
        x1 = load_bytes(from + 64);
      } else {
        x0 = x1 = load_bytes(x + at);
      }
      if (at % 64 == 0)
        for (int64_t i = 0; i < scale_step; i += 64) fetch(next.scales + at / 64 * scale_step + i);
      __m256i quads[2];
      for (int q = 0; q < 2; ++q) {
        __m256i rows[4];
        for (int r = 0; r < 4; ++r) {
          const int64_t from = (4 * q + r) * row_bytes + at;
          if (r % 2 == 0) fetch(next.weights + PANEL * at + 32 * (4 * q + r));
          const __m256i w =
              half ? _mm256_zextsi128_si256(
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + from)))
                   : load_bytes(weights + from);
          rows[r] = dot_bytes<BITS>(w, x0, x1);
        }
        quads[q] = sums_in_lanes(rows);  // lane i: piece i, of rows 4q to 4q + 3
      }
      const __m256i pieces[2] = {_mm256_permute2x128_si256(quads[0], quads[1], 0x20),
                                 _mm256_permute2x128_si256(quads[0], quads[1], 0x31)};
      for (int i = 0; i < 2; ++i) {
        sum = _mm256_add_epi32(sum, pieces[i]);
        const int64_t piece = at / 16 + i;
        if (PIECES <= 2 ? (i + 1) % PIECES != 0 : (piece + 1) % PIECES != 0) continue;
        const int64_t b = piece / PIECES;
        acc = add_block(acc, _mm256_add_epi32(sum, _mm256_set1_epi32(corrections[b])),
                        scales + b * PANEL, x_scales[b]);
        sum = _mm256_setzero_si256();
      }
    }
    _mm256_storeu_ps(y, acc);
  }

  template <int BITS>
  static __m256i dot_bytes(__m256i w, __m256i x0, __m256i x1) {
    if (BITS == 8)
      return add_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x0, w)));
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i biased = _mm256_xor_si256(w, _mm256_set1_epi8(-120));  // 0x88
    const __m256i low = _mm256_and_si256(biased, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(biased, 4), nibble);
    return add_pairs(
        _mm256_add_epi16(_mm256_maddubs_epi16(low, x0), _mm256_maddubs_epi16(high, x1)));
  }

  static __m256 add_block(__m256 acc, __m256i sum, const float* scales, float x_scale) {
    const __m256 scale = _mm256_mul_ps(_mm256_load_ps(scales), _mm256_set1_ps(x_scale));
    return _mm256_add_ps(acc, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale));
  }

  // For each piece and each of its four dwords: 8 rows' four bytes. int4: the four vectors of low
  // nibbles (even elements), then those of high ones.
  template <int BITS>
  static void pack(const uint8_t* weights, int64_t row_bytes, int64_t bytes, const uint8_t* next,
                   uint8_t* packed) {
    const __m256i nibble = _mm256_set1_epi8(0x0f), flip = _mm256_set1_epi8(-120);
    for (int64_t at = 0; at < bytes; at += 16) {
      __m256i v[4];
      for (int q = 0; q < 4; ++q) {
        const uint8_t* low = weights + q * row_bytes + at;
        const uint8_t* high = low + 4 * row_bytes;
        v[q] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
      }
      if (at % 64 == 0)
        for (int r = 0; r < PANEL; ++r) fetch(next + r * row_bytes + at);
      transpose_in_lanes(v);
      __m256i* to = reinterpret_cast<__m256i*>(packed);
      for (int j = 0; j < 4; ++j) {
        if (BITS == 8) {
          _mm256_store_si256(to + j, v[j]);
        } else {
          const __m256i biased = _mm256_xor_si256(v[j], flip);
          _mm256_store_si256(to + j, _mm256_and_si256(biased, nibble));
          _mm256_store_si256(to + 4 + j, _mm256_and_si256(_mm256_srli_epi16(biased, 4), nibble));
        }
      }
      packed += (BITS == 4 ? 8 : 4) * 32;
    }
  }

  template <int BITS, int PIECES, int N>
  static void tile(const uint8_t* packed, const float* scales, const RecordLayout& layout,
                   int64_t first, int64_t count, const uint8_t* const* x, float* sums) {
    const int64_t scales_at = layout.scales_at() + 4 * first,
                  corrections_at = layout.corrections_at() + 4 * first;
    __m256 acc[N];
    for (int n = 0; n < N; ++n) acc[n] = _mm256_load_ps(sums + n * PANEL);
    int64_t piece = first * PIECES;
    for (int64_t b = 0; b < count; ++b) {
      __m256i sum[N];
      for (int n = 0; n < N; ++n)
        sum[n] = _mm256_set1_epi32(load_int(x[n] + corrections_at + 4 * b));
      for (int p = 0; p < PIECES; ++p, ++piece) {
        const int64_t at = BITS == 4 ? piece / 4 * 128 + piece % 4 * 16 : piece * 16;
        __m256i pairs[N];  // int4: eight of them add up within 16 bits
        for (int n = 0; n < N; ++n) pairs[n] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int j = 0; j < (BITS == 4 ? 8 : 4); ++j) {
          const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(packed));
          packed += 32;
          const int64_t from = at + (j < 4 ? 4 * j : 64 + 4 * (j - 4));
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) {
            const __m256i v = _mm256_set1_epi32(load_int(x[n] + from));
            if (BITS == 4)
              pairs[n] = _mm256_add_epi16(pairs[n], _mm256_maddubs_epi16(w, v));
            else
              sum[n] = _mm256_add_epi32(sum[n], dot_bytes<8>(w, v, v));
          }
        }
        if (BITS == 4)
          for (int n = 0; n < N; ++n) sum[n] = _mm256_add_epi32(sum[n], add_pairs(pairs[n]));
      }
      for (int n = 0; n < N; ++n) {
        float x_scale;
        std::memcpy(&x_scale, x[n] + scales_at + 4 * b, 4);
        acc[n] = add_block(acc[n], sum[n], scales + b * PANEL, x_scale);
      }
    }
    for (int n = 0; n < N; ++n) _mm256_store_ps(sums + n * PANEL, acc[n]);
  }
};

struct F {
  using V = __m256;
  static constexpr int WIDTH = 8, ROWS = 4, TILE_ROWS = 2, TILE_TOKENS = 3;
  static V zero() { return _mm256_setzero_ps(); }
  static V load(const float* x) { return _mm256_loadu_ps(x); }
  static V load_half(const uint16_t* x) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static V held(V v) {
    __asm__ __volatile__("" : "+x"(v));
    return v;
  }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(const V (&v)[2]) {
    const __m256 eight = _mm256_add_ps(v[0], v[1]);
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
  __m256i a = _mm256_setzero_si256(), b = a;
  for (int64_t i = 0; i < n; i += 64) {
    a = _mm256_add_epi64(a, load_bytes(data + i));
    b = _mm256_add_epi64(b, load_bytes(data + i + 32));
  }
  alignas(32) uint64_t parts[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), _mm256_add_epi64(a, b));
  return parts[0] + parts[1] + parts[2] + parts[3];
}

}  // namespace avx2
}  // namespace pm

PM_TARGET_END

namespace pm {
const Kernels* avx2_kernels() {
  static const Kernels kernels{
      "avx2",    avx2::quantize, avx2::product,      avx2::activate, avx2::accumulate,
      avx2::scale, avx2::read,     &avx2::row_kernels, &avx2::double_kernels};
  __builtin_cpu_init();
  const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  return here ? &kernels : nullptr;
}
}  // namespace pm

#else
namespace pm {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace pm
#endif
