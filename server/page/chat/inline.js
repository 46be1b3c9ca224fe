// Markdown within a line: nodes are made one by one, and text only ever becomes text nodes, so that
// nothing a model writes is taken for HTML.

const DEEPEST = 6;
const LONGEST_LINK = 2000;
const ESCAPABLE = /[\\`*_{}[\]()#+\-.!~|<>]/;
const SPECIAL = /[\\`*_~[!h&\n]/g;
const ENTITY = /&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,31});/iy;

// The address if it is one of http or https, else null.
export function safeLink(text) {
  if (text.length > LONGEST_LINK || !/^https?:\/\//i.test(text)) return null;
  try {
    const url = new URL(text);
    return url.protocol === 'http:' || url.protocol === 'https:' ? url.href : null;
  } catch {
    return null;
  }
}

function link(address, children) {
  const node = document.createElement('a');
  node.href = address;
  node.target = '_blank';
  node.rel = 'noopener noreferrer';
  node.append(...children);
  return node;
}

function element(name, children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

// Finds where marks close. What is not found once is not looked for again, so that a text of
// nothing but opening marks is read in one go.
class Finder {
  constructor(text) {
    this.text = text;
    this.missing = new Map(); // mark → from where on there is none
  }

  find(mark, from) {
    if (from >= (this.missing.get(mark) ?? Infinity)) return -1;
    const at = this.text.indexOf(mark, from);
    if (at < 0) this.missing.set(mark, Math.min(from, this.missing.get(mark) ?? from));
    return at;
  }
}

// Nodes of a text without blocks.
export function inline(text, depth = 0, linked = false) {
  const nodes = [];
  const finder = new Finder(text);
  let words = ''; // text that is in no node yet
  let plain = 0; // where text that is not even in `words` begins
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const match = SPECIAL.exec(text);
    if (!match) break;
    at = match.index;
    const found = read(text, at, finder, depth, linked);
    if (!found) {
      at += 1;
      continue;
    }
    words += text.slice(plain, at);
    if (found.text !== undefined) words += found.text;
    else {
      if (words) nodes.push(document.createTextNode(words));
      words = '';
      nodes.push(...found.nodes);
    }
    at = found.end;
    plain = at;
  }
  words += text.slice(plain);
  if (words) nodes.push(document.createTextNode(words));
  return nodes;
}

// What begins here: { nodes, end }, or { text, end } where it is other text than is written, or null
// where it is plain.
function read(text, at, finder, depth, linked) {
  const letter = text[at];
  if (letter === '\n') return { nodes: [document.createElement('br')], end: at + 1 };
  if (letter === '\\') {
    if (!ESCAPABLE.test(text[at + 1] ?? '')) return null;
    return { text: text[at + 1], end: at + 2 };
  }
  if (letter === '`') return code(text, at, finder);
  if (letter === '&') return entity(text, at);
  if (letter === 'h') return linked ? null : bare(text, at);
  if (depth >= DEEPEST) return null;
  if (letter === '[') return linked ? null : named(text, at, finder, depth);
  if (letter === '!') {
    // Pictures would be requests to elsewhere: their addresses are links.
    return text[at + 1] === '[' && !linked ? named(text, at + 1, finder, depth) : null;
  }
  return emphasis(text, at, finder, depth, linked);
}

function run(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

const parser = new DOMParser();

function entity(text, at) {
  ENTITY.lastIndex = at;
  const match = ENTITY.exec(text);
  if (!match) return null;
  const { body } = parser.parseFromString(match[0], 'text/html');
  return { text: body.textContent, end: at + match[0].length };
}

function code(text, at, finder) {
  const mark = '`'.repeat(Math.min(run(text, at), 50));
  const start = at + mark.length;
  let close = finder.find(mark, start);
  while (close >= 0 && text[close + mark.length] === '`') {
    close = finder.find(mark, close + run(text, close));
  }
  if (close < 0) return { text: mark, end: start };
  let inner = text.slice(start, close).replaceAll('\n', ' ');
  if (inner.startsWith(' ') && inner.endsWith(' ') && inner.trim()) inner = inner.slice(1, -1);
  return { nodes: [element('code', [inner])], end: close + mark.length };
}

const word = /[\p{L}\p{N}]/u;

function emphasis(text, at, finder, depth, linked) {
  const length = run(text, at);
  const letter = text[at];
  const whole = { text: text.slice(at, at + length), end: at + length };
  if (length > 3 || (letter === '~' && length !== 2)) return whole;
  const start = at + length;
  if (/\s/.test(text[start] ?? ' ')) return whole;
  if (letter === '_' && word.test(text[at - 1] ?? '')) return whole; // snake_case
  const mark = letter.repeat(length);
  let close = finder.find(mark, start + 1);
  for (let tries = 0; close >= 0 && tries < 20; tries += 1) {
    const after = text[close + length];
    const fits = !/\s/.test(text[close - 1]) && after !== letter && text[close - 1] !== letter
      && text[close - 1] !== '\\' && (letter !== '_' || !word.test(after ?? ''));
    if (fits) {
      let nodes = inline(text.slice(start, close), depth + 1, linked);
      if (letter === '~') nodes = [element('del', nodes)];
      else {
        if (length !== 2) nodes = [element('em', nodes)];
        if (length !== 1) nodes = [element('strong', nodes)];
      }
      return { nodes, end: close + length };
    }
    close = finder.find(mark, close + Math.max(1, run(text, close)));
  }
  return whole;
}

// [words](address "title")
function named(text, at, finder, depth) {
  const middle = finder.find('](', at + 1);
  if (middle < 0 || middle - at > LONGEST_LINK) return null;
  const end = closing(text, middle + 2);
  if (end < 0) return null;
  const address = text.slice(middle + 2, end).trim().replace(/\s+(".*"|'.*')$/s, '');
  const safe = safeLink(address.replace(/^<(.*)>$/, '$1'));
  if (safe === null) return null; // stays text: where it would have led is seen
  const words = inline(text.slice(at + 1, middle), depth + 1, true);
  return { nodes: [link(safe, words)], end: end + 1 };
}

function closing(text, from) {
  let open = 0;
  const last = Math.min(text.length, from + LONGEST_LINK);
  for (let at = from; at < last && text[at] !== '\n'; at += 1) {
    if (text[at] === '(') open += 1;
    if (text[at] === ')') {
      if (open === 0) return at;
      open -= 1;
    }
  }
  return -1;
}

function bare(text, at) {
  if (!/^https?:\/\/\S/.test(text.slice(at, at + 9)) || word.test(text[at - 1] ?? '')) return null;
  const found = /^[^\s<>"'`*]+/.exec(text.slice(at, at + LONGEST_LINK))[0];
  let address = found.replace(/[.,;:!?\]]+$/, '');
  if (address.endsWith(')') && !address.includes('(')) address = address.slice(0, -1);
  const safe = safeLink(address);
  if (safe === null) return null;
  return { nodes: [link(safe, [address])], end: at + address.length };
}
