// Products with fp16 and fp32 weights. Included after common.inl and after a struct F that has:
//
//   V, WIDTH                      a vector of floats
//   zero, load, load_half, fma, sum
//   ROWS, COLUMNS                 of a tile of dot products: weights' rows by tokens
//
// Each dot product has an accumulator vector of its own, summed at the end in a fixed order. So a
// result does not depend on the tile that it is computed in.

template <bool HALF>
inline typename F::V load_weights(const uint8_t* row, int64_t i) {
  return HALF ? F::load_half(reinterpret_cast<const uint16_t*>(row) + i)
              : F::load(reinterpret_cast<const float*>(row) + i);
}

template <bool HALF, int R, int N>
void float_tile(const uint8_t* weights, int64_t row_bytes, int64_t columns, const float* const* x,
                int64_t ahead, float* y, int64_t y_stride) {
  constexpr int SIZE = HALF ? 2 : 4;
  typename F::V acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) acc[r][n] = F::zero();
  int64_t i = 0;
  for (; i + F::WIDTH <= columns; i += F::WIDTH) {
    typename F::V w[R];
    for (int r = 0; r < R; ++r) {
      const uint8_t* row = weights + r * row_bytes;
      if (N == 1 && i * SIZE % 64 == 0) __builtin_prefetch(row + i * SIZE + ahead, 0, 2);
      w[r] = load_weights<HALF>(row, i);
    }
    for (int n = 0; n < N; ++n) {
      const typename F::V v = F::load(x[n] + i);
      for (int r = 0; r < R; ++r) acc[r][n] = F::fma(w[r], v, acc[r][n]);
    }
  }
  if (i < columns) {  // the rest, filled up with zeros
    typename F::V rest[N];
    for (int n = 0; n < N; ++n) {
      alignas(64) float part[F::WIDTH] = {};
      std::memcpy(part, x[n] + i, (columns - i) * sizeof(float));
      rest[n] = F::load(part);
    }
    for (int r = 0; r < R; ++r) {
      alignas(64) uint8_t part[F::WIDTH * SIZE] = {};
      std::memcpy(part, weights + r * row_bytes + i * SIZE, (columns - i) * SIZE);
      const typename F::V w = load_weights<HALF>(part, 0);
      for (int n = 0; n < N; ++n) acc[r][n] = F::fma(w, rest[n], acc[r][n]);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < R; ++r) y[n * y_stride + r] = F::sum(acc[r][n]);
}

template <bool HALF, int R>
void float_rows(const uint8_t* weights, int64_t row_bytes, int64_t columns, const float* const* x,
                int tokens, int64_t ahead, float* y, int64_t y_stride) {
  if (tokens == 1) return float_tile<HALF, R, 1>(weights, row_bytes, columns, x, ahead, y, y_stride);
  int t = 0;
  for (; t + F::COLUMNS <= tokens; t += F::COLUMNS)
    float_tile<HALF, R, F::COLUMNS>(weights, row_bytes, columns, x + t, 0, y + t * y_stride,
                                    y_stride);
  for (; t < tokens; ++t)
    float_tile<HALF, R, 1>(weights, row_bytes, columns, x + t, 0, y + t * y_stride, y_stride);
}

template <bool HALF>
void float_product(const Matrix& w, int64_t row, int64_t rows, const float* const* x, int tokens,
                   float* y, int64_t y_stride, const Next& after) {
  const int64_t row_bytes = w.row_bytes();
  int64_t r = 0;
  for (; r + F::ROWS <= rows; r += F::ROWS) {
    const uint8_t* weights = w.weights + (row + r) * row_bytes;
    const int64_t ahead =
        r + 2 * F::ROWS <= rows ? F::ROWS * row_bytes : static_cast<int64_t>(
            reinterpret_cast<uintptr_t>(after.weights) - reinterpret_cast<uintptr_t>(weights));
    float_rows<HALF, F::ROWS>(weights, row_bytes, w.columns, x, tokens, ahead, y + r, y_stride);
  }
  for (; r < rows; ++r)
    float_rows<HALF, 1>(w.weights + (row + r) * row_bytes, row_bytes, w.columns, x, tokens, 0,
                        y + r, y_stride);
  add_bias(w, row, static_cast<int>(rows), tokens, y, y_stride);
}

void product(const Matrix& w, int64_t row, int64_t rows, const void* const* x, int tokens,
             const Scratch& scratch, float* y, int64_t y_stride, const Next& after) {
  const float* const* floats = reinterpret_cast<const float* const*>(x);
  if (w.precision == FP32)
    float_product<false>(w, row, rows, floats, tokens, y, y_stride, after);
  else if (w.precision == FP16)
    float_product<true>(w, row, rows, floats, tokens, y, y_stride, after);
  else
    quantized_product(w, row, rows, x, tokens, scratch, y, y_stride, after);
}
