// One token's products with int4 and int8 weights, straight from the page and as fast as memory
// gives them. Included within namespace avx512, after the shuffles.
//
// Two rows at a time, so that memory is read in order: the terms of sixteen rows are kept and then
// added up, block by block. Meanwhile rows that come later are fetched. Of the next two rows each
// line is loaded as well: the processor looks ahead by itself along loads, not along fetches.

constexpr int ROWS = 2;       // at a time
constexpr int64_t UNIT = 16;  // blocks of a row at a time
// Bytes of weights: as far ahead as memory takes to answer.
constexpr int64_t FETCH_AHEAD = 10240;

// Loads eight bytes of a line for nothing but the line. Assembly: else the compiler would gather
// such loads, and all of them at once are slow.
PM_IN_LINE void load_line(const uint8_t* at) {
  uint64_t unused;
  __asm__ __volatile__("movq (%1), %0" : "=r"(unused) : "r"(at));
}

// In a register: else the compiler loads it anew for each use.
PM_IN_LINE __m512i held(__m512i v) {
  __asm__ __volatile__("" : "+v"(v));
  return v;
}

template <int BITS>
PM_IN_LINE __m512i add_dots(__m512i sum, __m512i w, __m512i x0, __m512i x1) {
  if (BITS == 8)
    return _mm512_dpbusd_epi32(sum, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), x0);
  return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, low_nibbles(w), x0), high_nibbles(w), x1);
}

// Four dot products of VECTORS vectors each, summed up within lanes. bytes: what is left of a row.
// soon, far: rows to load and to fetch meanwhile.
template <int BITS, int VECTORS, bool WHOLE>
PM_IN_LINE void quad_sums(const uint8_t* weights, int64_t row_bytes, int64_t bytes,
                          const uint8_t* x, const uint8_t* soon, const uint8_t* far,
                          __m512i (&sums)[ROWS]) {
  __m512i dots[ROWS][4] = {};
#pragma GCC unroll 8
  for (int i = 0; i < 4 * VECTORS; ++i) {
    const int64_t at = 64 * i;
    if (!WHOLE && at >= bytes) break;
    const __mmask64 mask =  // never past the page
        WHOLE || bytes - at >= 64 ? ~0ull : (1ull << (bytes - at)) - 1;
    const __m512i x0 = held(_mm512_loadu_si512(x + (BITS == 4 ? 2 : 1) * at));
    const __m512i x1 = BITS == 4 ? held(_mm512_loadu_si512(x + 2 * at + 64)) : x0;
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) {
      const int64_t line = ROWS * at + 64 * r;  // of these rows, in memory's order
      if (WHOLE || line < ROWS * bytes) load_line(soon + line);
      fetch(far + line);
      const __m512i w = held(_mm512_maskz_loadu_epi8(mask, weights + r * row_bytes + at));
      dots[r][i / VECTORS] = add_dots<BITS>(dots[r][i / VECTORS], w, x0, x1);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    sums[r] = BITS == 4 ? small_sums_in_lanes(dots[r]) : sums_in_lanes(dots[r]);
}

// Dword i of a lane is of vector i, and lanes are pieces: makes them sixteen blocks.
template <int PIECES>
PM_IN_LINE __m512i in_order(const __m512i (&quads)[4]) {
  if (PIECES == 1)
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), quads[0]);
  const __m512i low = sums_of_lane_pairs(quads[0], quads[1]);
  if (PIECES == 2)
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), low);
  return sums_of_lane_pairs(low, sums_of_lane_pairs(quads[2], quads[3]));
}

// Integer dot products of sixteen blocks of some rows, or of those in the bytes left of them.
// Out of line: else the compiler runs out of registers for addresses.
template <int BITS, int PIECES, bool WHOLE>
PM_OUT_OF_LINE void block_sums(const uint8_t* weights, int64_t row_bytes, int64_t bytes,
                               const uint8_t* x, const uint8_t* soon, const uint8_t* far,
                               __m512i (&sums)[ROWS]) {
  // A vector has four, two or one whole blocks, or two vectors have one.
  constexpr int QUADS = PIECES < 4 ? PIECES : 4, VECTORS = PIECES == 8 ? 2 : 1;
  constexpr int64_t STEP = 4 * VECTORS * 64;
  __m512i quads[ROWS][4] = {};
#pragma GCC unroll 4
  for (int q = 0; q < QUADS; ++q) {
    const int64_t at = q * STEP;
    if (!WHOLE && at >= bytes) break;
    const uint8_t *w = weights + at, *x_at = x + (BITS == 4 ? 2 : 1) * at;
    const uint8_t *soon_at = soon + ROWS * at, *far_at = far + ROWS * at;
    __m512i of_rows[ROWS];
    if (WHOLE || bytes - at >= STEP)
      quad_sums<BITS, VECTORS, true>(w, row_bytes, STEP, x_at, soon_at, far_at, of_rows);
    else
      quad_sums<BITS, VECTORS, false>(w, row_bytes, bytes - at, x_at, soon_at, far_at, of_rows);
    for (int r = 0; r < ROWS; ++r) quads[r][q] = of_rows[r];
  }
  for (int r = 0; r < ROWS; ++r) sums[r] = in_order<PIECES>(quads[r]);
}

