// The API key: asked for when the server wants one, kept for this tab, or in this browser if wished.

import { load, save } from './storage.js';

let key = load('key', '', 'sessionStorage') || load('key', '');
let asking = null;
const listeners = [];

export function currentKey() {
  return key;
}

export function onKey(listener) {
  listeners.push(listener);
}

// Whether one was given. reason: why the last one was not taken.
export function askForKey(reason) {
  asking ??= dialog(reason).finally(() => { asking = null; });
  return asking;
}

function dialog(reason) {
  const box = document.getElementById('key');
  const field = document.getElementById('key-field');
  const keep = document.getElementById('key-keep');
  const problem = document.getElementById('key-error');
  problem.textContent = reason ?? '';
  problem.hidden = !reason;
  field.value = '';
  keep.checked = load('key', '') !== '';
  box.returnValue = '';
  document.getElementById('key-cancel').onclick = () => box.close('');
  document.getElementById('key-form').onsubmit = (event) => {
    event.preventDefault();
    const given = field.value.trim();
    if (!/^[\x21-\x7e]+$/.test(given)) {
      problem.textContent = 'A key is one word of plain letters, digits and signs.';
      problem.hidden = false;
      return;
    }
    key = given;
    save('key', key, 'sessionStorage');
    save('key', keep.checked ? key : null);
    box.close('given');
  };
  box.showModal();
  return new Promise((resolve) => {
    box.addEventListener('close', () => {
      const given = box.returnValue === 'given';
      resolve(given);
      if (given) for (const listener of listeners) listener();
    }, { once: true });
  });
}
