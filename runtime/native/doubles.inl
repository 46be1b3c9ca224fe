// e^x of doubles and rotary tables. Included after common.inl. Where there is no library,
// portable_math.py takes the same steps in numpy: additions, products and quotients, none of them
// fused, are rounded the same everywhere.
//
// Source of the polynomials, and of ln 2 and π/2 in two parts: FreeBSD's msun (e_exp.c, k_sin.c,
// k_cos.c, e_rem_pio2.c), which has them from fdlibm (Sun Microsystems, 1993).

inline double double_of(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}

inline uint64_t bits_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return bits;
}

// Adding it rounds a double below 2^51 to an integer, which is then in the low bits.
constexpr double DOUBLE_ROUNDER = 6755399441055744.0;  // 1.5 · 2^52

// 0 below -708.74, infinity above 709.43; NaN stays. Less than 1 ulp from the exact value.
inline double exponential64(double x) {
  const double above = x < -709.0 ? -709.0 : x;  // NaN stays
  const double bounded = above > 710.0 ? 710.0 : above;
  const double shifted = bounded * 1.44269504088896338700 + DOUBLE_ROUNDER;
  const double n = shifted - DOUBLE_ROUNDER;  // from -1023 to 1024
  const double high = bounded - n * 6.93147180369123816490e-01;
  const double low = n * 1.90821492927058770002e-10;
  const double r = high - low, t = r * r;
  double p = 4.13813679705723846039e-08;
  p = p * t - 1.65339022054652515390e-06;
  p = p * t + 6.61375632143793436117e-05;
  p = p * t - 2.77777777770155933842e-03;
  p = p * t + 1.66666666666666019037e-01;
  const double c = r - t * p;
  const double y = 1.0 - ((low - r * c / (2.0 - c)) - high);
  return y * double_of((bits_of(shifted) - bits_of(DOUBLE_ROUNDER) + 1023u) << 52);
}

void exponentials64(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = exponential64(x[i]);
}

// Of one angle, float32. Below 2^20 quarter turns the nearest floats, but where a value lies within
// 1e-16 of halfway between two.
inline void turn(double angle, float scale, float* cos, float* sin) {
  const double shifted = angle * 6.36619772367581382433e-01 + DOUBLE_ROUNDER;
  const double n = shifted - DOUBLE_ROUNDER;  // quarter turns
  const double r = angle - n * 1.57079632673412561417 - n * 6.07710050650619224932e-11, t = r * r;
  double s = 1.58969099521155010221e-10;
  s = s * t - 2.50507602534068634195e-08;
  s = s * t + 2.75573137070700676789e-06;
  s = s * t - 1.98412698298579493134e-04;
  s = s * t + 8.33333333332248946124e-03;
  s = s * t - 1.66666666666666324348e-01;
  s = s * t * r + r;
  double c = -1.13596475577881948265e-11;
  c = c * t + 2.08757232129817482790e-09;
  c = c * t - 2.75573143513906633035e-07;
  c = c * t + 2.48015872894767294178e-05;
  c = c * t - 1.38888888888741095749e-03;
  c = c * t + 4.16666666666666019037e-02;
  c = c * t * t - 0.5 * t + 1.0;
  const uint64_t quarter = bits_of(shifted);
  const double along = quarter & 1 ? s : c, across = quarter & 1 ? c : s;
  *cos = static_cast<float>((quarter + 1) & 2 ? -along : along) * scale;
  *sin = static_cast<float>(quarter & 2 ? -across : across) * scale;
}

void rotary_table(const float* frequencies, int64_t pairs, int64_t start, int64_t tokens,
                  float scale, float* cos, float* sin) {
  for (int64_t token = 0; token < tokens; ++token) {
    const float position = static_cast<float>(start + token);
    for (int64_t i = 0; i < pairs; ++i, ++cos, ++sin)
      turn(static_cast<double>(position * frequencies[i]), scale, cos, sin);
  }
}

constexpr DoubleKernels double_kernels{exponentials64, rotary_table};
