// A conversation as messages, answers in Markdown.

import { foot, problem } from './foot.js';
import { renderMarkdown } from './markdown.js';

export class ChatView {
  constructor(list) {
    this.list = list;
  }

  // Draws all of it. underWay: the last answer is being written. actions: for its foot.
  show({ turns }, underWay, actions) {
    this.list.replaceChildren(...turns.map((turn, index) => {
      const last = index === turns.length - 1;
      return message(turn, last && underWay, last ? actions : {});
    }));
  }

  // The last answer has grown.
  grow({ last }) {
    const body = this.list.lastElementChild?.querySelector('.body');
    if (body) renderMarkdown(body, last.text);
  }
}

function message(turn, underWay, actions) {
  const item = document.createElement('li');
  const who = document.createElement('div');
  const body = document.createElement('div');
  who.className = 'who';
  body.className = 'body';
  item.append(who, body);
  if (turn.role === 'user') {
    item.className = 'mine';
    who.classList.add('unseen');
    who.textContent = 'You';
    body.textContent = turn.text;
    return item;
  }
  who.textContent = 'Model';
  renderMarkdown(body, turn.text);
  if (underWay) {
    item.className = 'under-way';
    item.setAttribute('aria-busy', 'true');
    return item;
  }
  if (turn.problem) item.append(problem(turn.problem));
  item.append(foot(turn, () => turn.text, actions));
  return item;
}
