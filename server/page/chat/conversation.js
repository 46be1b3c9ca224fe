// The conversation, kept over a reload.

import { load, save } from '../storage.js';

const LEFT = 'The page was left before this answer was whole.';

// A turn: { role: 'user' | 'assistant', text, note?, problem? }. Only answers have the last two:
// a line about how it was made, and a line about why it is not whole.
export class Conversation {
  constructor() {
    const kept = load('conversation', []);
    this.turns = (Array.isArray(kept) ? kept : []).filter(
      (turn) => ['user', 'assistant'].includes(turn?.role) && typeof turn.text === 'string',
    );
    const { last } = this;
    if (last?.role === 'assistant' && !last.note && !last.problem) last.problem = LEFT;
  }

  add(role, text) {
    const turn = { role, text };
    this.turns.push(turn);
    this.save();
    return turn;
  }

  get last() {
    return this.turns.at(-1);
  }

  get text() {
    return this.turns.map(({ text }) => text).join('');
  }

  clear() {
    this.turns = [];
    this.save();
  }

  save() {
    save('conversation', this.turns.length ? this.turns : null);
  }
}
