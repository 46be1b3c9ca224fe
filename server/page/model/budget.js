// The slider of the memory budget: it applies when it is let go of, while the model talks too.

import { ask, Problem } from '../api.js';
import { precise } from '../format.js';

const FINEST = 1 << 16; // bytes of a step
const MOST_STEPS = 200;
const SETTLE = 350; // ms after the last change by keyboard

export class Budget {
  constructor() {
    this.range = document.getElementById('budget-range');
    this.value = document.getElementById('budget-value');
    this.pages = document.getElementById('budget-pages');
    this.problem = document.getElementById('budget-error');
    this.facts = null;
    this.held = false; // the user has moved it, and the server has not answered yet
    this.timer = 0;
    this.range.addEventListener('input', () => {
      this.held = true;
      this.tell(this.chosen());
      clearTimeout(this.timer);
    });
    this.range.addEventListener('change', () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.apply(), SETTLE);
    });
    document.getElementById('budget').addEventListener('submit', (event) => event.preventDefault());
  }

  show(facts) {
    this.facts = facts;
    const { smallest_budget: least, largest_budget: most } = facts;
    this.steps = Math.max(1, Math.min(MOST_STEPS, Math.ceil((most - least) / FINEST)));
    this.range.max = this.steps;
    this.range.disabled = least >= most;
    document.getElementById('budget-least').textContent = `${precise(least)}, the smallest`;
    document.getElementById('budget-most').textContent = `${precise(most)}, all experts`;
    this.follow(facts.memory_budget, null);
  }

  // What the server has: bytes, or null for no limit; the pages that fit into it, if known.
  follow(budget, slots) {
    if (this.held || !this.facts) return;
    const { smallest_budget: least, largest_budget: most } = this.facts;
    const share = budget === null || least >= most ? 1 : (budget - least) / (most - least);
    this.range.value = Math.round(Math.min(1, Math.max(0, share)) * this.steps);
    this.tell(budget, slots);
  }

  chosen() {
    const { smallest_budget: least, largest_budget: most } = this.facts;
    return Math.round(least + ((most - least) * Number(this.range.value)) / this.steps);
  }

  tell(budget, slots = null) {
    const { num_pages: all, page_bytes: page, largest_budget: most } = this.facts;
    const guess = budget === null ? all : all - Math.ceil(Math.max(0, most - budget) / page);
    const fit = Math.max(0, Math.min(all, slots ?? guess));
    this.value.textContent = budget === null ? 'no limit' : precise(budget);
    const about = slots === null && fit < all ? 'about ' : '';
    const room = fit >= all ? `Room for all ${all} experts.`
      : `Room for ${about}${fit.toLocaleString('en')} of ${all.toLocaleString('en')} experts.`;
    if (this.pages.textContent !== room) this.pages.textContent = room;
    this.range.setAttribute('aria-valuetext', `${this.value.textContent}. ${room}`);
  }

  async apply() {
    const wanted = this.chosen();
    try {
      const response = await ask('live/budget', { body: { memory_budget: wanted } });
      const { memory_budget: budget, slots } = await response.json();
      this.problem.hidden = true;
      if (this.chosen() !== wanted) return; // it was moved on meanwhile, and will apply that
      this.held = false;
      this.facts.memory_budget = budget;
      this.follow(budget, slots);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.problem.textContent = error.message;
      this.problem.hidden = false;
      this.held = false;
      this.follow(this.facts.memory_budget, null);
    }
  }
}
