// Shuffles of 512-bit vectors, included within namespace avx512.

// 4 × 4 transposition of dwords within each 128-bit lane.
inline void transpose_in_lanes(__m512i (&v)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// 4 × 4 transposition of 128-bit lanes.
inline void transpose_lanes(__m512i (&v)[4]) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i c = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
  v[2] = _mm512_shuffle_i32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// Within each lane, dword r: the sum of the four dwords of v[r].
inline __m512i sums_in_lanes(const __m512i (&v)[4]) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
                                     _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
                                     _mm512_unpackhi_epi32(v[2], v[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// The same where a sum of two dwords fits in 16 bits.
inline __m512i small_sums_in_lanes(const __m512i (&v)[4]) {
  const __m512i ones = _mm512_set1_epi16(1);
  const __m512i a = _mm512_madd_epi16(_mm512_packs_epi32(v[0], v[1]), ones);
  const __m512i b = _mm512_madd_epi16(_mm512_packs_epi32(v[2], v[3]), ones);
  return _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones);
}

// a's lanes 0 + 1 and 2 + 3, then b's.
inline __m512i sums_of_lane_pairs(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// 16 × 16 transposition of dwords. Rows go in as quads[r % 4][r / 4]; column 4 l + j comes out as
// columns[l][j].
inline void transpose(__m512i (&quads)[4][4], __m512i (&columns)[4][4]) {
  for (int q = 0; q < 4; ++q) transpose_lanes(quads[q]);
  // Now quads[q][l]: lane i is lane l of row 4 i + q.
  for (int l = 0; l < 4; ++l) {
    for (int q = 0; q < 4; ++q) columns[l][q] = quads[q][l];
    transpose_in_lanes(columns[l]);
  }
}
