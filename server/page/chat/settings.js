// How answers are sampled; kept in this browser.

import { load, save } from '../storage.js';

export const DEFAULTS = {
  temperature: 0.7, top_p: 0.95, top_k: 0, min_p: 0, repetition_penalty: 1,
  frequency_penalty: 0, presence_penalty: 0, max_tokens: 512, seed: '', stop: '', system: '',
};

function valid(kept) {
  const settings = { ...DEFAULTS };
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const value = kept?.[name];
    if (typeof value === typeof usual && !Number.isNaN(value)) settings[name] = value;
  }
  return settings;
}

export class Settings {
  constructor() {
    this.values = valid(load('settings', {}));
    this.dialog = document.getElementById('settings');
    this.form = document.getElementById('settings-form');
    this.fill();
    document.getElementById('open-settings').addEventListener('click', () => {
      this.fill();
      this.dialog.showModal();
    });
    document.getElementById('reset-settings').addEventListener('click', () => {
      this.values = { ...DEFAULTS };
      this.fill();
      save('settings', this.values);
    });
    this.form.addEventListener('input', () => this.read());
    this.form.addEventListener('change', () => this.read());
  }

  // chat: whether the model has a chat template, without which there is no system prompt.
  allowSystem(chat) {
    this.form.elements.system.disabled = !chat;
    document.getElementById('system-note').textContent = chat ? 'said before every conversation'
      : 'this model has no chat template, so it takes none';
  }

  fill() {
    for (const [name, value] of Object.entries(this.values)) this.form.elements[name].value = value;
  }

  // Takes what is valid; the browser marks what is not.
  read() {
    for (const [name, usual] of Object.entries(DEFAULTS)) {
      const field = this.form.elements[name];
      if (!field.checkValidity()) continue;
      this.values[name] = typeof usual === 'number' ? Number(field.value) : field.value;
    }
    save('settings', this.values);
  }

  // Parameters of a request.
  sampling() {
    const { seed, stop, system, ...rest } = this.values;
    const stops = stop.split('\n').filter((line) => line !== '');
    return {
      ...rest,
      ...(seed === '' ? {} : { seed: Number(seed) }),
      ...(stops.length ? { stop: stops } : {}),
    };
  }

  get system() {
    return this.values.system.trim();
  }
}
