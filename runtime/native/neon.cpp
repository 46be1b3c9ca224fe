// NEON with the dot product extension: sdot multiplies four signed by four signed bytes and adds to
// a lane; one operand can be taken from a lane for all.
#include <cstring>

#include "kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "target.h"

#if defined(__clang__)
PM_TARGET_BEGIN("dotprod")
#else
PM_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

namespace pm {
namespace neon {

constexpr int32_t INT8_OFFSET = 0;
#include "common.inl"

inline int8x16_t load_bytes(const void* from) { return vld1q_s8(static_cast<const int8_t*>(from)); }

inline void transpose(int32x4_t (&v)[4]) {
  const int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(v[0], v[1]));
  const int64x2_t b = vreinterpretq_s64_s32(vtrn2q_s32(v[0], v[1]));
  const int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(v[2], v[3]));
  const int64x2_t d = vreinterpretq_s64_s32(vtrn2q_s32(v[2], v[3]));
  v[0] = vreinterpretq_s32_s64(vtrn1q_s64(a, c));
  v[1] = vreinterpretq_s32_s64(vtrn1q_s64(b, d));
  v[2] = vreinterpretq_s32_s64(vtrn2q_s64(a, c));
  v[3] = vreinterpretq_s32_s64(vtrn2q_s64(b, d));
}

// int4: bytes of 0 to 15, eight more than the value.
inline int8x16_t low_nibbles(int8x16_t biased) {
  return vandq_s8(biased, vdupq_n_s8(0x0f));
}
inline int8x16_t high_nibbles(int8x16_t biased) {
  return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(biased), 4));
}
inline int8x16_t flip(int8x16_t w) { return veorq_s8(w, vdupq_n_s8(-120)); }  // 0x88

inline void fetch(const uint8_t* at) { __builtin_prefetch(at, 0, 2); }

struct Q {
  static constexpr int GROUP = 4, GROUPS = 2, PANEL = GROUP * GROUPS, TILE = 4, FEW = 3;
  static constexpr bool DOT_TRANSPOSES = true;

  static void transpose_scales(const uint8_t* scales, bool wide, int rows, int64_t blocks,
                               float* out) {
    const int size = wide ? 4 : 2;
    for (int64_t b = 0; b < blocks; b += 4) {
      const int64_t valid = blocks - b < 4 ? blocks - b : 4;
      for (int g = 0; g < GROUPS; ++g) {
        int32x4_t v[4];
        for (int r = 0; r < GROUP; ++r) {
          uint8_t part[16] = {};
          if (g * GROUP + r < rows)
            std::memcpy(part, scales + ((g * GROUP + r) * blocks + b) * size, valid * size);
          v[r] = wide ? vreinterpretq_s32_u8(vld1q_u8(part))
                      : vreinterpretq_s32_f32(vcvt_f32_f16(
                            vreinterpret_f16_u8(vld1_u8(part))));
        }
        transpose(v);
        for (int j = 0; j < 4; ++j)
          vst1q_f32(out + (b + j) * PANEL + g * GROUP, vreinterpretq_f32_s32(v[j]));
      }
    }
  }

