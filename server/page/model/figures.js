// The numbers beside the grid.

import { percent, precise, rate, seconds, size } from '../format.js';

function set(name, value, unit = '') {
  const place = document.getElementById(`figure-${name}`);
  if (place.dataset.shown === value + unit) return;
  place.dataset.shown = value + unit;
  place.replaceChildren(value);
  if (unit) {
    const small = document.createElement('small');
    small.textContent = ` ${unit}`;
    place.append(small);
  }
}

// Recent figures stay while nothing happens: what the last answer had.
export function showFigures(told, facts) {
  if (told.tokens_per_second > 0) set('speed', rate(told.tokens_per_second));
  if (told.recent_hit_rate !== null) set('hits', percent(told.recent_hit_rate));
  set('pages', told.resident_pages.toLocaleString('en'), `of ${facts.num_pages.toLocaleString('en')}`);
  set('read', size(told.bytes_read));
  set('budget', told.memory_budget === null ? 'none' : precise(told.memory_budget));
  set('process', precise(told.resident_memory));
  set('hits-all', percent(told.hit_rate));
  const waiting = told.queued > 0 ? `, ${told.queued} waiting` : '';
  set('requests', `${told.running} of ${facts.parallel} running${waiting}`);
}

export function showFirst(time) {
  set('first', seconds(time));
}
