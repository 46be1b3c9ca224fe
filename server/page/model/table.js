// The grid as a table, kept up to date while it is open.

const MOST = 5; // favourites that are named

export class ExpertTable {
  constructor(details, body) {
    this.details = details;
    this.body = body;
    this.experts = null;
    details.addEventListener('toggle', () => this.update());
  }

  show(experts) {
    this.experts = experts;
    this.body.replaceChildren(...experts.layers.map(({ layer }) => {
      const row = document.createElement('tr');
      const head = document.createElement('th');
      head.scope = 'row';
      head.textContent = layer;
      row.append(head, ...[0, 1, 2].map(() => document.createElement('td')));
      return row;
    }));
    this.update();
  }

  update() {
    if (!this.details.open || !this.experts) return;
    const lately = this.experts.lately(performance.now() / 1000);
    for (const layer of this.experts.layers) {
      const [, held, used, favourites] = this.body.children[layer.row].children;
      write(held, `${this.experts.heldOf(layer)} of ${layer.experts}`);
      write(used, String(lately[layer.row]));
      write(favourites, this.experts.favourites(layer, MOST).join(', ') || '–');
    }
  }
}

function write(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}
