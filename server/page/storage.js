// What this browser keeps. Where it keeps nothing (private windows, full storage), the page works on.

const PREFIX = 'pocketmoe.';

export function load(name, fallback, store = 'localStorage') {
  try {
    const text = window[store].getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

export function save(name, value, store = 'localStorage') {
  try {
    if (value === null) window[store].removeItem(PREFIX + name);
    else window[store].setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
