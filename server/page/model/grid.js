// The picture of all experts: a row for each layer, a cell for each expert. It says in words what
// it shows, to those who cannot see it.

import { count } from '../format.js';
import { find, layOut, place } from './layout.js';
import { onTheme } from '../theme.js';

const LEVELS = 8; // shades between a cell at rest and one in use
const LARGEST = 0.75; // of a cell, so that there is always a rim
const ROOMY = 6; // CSS pixels
const AGAIN = 255; // no shade: a cell to be drawn
const GUTTER = 24; // CSS pixels, for the layers' numbers
const SPEAK_EVERY = 2000; // ms

const still = matchMedia('(prefers-reduced-motion: reduce)');

export class Grid {
  constructor(canvas, note) {
    this.canvas = canvas;
    this.note = note;
    this.pen = canvas.getContext('2d');
    this.experts = null;
    this.layout = null;
    this.cursor = null; // [row, expert], where the keyboard or the pointer is
    this.frame = 0;
    this.last = 0;
    this.speaking = 0; // a timer
    new ResizeObserver(() => this.resize()).observe(canvas);
    onTheme(() => requestAnimationFrame(() => this.resize()));
    this.listen();
  }

  // experts: Experts, of another model perhaps.
  show(experts) {
    this.experts = experts;
    this.cursor = null;
    this.resize();
  }

  // After the experts have changed.
  update() {
    this.speaking ||= setTimeout(() => this.speak(), SPEAK_EVERY);
    if (still.matches) this.paintStill();
    else if (!this.frame) {
      this.last = performance.now();
      this.frame = requestAnimationFrame((now) => this.animate(now));
    }
  }

  animate(now) {
    const left = this.experts.cool(Math.max(0, now - this.last) / 1000);
    this.last = now;
    this.paint();
    this.frame = left ? requestAnimationFrame((next) => this.animate(next)) : 0;
  }

  // Without motion: what was used since the last event, until the next one.
  paintStill() {
    this.paint();
    this.experts.heat.fill(0);
  }

  resize() {
    if (!this.experts || !this.canvas.clientWidth) return;
    const most = Number.parseFloat(getComputedStyle(this.canvas).getPropertyValue('--most'));
    const layout = layOut({
      rows: this.experts.layers.length,
      widest: this.experts.widest,
      width: this.canvas.clientWidth,
      most: most || 420,
      ratio: window.devicePixelRatio || 1,
      gutter: GUTTER,
    });
    this.layout = layout;
    this.canvas.width = layout.width;
    this.canvas.height = layout.height;
    this.canvas.style.height = `${layout.height / layout.ratio}px`;
    this.shades = shades();
    this.drawn = new Uint8Array(this.experts.total).fill(AGAIN);
    this.number();
    this.paint();
    this.describe();
  }

