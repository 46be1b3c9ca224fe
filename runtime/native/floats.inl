// Products with fp16 and fp32 weights. Included after common.inl and after a struct F that has:
//
//   V, WIDTH                   a vector of floats
//   zero, load, load_half
//   held                       the same vector, held in a register: else the compiler may load it
//                              for each use, or keep sums in memory
//   fma                        a · b + c, rounded once
//   sum                        of PARTS vectors, which are LANES floats: see LANES
//   ROWS                       weights' rows that go together for one token
//   TILE_ROWS, TILE_TOKENS     and for many; TILE_ROWS divides ROWS
//
// Each dot product has LANES sums of its own, of fused multiply-adds, whatever a vector's width. So
// a result depends neither on the tile that it is computed in nor on the instruction set.

constexpr int PARTS = static_cast<int>(LANES / F::WIDTH);  // vectors of a dot product's sums

template <bool HALF>
inline typename F::V load_weights(const uint8_t* row, int64_t i) {
  return HALF ? F::load_half(reinterpret_cast<const uint16_t*>(row) + i)
              : F::load(reinterpret_cast<const float*>(row) + i);
}

// LANES columns from i on of R rows, w [R][columns], and N tokens, x [N][columns], added to acc.
// Unrolled, as all that touches acc, so that it stays in registers.
template <bool HALF, int R, int N>
PM_IN_LINE void add_lanes(const uint8_t* const* w, const float* const* x, int64_t i,
                      typename F::V (&acc)[R][N][PARTS]) {
#pragma GCC unroll 4
  for (int part = 0; part < PARTS; ++part) {
    const int64_t at = i + part * F::WIDTH;
    typename F::V rows[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) rows[r] = load_weights<HALF>(w[r], at);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const typename F::V v = R > 1 && N > 1 ? F::held(F::load(x[n] + at)) : F::load(x[n] + at);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][n][part] = F::fma(rows[r], v, acc[r][n][part]);
    }
  }
}

// y [N, y_stride]: R results for each of N tokens. weights: R rows of row_bytes; x [N][columns].
// ahead: from a row to what is to be fetched meanwhile, in bytes.
template <bool HALF, int R, int N>
void float_tile(const uint8_t* weights, int64_t row_bytes, int64_t columns, const float* const* x,
                int64_t ahead, float* y, int64_t y_stride) {
  constexpr int SIZE = HALF ? 2 : 4;
  typename F::V acc[R][N][PARTS];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int part = 0; part < PARTS; ++part) acc[r][n][part] = F::zero();
  const uint8_t* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = weights + r * row_bytes;
  int64_t i = 0;
  for (; i + LANES <= columns; i += LANES) {
    if (N == 1 && i * SIZE % 64 == 0)
      for (int r = 0; r < R; ++r) __builtin_prefetch(rows[r] + i * SIZE + ahead, 0, 2);
    add_lanes<HALF, R, N>(rows, x, i, acc);
  }
  if (i < columns) {  // the rest, filled up with zeros
    alignas(64) float x_rest[N][LANES] = {};
    alignas(64) uint8_t w_rest[R][LANES * SIZE] = {};
    const float* x_at[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      std::memcpy(x_rest[n], x[n] + i, (columns - i) * sizeof(float));
      x_at[n] = x_rest[n];
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      std::memcpy(w_rest[r], rows[r] + i * SIZE, (columns - i) * SIZE);
      rows[r] = w_rest[r];
    }
    add_lanes<HALF, R, N>(rows, x_at, 0, acc);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) y[n * y_stride + r] = F::sum(acc[r][n]);
}

// A tile of n tokens, from 1 to N.
template <bool HALF, int R, int N>
inline void float_tile_of(int n, const uint8_t* weights, int64_t row_bytes, int64_t columns,
                          const float* const* x, float* y, int64_t y_stride) {
  if (n == N) return float_tile<HALF, R, N>(weights, row_bytes, columns, x, 0, y, y_stride);
  if constexpr (N > 1)
    float_tile_of<HALF, R, N - 1>(n, weights, row_bytes, columns, x, y, y_stride);
}

// y [tokens, y_stride]: R results for each token, R at most F::ROWS.
template <bool HALF, int R>
void float_rows(const uint8_t* weights, int64_t row_bytes, int64_t columns, const float* const* x,
                int tokens, int64_t ahead, float* y, int64_t y_stride) {
  if (tokens == 1) return float_tile<HALF, R, 1>(weights, row_bytes, columns, x, ahead, y, y_stride);
  constexpr int ROWS = R < F::TILE_ROWS ? R : F::TILE_ROWS;
  // Tiles as equal as can be: one of a single token loads the most for each product.
  const int tiles = (tokens + F::TILE_TOKENS - 1) / F::TILE_TOKENS;
  for (int i = 0; i < tiles; ++i) {
    const int t = tokens * i / tiles, n = tokens * (i + 1) / tiles - t;
    for (int r = 0; r < R; r += ROWS)  // inside: what is largest, the tokens, is read but once
      float_tile_of<HALF, ROWS, F::TILE_TOKENS>(n, weights + r * row_bytes, row_bytes, columns,
                                                x + t, y + t * y_stride + r, y_stride);
  }
}

// y [tokens, y_stride], of `rows` of w from `row` on; x [tokens][columns].
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
