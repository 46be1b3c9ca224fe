// The line under an answer: how it was made, what can be done with it.

import { copyButton } from './code.js';

// actions: { name: function } for buttons beside Copy.
export function foot(turn, text, actions) {
  const line = document.createElement('div');
  line.className = 'foot';
  const buttons = document.createElement('div');
  buttons.className = 'buttons';
  if (text()) buttons.append(copyButton(text, 'Copy the text'));
  for (const [name, act] of Object.entries(actions)) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = name;
    button.addEventListener('click', act);
    buttons.append(button);
  }
  line.append(buttons);
  if (turn.note) {
    const note = document.createElement('span');
    note.className = 'note soft';
    note.textContent = turn.note;
    line.append(note);
  }
  return line;
}

export function problem(text) {
  const line = document.createElement('p');
  line.className = 'problem line';
  line.setAttribute('role', 'alert');
  line.textContent = text;
  return line;
}
