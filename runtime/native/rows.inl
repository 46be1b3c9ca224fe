// Norms, rotation, gates and attention on rows of floats. Included after floats.inl.
//
// Sums are made in sixteen lanes, added up in a fixed order, and nothing is fused.

typedef float Lanes __attribute__((vector_size(64)));

// Floats may lie anywhere: so they are copied.
inline void load(const float* x, Lanes& v) { std::memcpy(&v, x, sizeof v); }
inline void store(const Lanes& v, float* x) { std::memcpy(x, &v, sizeof v); }

inline float sum_of(const Lanes& v) {
  float part[8];
  for (int i = 0; i < 8; ++i) part[i] = v[i] + v[i + 8];
  for (int i = 0; i < 4; ++i) part[i] += part[i + 4];
  return (part[0] + part[2]) + (part[1] + part[3]);
}

// Σ (x − shift)²
inline float sum_of_squares(const float* x, int64_t n, float shift) {
  Lanes sums = {}, v;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    load(x + i, v);
    v -= shift;
    sums += v * v;
  }
  float sum = sum_of(sums);
  for (; i < n; ++i) sum += (x[i] - shift) * (x[i] - shift);
  return sum;
}

void norm(const float* x, int64_t n, const float* weight, const float* bias, float eps, float* y) {
  float mean = 0.0f;
  if (bias) {
    Lanes sums = {}, v;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
      load(x + i, v);
      sums += v;
    }
    float sum = sum_of(sums);
    for (; i < n; ++i) sum += x[i];
    mean = sum / static_cast<float>(n);
  }
  const float square = sum_of_squares(x, n, mean) / static_cast<float>(n);
  const float inverse = 1.0f / __builtin_sqrtf(square + eps);
  if (bias)
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
  else
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * inverse * weight[i];
}

void rotate(float* x, const float* cos, const float* sin, int64_t pairs, bool interleaved) {
  float low[MOST_PAIRS], high[MOST_PAIRS];
  for (int64_t i = 0; i < pairs; ++i) {
    low[i] = interleaved ? x[2 * i] : x[i];
    high[i] = interleaved ? x[2 * i + 1] : x[i + pairs];
  }
  for (int64_t i = 0; i < pairs; ++i) x[i] = low[i] * cos[i] - high[i] * sin[i];
  for (int64_t i = 0; i < pairs; ++i) x[i + pairs] = high[i] * cos[i] + low[i] * sin[i];
}

void exponentials(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = exponential(x[i]);
}

void gate(const float* x, const float* by, int64_t n, bool single, float* y) {
  if (single) {
    const float below = 1.0f + exponential(-by[0]);
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] / below;
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] / (1.0f + exponential(-by[i]));
  }
}

float soften(float* scores, int64_t n, int64_t low, int64_t high, float scale, float* most,
             float* sum) {
  const float none = -__builtin_inff();
  const int64_t padded = round_up(n, LANES);
  float top = *most;
  for (int64_t i = 0; i < low; ++i) scores[i] = none;
  for (int64_t i = high; i < padded; ++i) scores[i] = none;
  Lanes tops = Lanes{} + none, v;
  for (int64_t i = 0; i < padded; i += LANES) {
    load(scores + i, v);
    v *= scale;
    store(v, scores + i);
    tops = v > tops ? v : tops;
  }
  bool finite = true;
  for (int i = 0; i < LANES; ++i) top = tops[i] > top ? tops[i] : top;
  if (top == none) {  // nothing to see here, or NaN alone
    for (int64_t i = low; i < high; ++i) finite = finite && scores[i] == scores[i];
    for (int64_t i = 0; i < padded; ++i) scores[i] = 0.0f;
    if (!finite) *sum = __builtin_nanf("");
    return 1.0f;
  }
  for (int64_t i = 0; i < padded; ++i) scores[i] = exponential(scores[i] - top);
  Lanes sums = {};
  for (int64_t i = 0; i < padded; i += LANES) {
    load(scores + i, v);
    sums += v;
  }
  const float factor = exponential(*most - top);
  *sum = *sum * factor + sum_of(sums);
  *most = top;
  return factor;
}