// From block b on.
inline __m512 load_scales(const uint8_t* scales, bool wide, int64_t b, __mmask16 mask) {
  if (wide) return _mm512_maskz_loadu_ps(mask, scales + 4 * b);
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, scales + 2 * b));
}

// float(integer dot product) · (w_scale · x_scale) for each block of `valid` rows: [ROWS, stride].
template <int BITS, int PIECES>
PM_IN_LINE void terms_of_rows(const uint8_t* weights, const uint8_t* scales, int64_t scales_bytes,
                              bool wide, int valid, const RecordLayout& layout, const uint8_t* x,
                              const uint8_t* soon, const Next& far, float* terms, int64_t stride) {
  constexpr int64_t BYTES = UNIT * PIECES * 16;  // of so many blocks
  const uint8_t* x_scales = x + layout.scales_at();
  const uint8_t* corrections = x + layout.corrections_at();
  const int64_t row_bytes = layout.columns * BITS / 8;
  for (int64_t i = 0; i < ROWS * scales_bytes; i += 64) fetch(far.scales + i);
  for (int64_t b = 0, at = 0; at < row_bytes; b += UNIT, at += BYTES) {
    const int64_t bytes = row_bytes - at, ahead = ROWS * at;
    const uint8_t* x_at = x + (BITS == 4 ? 2 : 1) * at;
    __m512i sums[ROWS];
    __mmask16 mask = 0xffff;
    if (bytes >= BYTES) {
      block_sums<BITS, PIECES, true>(weights + at, row_bytes, BYTES, x_at, soon + ahead,
                                     far.weights + ahead, sums);
    } else {
      mask = (1u << bytes / (PIECES * 16)) - 1;
      block_sums<BITS, PIECES, false>(weights + at, row_bytes, bytes, x_at, soon + ahead,
                                      far.weights + ahead, sums);
    }
    const __m512i correction = _mm512_maskz_loadu_epi32(mask, corrections + 4 * b);
    const __m512 x_scale = _mm512_maskz_loadu_ps(mask, x_scales + 4 * b);
    for (int r = 0; r < valid; ++r) {
      const __m512 w_scale = load_scales(scales + r * scales_bytes, wide, b, mask);
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[r], correction));
      _mm512_store_ps(terms + r * stride + b,
                      _mm512_mul_ps(sum, _mm512_mul_ps(w_scale, x_scale)));
    }
  }
}

// Of sixteen rows, in the order of blocks. terms: [16, stride].
inline __m512 sums_of_terms(const float* terms, int64_t stride, int64_t blocks) {
  __m512 sums = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; b += UNIT) {
    __m512i quads[4][4], columns[4][4];
#pragma GCC unroll 16
    for (int r = 0; r < GROUP; ++r)
      quads[r % 4][r / 4] = _mm512_load_si512(terms + r * stride + b);
    transpose(quads, columns);
#pragma GCC unroll 16
    for (int j = 0; j < UNIT; ++j) {
      if (b + j == blocks) break;
      sums = _mm512_add_ps(sums, _mm512_castsi512_ps(columns[j / 4][j % 4]));
    }
  }
  return sums;
}

template <int BITS, int PIECES>
void dot_by_rows(const uint8_t* weights, const PanelScales& scales, const RecordLayout& layout,
                 const uint8_t* x, const Next& next, const Scratch& scratch, float* y) {
  constexpr int PANEL = GROUP * GROUPS;
  const int64_t row_bytes = layout.columns * BITS / 8, scales_bytes = scales.row_bytes;
  const int64_t blocks = layout.blocks(), stride = round_up(blocks, UNIT);
  const int64_t ahead =
      row_bytes * PANEL <= FETCH_AHEAD ? PANEL : round_up(FETCH_AHEAD / row_bytes + 1, ROWS);
  for (int row = 0; row < scales.rows; row += ROWS) {
    const int left = scales.rows - row;
    const int64_t soon = left > ROWS ? row + ROWS : row, far = row + ahead;
    const Next later = far < PANEL ? Next{weights + far * row_bytes,
                                          scales.stored + far * scales_bytes}
                                   : Next{next.weights + (far - PANEL) * row_bytes,
                                          next.scales + (far - PANEL) * scales_bytes};
    terms_of_rows<BITS, PIECES>(weights + row * row_bytes, scales.stored + row * scales_bytes,
                                scales_bytes, scales.wide, left < ROWS ? left : ROWS, layout, x,
                                weights + soon * row_bytes, later,
                                scratch.scales + row % GROUP * stride, stride);
    // Terms of rows that are missing give sums that no one reads.
    if (row % GROUP == GROUP - ROWS || left <= ROWS)
      _mm512_store_ps(y + row / GROUP * GROUP, sums_of_terms(scratch.scales, stride, blocks));
  }
}
