// The switch between the system's theme, light and dark. early.js reads what is kept here, as text.

const NAMES = ['system', 'light', 'dark'];
const listeners = [];

export function onTheme(listener) {
  listeners.push(listener);
}

function current() {
  return document.documentElement.dataset.theme ?? 'system';
}

function apply(name) {
  if (name === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  show();
  for (const listener of listeners) listener();
}

function show() {
  const name = current();
  const title = name[0].toUpperCase() + name.slice(1);
  document.getElementById('theme-name').textContent = title;
  const button = document.getElementById('theme');
  button.setAttribute('aria-label', `Theme: ${title}`);
  button.title = `Theme: ${name}`;
}

export function startTheme() {
  show();
  document.getElementById('theme').addEventListener('click', () => {
    const name = NAMES[(NAMES.indexOf(current()) + 1) % NAMES.length];
    try {
      if (name === 'system') localStorage.removeItem('pocketmoe.theme');
      else localStorage.setItem('pocketmoe.theme', name);
    } catch {
      // It holds until the page is left.
    }
    apply(name);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    for (const listener of listeners) listener();
  });
}
