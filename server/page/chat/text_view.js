// A conversation with a model that only continues text: one text, in which what was given stands
// out. It is shown as it is, without Markdown.

import { foot, problem } from './foot.js';

export class TextView {
  constructor(list) {
    this.list = list;
  }

  show(conversation, underWay, actions) {
    const { turns, last } = conversation;
    if (!turns.length) {
      this.list.replaceChildren();
      return;
    }
    const item = document.createElement('li');
    const text = document.createElement('pre');
    text.className = 'written';
    text.append(...turns.map((turn) => {
      const part = document.createElement(turn.role === 'user' ? 'b' : 'span');
      part.className = turn.role === 'user' ? 'given' : 'made';
      part.textContent = turn.text;
      return part;
    }));
    item.append(text);
    if (underWay) {
      item.className = 'under-way';
      item.setAttribute('aria-busy', 'true');
    } else {
      if (last.problem) item.append(problem(last.problem));
      item.append(foot(last, () => conversation.text, actions));
    }
    this.list.replaceChildren(item);
  }

  grow({ last }) {
    const part = this.list.querySelector('.written > :last-child');
    if (!part) return;
    const told = part.textContent;
    if (told && last.text.startsWith(told)) part.append(last.text.slice(told.length));
    else part.textContent = last.text;
    part.normalize();
  }
}