// Columns [at, at + COLUMNS · WIDTH) of N weighted sums.
template <int N, int COLUMNS>
inline void weigh_tile(const float* weights, int64_t stride, const float* rows, int64_t n,
                       int64_t width, int64_t at, const float* factors, float* const* out) {
  typedef float V __attribute__((vector_size(4 * F::WIDTH), aligned(4), may_alias));
  V acc[N][COLUMNS];
  for (int q = 0; q < N; ++q)
    for (int c = 0; c < COLUMNS; ++c)
      acc[q][c] = *reinterpret_cast<const V*>(out[q] + at + c * F::WIDTH) * factors[q];
  for (int64_t j = 0; j < n; ++j) {
    V v[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c)
      v[c] = *reinterpret_cast<const V*>(rows + j * width + at + c * F::WIDTH);
    for (int q = 0; q < N; ++q) {
      const float weight = weights[q * stride + j];
      for (int c = 0; c < COLUMNS; ++c) acc[q][c] += v[c] * weight;
    }
  }
  for (int q = 0; q < N; ++q)
    for (int c = 0; c < COLUMNS; ++c)
      *reinterpret_cast<V*>(out[q] + at + c * F::WIDTH) = acc[q][c];
}

template <int N, int COLUMNS>
inline void weigh_rows(const float* weights, int64_t stride, const float* rows, int64_t n,
                       int64_t width, const float* factors, float* const* out) {
  int64_t at = 0;
  for (; at + COLUMNS * F::WIDTH <= width; at += COLUMNS * F::WIDTH)
    weigh_tile<N, COLUMNS>(weights, stride, rows, n, width, at, factors, out);
  for (; at + F::WIDTH <= width; at += F::WIDTH)
    weigh_tile<N, 1>(weights, stride, rows, n, width, at, factors, out);
  for (; at < width; ++at) {
    for (int q = 0; q < N; ++q) {
      float acc = out[q][at] * factors[q];
      for (int64_t j = 0; j < n; ++j) acc += rows[j * width + at] * weights[q * stride + j];
      out[q][at] = acc;
    }
  }
}

// Each query has a range of its own, so that 0 · NaN of a row that it does not see does not reach
// it: what a tile's ranges have in common comes at once, what is before and after query by query.
void weigh(const float* weights, int64_t stride, int queries, const float* rows, int64_t width,
           const int64_t* low, const int64_t* high, const float* factors, float* const* out) {
  constexpr int TILE = 4, COLUMNS = F::WIDTH == 16 ? 4 : 2;
  const auto alone = [&](int q, int64_t from, int64_t to, float factor) {
    weigh_rows<1, 8>(weights + q * stride + from, stride, rows + from * width, to - from, width,
                     &factor, out + q);
  };
  int q = 0;
  for (; q + TILE <= queries; q += TILE) {
    int64_t from = low[q], to = high[q];
    for (int i = q + 1; i < q + TILE; ++i) {
      from = low[i] > from ? low[i] : from;
      to = high[i] < to ? high[i] : to;
    }
    if (from >= to) {
      for (int i = q; i < q + TILE; ++i) alone(i, low[i], high[i], factors[i]);
      continue;
    }
    float rest[TILE];
    for (int i = 0; i < TILE; ++i) {
      rest[i] = factors[q + i];
      if (low[q + i] == from) continue;
      alone(q + i, low[q + i], from, rest[i]);
      rest[i] = 1.0f;
    }
    weigh_rows<TILE, COLUMNS>(weights + q * stride + from, stride, rows + from * width, to - from,
                              width, rest, out + q);
    for (int i = q; i < q + TILE; ++i)
      if (high[i] > to) alone(i, to, high[i], 1.0f);
  }
  for (; q < queries; ++q) alone(q, low[q], high[q], factors[q]);
}

constexpr RowKernels row_kernels{norm, rotate, exponentials, gate, soften, weigh};