  // The layers' numbers, as many as there is room for.
  number() {
    const { pen, layout, experts } = this;
    const band = layout.lines * layout.cellHeight + layout.between;
    const letter = 10 * layout.ratio;
    const step = Math.max(1, Math.ceil((letter * 1.15) / band));
    pen.fillStyle = getComputedStyle(this.note).color;
    pen.font = `${letter}px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = 'right';
    pen.textBaseline = 'middle';
    for (const { layer, row } of experts.layers) {
      if (row % step !== 0 || (row + 0.5) * band + letter / 2 > layout.height + 2) continue;
      const middle = step > 1 ? row * band + letter / 2 : (row + 0.5) * band;
      pen.fillText(String(layer), layout.left - 6 * layout.ratio, middle);
    }
  }

  paint() {
    const { pen, layout, experts } = this;
    if (!layout) return;
    for (const { row, start, experts: many } of experts.layers) {
      for (let i = 0; i < many; i += 1) {
        const index = start + i;
        const level = Math.round(experts.heat[index] * LEVELS);
        const shade = experts.resident[index] * (LEVELS + 1) + level;
        if (this.drawn[index] === shade) continue;
        this.drawn[index] = shade;
        this.cell(place(layout, row, i), shade, level);
      }
    }
    this.outline();
  }

  // Where there is room, use is a square that shrinks, so that whether it is in memory stays seen.
  cell([x, y, width], shade, level) {
    const { pen, layout, shades } = this;
    const wide = width - layout.gap;
    const high = layout.cellHeight - layout.gap;
    const room = Math.min(wide, high) >= ROOMY * layout.ratio;
    pen.fillStyle = shades[room ? shade - level : shade];
    pen.fillRect(x, y, wide, high);
    if (!room || level === 0) return;
    const part = LARGEST * Math.sqrt(level / LEVELS);
    const [inX, inY] = [Math.round((wide * (1 - part)) / 2), Math.round((high * (1 - part)) / 2)];
    pen.fillStyle = shades[LEVELS];
    pen.fillRect(x + inX, y + inY, wide - 2 * inX, high - 2 * inY);
  }

  outline() {
    if (!this.cursor || this.layout.cellWidth < 5) return;
    const [x, y, width] = place(this.layout, ...this.cursor);
    const wide = width - this.layout.gap;
    const high = this.layout.cellHeight - this.layout.gap;
    this.pen.strokeStyle = getComputedStyle(document.body).color;
    this.pen.lineWidth = Math.max(1, this.layout.ratio);
    const inset = this.pen.lineWidth / 2;
    this.pen.strokeRect(x + inset, y + inset, wide - 2 * inset, high - 2 * inset);
    this.drawn[this.experts.layers[this.cursor[0]].start + this.cursor[1]] = AGAIN;
  }

  // Now and then, as nobody can listen to every change.
  speak() {
    this.speaking = 0;
    this.describe();
    if (this.cursor) this.tell();
  }

  describe() {
    const { experts } = this;
    const busy = experts.lately(performance.now() / 1000).reduce((sum, one) => sum + one, 0);
    const layers = count(experts.layers.length, 'layer');
    this.canvas.setAttribute('aria-label',
      `${layers} of up to ${count(experts.widest, 'expert')}. ${experts.held} of ${experts.total} `
      + `are in memory, ${busy} were used in the last 10 seconds.`);
  }

  tell() {
    const [row, expert] = this.cursor;
    const text = this.experts.describe(this.experts.layers[row], expert);
    if (this.note.textContent !== text) this.note.textContent = text;
  }

  point(row, expert) {
    const layer = this.experts?.layers[row];
    if (!layer || expert < 0 || expert >= layer.experts) return;
    this.cursor = [row, expert];
    this.tell();
    this.paint();
  }

  leave() {
    if (!this.cursor) return;
    this.cursor = null;
    this.note.textContent = this.hint;
    this.paint();
  }

  listen() {
    this.hint = this.note.textContent;
    const { canvas } = this;
    canvas.addEventListener('pointermove', (event) => {
      if (this.layout) this.point(...find(this.layout, event.offsetX, event.offsetY));
    });
    canvas.addEventListener('pointerleave', () => this.leave());
    canvas.addEventListener('blur', () => this.leave());
    canvas.addEventListener('keydown', (event) => {
      const move = {
        ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      }[event.key];
      if (!move || !this.experts?.total) return;
      event.preventDefault();
      const [row, expert] = this.cursor ?? [0, 0];
      if (this.cursor) this.point(row + move[0], expert + move[1]);
      else this.point(row, expert);
    });
  }
}

// Colours by resident * (LEVELS + 1) + level. The legend has them, resolved for the theme.
function shades() {
  const colour = (name) => {
    const text = getComputedStyle(document.querySelector(`.cell.${name}`)).backgroundColor;
    return text.match(/[\d.]+/g).slice(0, 3).map(Number);
  };
  const use = colour('in-use');
  return ['on-disk', 'in-memory'].flatMap((name) => {
    const rest = colour(name);
    return Array.from({ length: LEVELS + 1 }, (_, level) => {
      const mixed = rest.map((part, i) => Math.round(part + ((use[i] - part) * level) / LEVELS));
      return `rgb(${mixed.join(' ')})`;
    });
  });
}