  template <int BITS, int PIECES>
  static void dot(const uint8_t* weights, const PanelScales& panel, const RecordLayout& layout,
                  const uint8_t* x, const Next& next, const Scratch&, float* y) {
    const int64_t row_bytes = layout.columns * BITS / 8;
    const int64_t scale_step = 64 * PANEL * panel.row_bytes / row_bytes;  // for 64 bytes of rows
    const float* scales = panel.transposed;
    const float* x_scales = reinterpret_cast<const float*>(x + layout.scales_at());
    const int32_t* corrections = reinterpret_cast<const int32_t*>(x + layout.corrections_at());
    float32x4_t acc[GROUPS];
    int32x4_t sum[GROUPS];
    for (int g = 0; g < GROUPS; ++g) {
      acc[g] = vdupq_n_f32(0.0f);
      sum[g] = vdupq_n_s32(0);
    }
    for (int64_t at = 0; at < row_bytes; at += 16) {
      const int64_t piece = at / 16, b = piece / PIECES;
      const bool ends = (piece + 1) % PIECES == 0;
      const uint8_t* from = BITS == 4 ? x + at / 64 * 128 + at % 64 : x + at;
      const int8x16_t x0 = load_bytes(from), x1 = BITS == 4 ? load_bytes(from + 64) : x0;
      if (at % 64 == 0)
        for (int64_t i = 0; i < scale_step; i += 64) fetch(next.scales + at / 64 * scale_step + i);
      for (int g = 0; g < GROUPS; ++g) {
        int32x4_t rows[4];
        for (int r = 0; r < 4; ++r) {
          const int64_t where = (g * GROUP + r) * row_bytes + at;
          if (at % 64 == 0) fetch(next.weights + where);
          const int8x16_t w = load_bytes(weights + where);
          rows[r] = vdupq_n_s32(0);
          if (BITS == 8) {
            rows[r] = vdotq_s32(rows[r], w, x0);
          } else {
            const int8x16_t biased = flip(w);
            rows[r] = vdotq_s32(rows[r], low_nibbles(biased), x0);
            rows[r] = vdotq_s32(rows[r], high_nibbles(biased), x1);
          }
        }
        sum[g] = vaddq_s32(sum[g], vpaddq_s32(vpaddq_s32(rows[0], rows[1]),
                                              vpaddq_s32(rows[2], rows[3])));
        if (!ends) continue;
        acc[g] = add_block(acc[g], vaddq_s32(sum[g], vdupq_n_s32(corrections[b])),
                           scales + b * PANEL + g * GROUP, x_scales[b]);
        sum[g] = vdupq_n_s32(0);
      }
    }
    for (int g = 0; g < GROUPS; ++g) vst1q_f32(y + g * GROUP, acc[g]);
  }

  static float32x4_t add_block(float32x4_t acc, int32x4_t sum, const float* scales,
                               float x_scale) {
    const float32x4_t scale = vmulq_n_f32(vld1q_f32(scales), x_scale);
    return vaddq_f32(acc, vmulq_f32(vcvtq_f32_s32(sum), scale));
  }

  // For each piece and each of its four dwords, both groups: 4 rows' four bytes. int4: the four
  // dwords of low nibbles (even elements), then those of high ones.
  template <int BITS>
  static void pack(const uint8_t* weights, int64_t row_bytes, int64_t bytes, const uint8_t* next,
                   uint8_t* packed) {
    for (int64_t at = 0; at < bytes; at += 16) {
      for (int g = 0; g < GROUPS; ++g) {
        int32x4_t v[4];
        for (int r = 0; r < 4; ++r) {
          const int64_t where = (g * GROUP + r) * row_bytes + at;
          if (at % 64 == 0) fetch(next + where);
          v[r] = vreinterpretq_s32_s8(load_bytes(weights + where));
        }
        transpose(v);
        for (int j = 0; j < 4; ++j) {
          int8_t* to = reinterpret_cast<int8_t*>(packed) + (j * GROUPS + g) * 16;
          const int8x16_t w = vreinterpretq_s8_s32(v[j]);
          if (BITS == 8) {
            vst1q_s8(to, w);
          } else {
            vst1q_s8(to, low_nibbles(flip(w)));
            vst1q_s8(to + 4 * GROUPS * 16, high_nibbles(flip(w)));
          }
        }
      }
      packed += (BITS == 4 ? 8 : 4) * GROUPS * 16;
    }
  }

