// Where the cells of the grid lie, in pixels of the screen. Pure numbers.

const LEAST = 2.5; // CSS pixels: a layer takes several lines rather than narrower cells
const LOWEST = 1.5; // but not lower ones than this
const NARROW = 4; // the screen's pixels
const MOST = 20;

// width, most: CSS pixels; ratio: of the screen's pixels to them; gutter: CSS pixels, for numbers.
export function layOut({ rows, widest, width, most, ratio, gutter }) {
  const room = Math.max(1, width - gutter);
  let lines = 1;
  while (room / Math.ceil(widest / lines) < LEAST && most / (rows * 2 * lines) >= LOWEST) lines *= 2;
  const columns = Math.max(1, Math.ceil(widest / lines));
  const wide = Math.min(room / columns, MOST) * ratio;
  // Narrow cells, which have no gap, may differ by a pixel; wide ones would look uneven.
  const cellWidth = wide < NARROW ? Math.max(1, wide) : Math.floor(wide);
  const shape = lines > 1 ? 1 : 1.6; // cells may be taller than wide, but not by much
  const high = Math.min((most * ratio) / Math.max(1, rows * lines), cellWidth * shape, MOST * ratio);
  const cellHeight = Math.max(1, Math.floor(high));
  const between = lines > 1 && cellHeight >= 2 ? Math.max(1, Math.round(ratio)) : 0;
  const gap = cellWidth >= NARROW && cellHeight >= NARROW ? Math.max(1, Math.round(ratio)) : 0;
  return {
    lines, columns, cellWidth, cellHeight, gap, between,
    left: Math.round(gutter * ratio),
    width: Math.round(width * ratio),
    height: rows * (lines * cellHeight + between),
    ratio,
  };
}

// Left, top and width of a cell with its gap.
export function place(layout, row, expert) {
  const line = Math.floor(expert / layout.columns);
  const column = expert % layout.columns;
  const left = Math.round(layout.left + column * layout.cellWidth);
  return [
    left,
    row * (layout.lines * layout.cellHeight + layout.between) + line * layout.cellHeight,
    Math.round(layout.left + (column + 1) * layout.cellWidth) - left,
  ];
}

// [row, expert] at a point in CSS pixels; it may be none of the model's.
export function find(layout, x, y) {
  const column = Math.floor((x * layout.ratio - layout.left) / layout.cellWidth);
  const band = layout.lines * layout.cellHeight + layout.between;
  const row = Math.floor((y * layout.ratio) / band);
  const line = Math.floor((y * layout.ratio - row * band) / layout.cellHeight);
  if (column < 0 || column >= layout.columns || line >= layout.lines) return [row, -1];
  return [row, line * layout.columns + column];
}
