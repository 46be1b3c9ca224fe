// Products with int4 and int8 weights, by panels of rows. Included after common.inl and after a
// struct Q that has:
//
//   PANEL             rows of a panel, at most MAX_PANEL
//   TILE              tokens of a tile, at most 6
//   FEW               up to so many tokens go one by one, without packing
//   transpose_scales  block scales of a panel → [blocks, PANEL]
//   dot<BITS, PIECES> one token and a panel, straight from the page
//   DOT_TRANSPOSES    whether it wants scales transposed
//   pack<BITS>        some columns of a panel → what tile() wants
//   tile<BITS, PIECES, N>  N tokens and packed columns, added to the sums so far
//
// A piece is 16 bytes of a row; a block of weights has PIECES of them. Whatever the way, a result is
//   acc = 0; for each block b in order: acc += float(integer dot product) · (w_scale[b] · x_scale[b])
// and integer dot products are exact. So ways and tokens can be mixed freely.

// Adds blocks [first, first + count) of N tokens to sums [N, PANEL]. packed: as pack() leaves these
// columns of a panel; scales: [count, PANEL]; x: [N] records.
template <int N>
PM_OUT_OF_LINE void tile_of(const uint8_t* packed, const float* scales, const RecordLayout& layout,
                            int64_t first, int64_t count, const uint8_t* const* x, float* sums) {
  switch (layout.bits == 4 ? layout.block : -layout.block) {
    case 32: return Q::template tile<4, 1, N>(packed, scales, layout, first, count, x, sums);
    case 64: return Q::template tile<4, 2, N>(packed, scales, layout, first, count, x, sums);
    case 128: return Q::template tile<4, 4, N>(packed, scales, layout, first, count, x, sums);
    case -32: return Q::template tile<8, 2, N>(packed, scales, layout, first, count, x, sums);
    case -64: return Q::template tile<8, 4, N>(packed, scales, layout, first, count, x, sums);
    default: return Q::template tile<8, 8, N>(packed, scales, layout, first, count, x, sums);
  }
}

// results [PANEL]: one token, of the record x, and a panel of weights [PANEL, row_bytes].
template <int BITS>
PM_OUT_OF_LINE void dot_of(const uint8_t* weights, const PanelScales& scales,
                           const RecordLayout& layout, const uint8_t* x, const Next& next,
                           const Scratch& scratch, float* results) {
  constexpr int PIECE = 128 / BITS;  // elements
  switch (layout.block) {
    case 32:
      return Q::template dot<BITS, 32 / PIECE>(weights, scales, layout, x, next, scratch, results);
    case 64:
      return Q::template dot<BITS, 64 / PIECE>(weights, scales, layout, x, next, scratch, results);
    default:
      return Q::template dot<BITS, 128 / PIECE>(weights, scales, layout, x, next, scratch, results);
  }
}

// Many tokens: the columns are unpacked part by part, and each part serves all tokens. weights:
// [PANEL, row_bytes]; x: [tokens] records; results are left in scratch.sums [tokens, PANEL].
void packed_panel(const uint8_t* weights, int64_t row_bytes, const RecordLayout& layout,
                  const uint8_t* const* x, int tokens, const Next& next, const Scratch& scratch) {
  std::memset(scratch.sums, 0, tokens * Q::PANEL * sizeof(float));
  // Tiles as equal as can be: a tile of one token is the slowest for each token.
  const int tiles = (tokens + Q::TILE - 1) / Q::TILE;
  for (int64_t column = 0; column < layout.columns; column += PACKED_COLUMNS) {
    const int64_t columns =
        layout.columns - column < PACKED_COLUMNS ? layout.columns - column : PACKED_COLUMNS;
    const int64_t at = column * layout.bits / 8, bytes = columns * layout.bits / 8;
    const uint8_t* ahead = next.weights + at;
    if (layout.bits == 4)
      Q::template pack<4>(weights + at, row_bytes, bytes, ahead, scratch.packed);
    else
      Q::template pack<8>(weights + at, row_bytes, bytes, ahead, scratch.packed);
    const int64_t first = column / layout.block, count = columns / layout.block;
    const float* scales = scratch.scales + first * Q::PANEL;
    for (int i = 0; i < tiles; ++i) {
      const int t = tokens * i / tiles, n = tokens * (i + 1) / tiles - t;
      float* sums = scratch.sums + t * Q::PANEL;
      switch (n) {
        case 1: tile_of<1>(scratch.packed, scales, layout, first, count, x + t, sums); break;
        case 2: tile_of<2>(scratch.packed, scales, layout, first, count, x + t, sums); break;
        case 3: tile_of<3>(scratch.packed, scales, layout, first, count, x + t, sums); break;
        case 4: tile_of<4>(scratch.packed, scales, layout, first, count, x + t, sums); break;
        case 5: tile_of<5>(scratch.packed, scales, layout, first, count, x + t, sums); break;
        default: tile_of<6>(scratch.packed, scales, layout, first, count, x + t, sums); break;
      }
    }
  }
}

// y [tokens, y_stride], of `rows` of w from `row` on; tokens_x: [tokens] records.
void quantized_product(const Matrix& w, int64_t row, int64_t rows, const void* const* tokens_x,
                       int tokens, const Scratch& scratch, float* y, int64_t y_stride,
                       const Next& after) {
  const uint8_t* const* x = reinterpret_cast<const uint8_t* const*>(tokens_x);
  const RecordLayout layout{w.precision == INT4 ? 4 : 8, w.block, w.columns};
  const int64_t row_bytes = w.row_bytes(), scales_bytes = w.blocks() * (w.wide_scales ? 4 : 2);
  for (int64_t done = 0; done < rows; done += Q::PANEL) {
    const int valid = static_cast<int>(rows - done < Q::PANEL ? rows - done : Q::PANEL);
    const uint8_t* weights = w.weights + (row + done) * row_bytes;
    const uint8_t* scales = w.scales + (row + done) * scales_bytes;
    const Next next = done + Q::PANEL < rows
                          ? Next{weights + Q::PANEL * row_bytes, scales + Q::PANEL * scales_bytes}
                          : after;
    if (valid < Q::PANEL) {
      std::memcpy(scratch.rows, weights, valid * row_bytes);
      std::memset(scratch.rows + valid * row_bytes, 0, (Q::PANEL - valid) * row_bytes);
      weights = scratch.rows;
    }
    if (tokens > Q::FEW || Q::DOT_TRANSPOSES)
      Q::transpose_scales(scales, w.wide_scales, valid, w.blocks(), scratch.scales);
    if (tokens > Q::FEW) {
      packed_panel(weights, row_bytes, layout, x, tokens, next, scratch);
    } else {
      const PanelScales panel{scales, w.wide_scales, valid, scales_bytes, scratch.scales};
      for (int t = 0; t < tokens; ++t) {
        float* results = scratch.sums + t * Q::PANEL;
        if (layout.bits == 4)
          dot_of<4>(weights, panel, layout, x[t], next, scratch, results);
        else
          dot_of<8>(weights, panel, layout, x[t], next, scratch, results);
      }
    }
    for (int t = 0; t < tokens; ++t)
      std::memcpy(y + t * y_stride + done, scratch.sums + t * Q::PANEL, valid * sizeof(float));
    add_bias(w, row + done, valid, tokens, y + done, y_stride);
  }
}
