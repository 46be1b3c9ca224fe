// What is known of every expert: in memory or not, used how much, and how recently ("heat").
// Experts are numbered layer by layer, as the server does.

const HALF_LIFE = 0.45; // seconds in which heat halves
const LATELY = 10; // seconds that "used lately" is of

export class Experts {
  // layers: [{ layer, experts }]
  constructor(layers) {
    let total = 0;
    this.layers = layers.map(({ layer, experts }, row) => {
      const start = total;
      total += experts;
      return { layer, experts, row, start };
    });
    this.total = total;
    this.widest = Math.max(0, ...layers.map(({ experts }) => experts));
    this.resident = new Uint8Array(total);
    this.used = new Float64Array(total); // tokens, since the model was opened
    this.heat = new Float32Array(total); // 0 to 1
    this.held = 0;
    this.recent = []; // [time, used], for "lately"
  }

  // told: an event of the server's. now: seconds.
  take(told, now) {
    const bits = atob(told.resident);
    for (let i = 0; i < this.total; i += 1) {
      this.resident[i] = (bits.charCodeAt(i >> 3) >> (i & 7)) & 1;
    }
    this.held = told.resident_pages;
    if (told.first) this.used.fill(0);
    for (let i = 0; i < told.used.length; i += 2) this.used[told.used[i]] += told.used[i + 1];
    if (!told.first) this.warm(told.used);
    if (!told.first && told.used.length) this.recent.push([now, told.used]);
    while (this.recent.length && this.recent[0][0] < now - LATELY) this.recent.shift();
  }

  // Those with the most tokens of their layer become hottest: in a quarter of a second a fast model
  // uses nearly all of them.
  warm(used) {
    let at = 0;
    for (const { start, experts } of this.layers) {
      const first = at;
      let most = 0;
      for (; at < used.length && used[at] < start + experts; at += 2) most = Math.max(most, used[at + 1]);
      for (let i = first; i < at; i += 2) {
        const share = used[i + 1] / most;
        this.heat[used[i]] = Math.max(this.heat[used[i]], share ** 1.5);
      }
    }
  }

  // Lets heat fade. Returns whether any is left.
  cool(elapsed) {
    const factor = 0.5 ** (elapsed / HALF_LIFE);
    let left = false;
    for (let i = 0; i < this.total; i += 1) {
      if (this.heat[i] === 0) continue;
      this.heat[i] = this.heat[i] < 0.06 ? 0 : this.heat[i] * factor;
      left ||= this.heat[i] > 0;
    }
    return left;
  }

  // How many experts of each layer were used in the last seconds.
  lately(now) {
    const seen = new Set();
    for (const [time, used] of this.recent) {
      if (time < now - LATELY) continue;
      for (let i = 0; i < used.length; i += 2) seen.add(used[i]);
    }
    return this.layers.map(({ start, experts }) => {
      let count = 0;
      for (let i = start; i < start + experts; i += 1) count += seen.has(i);
      return count;
    });
  }

  heldOf({ start, experts }) {
    let count = 0;
    for (let i = start; i < start + experts; i += 1) count += this.resident[i];
    return count;
  }

  // Numbers of the most used experts of a layer, at most so many.
  favourites({ start, experts }, most) {
    return Array.from({ length: experts }, (_, i) => i)
      .filter((i) => this.used[start + i] > 0)
      .sort((a, b) => this.used[start + b] - this.used[start + a])
      .slice(0, most);
  }

  describe(layer, expert) {
    const index = layer.start + expert;
    const where = this.resident[index] ? 'in memory' : 'on disk';
    const times = this.used[index].toLocaleString('en');
    return `Layer ${layer.layer}, expert ${expert}: ${where}, ${times} tokens so far.`;
  }
}
