// Puts the page together.

import { Budget } from './model/budget.js';
import { Chat } from './chat/chat.js';
import { ChatView } from './chat/chat_view.js';
import { Composer } from './chat/composer.js';
import { Conversation } from './chat/conversation.js';
import { Experts } from './model/experts.js';
import { showFigures, showFirst } from './model/figures.js';
import { Grid } from './model/grid.js';
import { startLive } from './model/live.js';
import { Settings } from './chat/settings.js';
import { ExpertTable } from './model/table.js';
import { TextView } from './chat/text_view.js';
import { startTheme } from './theme.js';

const find = (id) => document.getElementById(id);
const SHOWN = 'The grid shows which experts each token goes to, and which of them are in memory.';
const NEAR = 60; // pixels from the end at which the log follows what is written

startTheme();
const settings = new Settings();
const conversation = new Conversation();
const grid = new Grid(find('grid'), find('grid-note'));
const table = new ExpertTable(find('table-details'), find('table-rows'));
const budget = new Budget();
const log = find('log');
let facts = null; // of the model; null until the server has told them
let experts = null;
let chat = null;
let following = true;

const composer = new Composer({
  send: (text) => {
    following = true;
    return chat?.send(text) ?? false;
  },
  stop: () => chat?.stop(),
});

function follow() {
  if (following) log.scrollTop = log.scrollHeight;
}

// When the button that had it is gone. Not where that would bring up a keyboard on the screen.
function returnFocus() {
  if (document.activeElement !== document.body || !matchMedia('(hover: hover)').matches) return;
  find('prompt').focus({ preventScroll: true });
}

log.addEventListener('scroll', () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
});

function startChat() {
  const list = find('messages');
  const view = facts.chat ? new ChatView(list) : new TextView(list);
  chat = new Chat(conversation, settings, view, facts, {
    changed: () => {
      find('welcome').hidden = conversation.turns.length > 0;
      composer.busy(chat.underWay);
      follow();
      returnFocus();
    },
    grown: follow,
    giveBack: (text) => composer.giveBack(text),
    announce: (text) => { find('announce').textContent = text; },
    firstToken: showFirst,
  });
  composer.show(facts.chat);
  settings.allowSystem(facts.chat);
  find('welcome-text').textContent = facts.chat
    ? `Write a message below. ${SHOWN}`
    : `Write the beginning of a text below, and the model continues it. ${SHOWN}`;
  chat.show();
}

function showModel(told) {
  const same = facts && JSON.stringify([facts.name, facts.layers, facts.chat])
    === JSON.stringify([told.name, told.layers, told.chat]);
  if (same) Object.assign(facts, told);
  else {
    facts = told;
    find('model-name').textContent = told.name;
    document.title = `${told.name} – pocketmoe`;
    experts = new Experts(told.layers);
    grid.show(experts);
    table.show(experts);
    chat?.stop();
    startChat();
  }
  budget.show(facts);
}

startLive({
  model: showModel,
  event: (told) => {
    experts.take(told, performance.now() / 1000);
    grid.update();
    table.update();
    facts.memory_budget = told.memory_budget;
    budget.follow(told.memory_budget, told.slots);
    showFigures(told, facts);
  },
  state: (state, text) => {
    const link = find('link');
    link.dataset.state = state;
    if (link.textContent !== text) link.textContent = text;
  },
});

find('new').addEventListener('click', () => {
  chat?.clear();
  find('prompt').focus();
});
addEventListener('pagehide', () => conversation.save());
find('more').addEventListener('click', () => {
  const open = find('model').classList.toggle('open');
  find('more').setAttribute('aria-expanded', String(open));
  grid.resize();
});
returnFocus();