  template <int J, int N>
  static void step(const int8_t* packed, const int8x16_t (&v)[N], int32x4_t (&sum)[N][GROUPS]) {
    const int8x16_t w0 = vld1q_s8(packed + J * GROUPS * 16);
    const int8x16_t w1 = vld1q_s8(packed + J * GROUPS * 16 + 16);
    for (int n = 0; n < N; ++n) {
      sum[n][0] = vdotq_laneq_s32(sum[n][0], w0, v[n], J);
      sum[n][1] = vdotq_laneq_s32(sum[n][1], w1, v[n], J);
    }
  }

  template <int BITS, int PIECES, int N>
  static void tile(const uint8_t* packed_bytes, const float* scales, const RecordLayout& layout,
                   int64_t first, int64_t count, const uint8_t* const* x, float* sums) {
    const int8_t* packed = reinterpret_cast<const int8_t*>(packed_bytes);
    const int64_t scales_at = layout.scales_at() + 4 * first,
                  corrections_at = layout.corrections_at() + 4 * first;
    float32x4_t acc[N][GROUPS];
    for (int n = 0; n < N; ++n)
      for (int g = 0; g < GROUPS; ++g) acc[n][g] = vld1q_f32(sums + n * PANEL + g * GROUP);
    int64_t piece = first * PIECES;
    for (int64_t b = 0; b < count; ++b) {
      int32x4_t sum[N][GROUPS];
      for (int n = 0; n < N; ++n) {
        int32_t correction;
        std::memcpy(&correction, x[n] + corrections_at + 4 * b, 4);
        for (int g = 0; g < GROUPS; ++g) sum[n][g] = vdupq_n_s32(correction);
      }
      for (int p = 0; p < PIECES; ++p, ++piece) {
        const int64_t at = BITS == 4 ? piece / 4 * 128 + piece % 4 * 16 : piece * 16;
        for (int half = 0; half < (BITS == 4 ? 2 : 1); ++half) {
          int8x16_t v[N];
          for (int n = 0; n < N; ++n) v[n] = load_bytes(x[n] + at + half * 64);
          step<0>(packed, v, sum);
          step<1>(packed, v, sum);
          step<2>(packed, v, sum);
          step<3>(packed, v, sum);
          packed += 4 * GROUPS * 16;
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
      for (int g = 0; g < GROUPS; ++g) vst1q_f32(sums + n * PANEL + g * GROUP, acc[n][g]);
  }
};

struct F {
  using V = float32x4_t;
  static constexpr int WIDTH = 4, ROWS = 4, TILE_ROWS = 2, TILE_TOKENS = 3;
  static V zero() { return vdupq_n_f32(0.0f); }
  static V load(const float* x) { return vld1q_f32(x); }
  static V load_half(const uint16_t* x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
  }
  static V held(V v) {
    __asm__ __volatile__("" : "+w"(v));
    return v;
  }
  static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static float sum(const V (&v)[4]) {
    const V four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
};

#include "quantized.inl"
#include "floats.inl"
#include "rows.inl"
#include "doubles.inl"

uint64_t read(const uint8_t* data, int64_t n) {
  uint64x2_t a = vdupq_n_u64(0), b = a;
  for (int64_t i = 0; i < n; i += 32) {
    a = vaddq_u64(a, vreinterpretq_u64_u8(vld1q_u8(data + i)));
    b = vaddq_u64(b, vreinterpretq_u64_u8(vld1q_u8(data + i + 16)));
  }
  return vaddvq_u64(vaddq_u64(a, b));
}

}  // namespace neon
}  // namespace pm

PM_TARGET_END

namespace pm {
const Kernels* neon_kernels() {
  static const Kernels kernels{
      "neon",    neon::quantize, neon::product,      neon::activate, neon::accumulate,
      neon::scale, neon::read,     &neon::row_kernels, &neon::double_kernels};
#if defined(__linux__)
  constexpr unsigned long DOT_PRODUCT = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & DOT_PRODUCT ? &kernels : nullptr;
#else
  return &kernels;  // Apple's processors all have it
#endif
}
}  // namespace pm

#else
namespace pm {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace pm
#endif
