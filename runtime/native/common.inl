// What all instruction sets share, compiled once for each: included within a namespace of its own,
// after a file has chosen its target. Plain elementwise code, for the compiler to vectorize.
//
// The same bytes from all instruction sets: elements by themselves, sums in a fixed order, and
// nothing contracted to fused multiply-adds (-ffp-contract=off) but where fma() says so.

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Adding it rounds a small float to an integer, which is then in the low bits.
constexpr float ROUNDER = 12582912.0f;  // 1.5 · 2^23

// How much weights are shifted up to be unsigned: see RecordLayout.
constexpr int32_t offset_of(int32_t bits) { return bits == 4 ? 8 : INT8_OFFSET; }

void quantize(const float* x, int64_t first, int64_t count, const RecordLayout& layout,
              uint8_t* record) {
  float* scales = reinterpret_cast<float*>(record + layout.scales_at());
  int32_t* corrections = reinterpret_cast<int32_t*>(record + layout.corrections_at());
  const int block = layout.block;
  for (int64_t b = first; b < first + count; ++b, x += block) {
    uint32_t largest = 0;  // as bits, where NaN and infinity are above all numbers
    for (int i = 0; i < block; ++i) {
      const uint32_t magnitude = to_bits(x[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float most = from_bits(largest);
    const bool finite = largest < 0x7f800000u;
    // Smaller than that, the inverse would overflow: the block counts as zero.
    const bool zero = !finite || most < 1e-35f;
    const float inverse = zero ? 0.0f : 127.0f / most;
    scales[b] = finite ? (zero ? 0.0f : most / 127.0f) : from_bits(0x7fc00000u);
    int8_t values[CHUNK];
    int32_t sum = 0;
    if (zero) {
      std::memset(values, 0, block);
    } else {
      for (int i = 0; i < block; ++i) {
        const int32_t q = static_cast<int32_t>(to_bits(x[i] * inverse + ROUNDER) & 0x7fffffu) -
                          static_cast<int32_t>(to_bits(ROUNDER) & 0x7fffffu);
        values[i] = static_cast<int8_t>(q);
        sum += q;
      }
    }
    corrections[b] = -offset_of(layout.bits) * sum;
    const int64_t at = b * block;
    if (layout.bits == 8) {
      std::memcpy(record + at, values, block);
      continue;
    }
    uint8_t* even = record + at / CHUNK * CHUNK + at % CHUNK / 2;
    uint8_t* odd = even + CHUNK / 2;
    for (int i = 0; i < block / 2; ++i) {
      even[i] = static_cast<uint8_t>(values[2 * i]);
      odd[i] = static_cast<uint8_t>(values[2 * i + 1]);
    }
  }
  if (first + count < layout.blocks()) return;
  for (int64_t b = layout.blocks(); b < layout.padded_blocks(); ++b) {
    scales[b] = 0.0f;
    corrections[b] = 0;
  }
  for (int64_t i = layout.columns; i < layout.padded(); ++i) {
    const int64_t within = layout.bits == 8 ? i % CHUNK : i % 2 * (CHUNK / 2) + i % CHUNK / 2;
    record[i / CHUNK * CHUNK + within] = 0;
  }
}

// e^x. 0 below -87.68, infinity above 88.37; NaN stays. Less than 1 ulp from the exact value
// where that is no denormal; tests/runtime/native/test_portable_math.py measures it.
// Source of the polynomial and of ln 2 in two parts: Cephes, single/expf.c (S. Moshier).
inline float exponential(float x) {
  const float above = x < -88.0f ? -88.0f : x;  // NaN stays
  const float bounded = above > 89.0f ? 89.0f : above;
  const float shifted = bounded * 1.44269504f + ROUNDER;
  const float n = shifted - ROUNDER;  // from -127 to 128
  const float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n by its exponent's bits: those of -127 are 0, those of 128 infinity.
  return p * from_bits((to_bits(shifted) - to_bits(ROUNDER) + 127u) << 23);
}

void activate(const Activation& activation, int64_t n, const float* gate, const float* up,
              float* h) {
  if (activation.kind == 0) {
    for (int64_t i = 0; i < n; ++i) h[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    return;
  }
  const float alpha = activation.alpha, limit = activation.limit;
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i] > limit ? limit : gate[i];  // NaN stays
    const float low = up[i] < -limit ? -limit : up[i];
    const float u = low > limit ? limit : low;
    h[i] = g / (1.0f + exponential(-alpha * g)) * (u + 1.0f);
  }
}

void accumulate(int64_t n, float weight, const float* y, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] += weight * y[i];
}

void scale(int64_t n, float weight, const float* y, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = weight * y[i];
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x0400u) return from_bits(sign | ((rest << 13) + 0x38000000u));
  const float tiny = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
  return from_bits(sign | to_bits(tiny));
}

inline void add_bias(const Matrix& w, int64_t row, int rows, int tokens, float* y,
                     int64_t y_stride) {
  if (!w.bias) return;
  for (int t = 0; t < tokens; ++t)
    for (int r = 0; r < rows; ++r) y[t * y_stride + r] += w.bias[row + r];
}
