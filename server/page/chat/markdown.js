// Markdown blocks: headings, lists, tables, code, quotes, rules and paragraphs. A text that still
// grows is read anew, but only blocks that have changed are drawn anew.

import { codeBlock } from './code.js';
import { inline } from './inline.js';

const DEEPEST = 8; // lists and quotes within each other
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

// Draws `text` into `place`. What was drawn there before by the same function is kept where it is
// the same.
export function renderMarkdown(place, text) {
  place.classList.add('rich');
  const blocks = readBlocks(text.split(/\r\n?|\n/));
  blocks.forEach((block, index) => {
    const key = JSON.stringify(block);
    const old = place.children[index];
    if (old && old.source === key) return;
    if (block.kind === 'code' && old?.update?.(block)) {
      old.source = key;
      return;
    }
    const node = draw(block, 0);
    node.source = key;
    if (old) old.replaceWith(node);
    else place.append(node);
  });
  while (place.children.length > blocks.length) place.lastElementChild.remove();
}

// Blocks as plain data.
export function readBlocks(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (line.trim() === '') {
      at += 1;
    } else if ((match = FENCE.exec(line))) {
      at = readFence(lines, at, match, blocks);
    } else if ((match = HEADING.exec(line))) {
      const text = match[2].trimEnd().replace(/[ \t]#+$/, '');
      blocks.push({ kind: 'heading', level: match[1].length, text });
      at += 1;
    } else if (RULE.test(line)) {
      blocks.push({ kind: 'rule' });
      at += 1;
    } else if (QUOTE.test(line)) {
      const inner = [];
      while (at < lines.length && (match = QUOTE.exec(lines[at]))) {
        inner.push(match[1]);
        at += 1;
      }
      blocks.push({ kind: 'quote', lines: inner });
    } else if (ITEM.test(line)) {
      at = readList(lines, at, blocks);
    } else if (isTable(lines, at)) {
      at = readTable(lines, at, blocks);
    } else {
      const first = at;
      at += 1;
      while (at < lines.length && !interrupts(lines, at)) at += 1;
      blocks.push({ kind: 'paragraph', text: lines.slice(first, at).map((one) => one.trim()).join('\n') });
    }
  }
  return blocks;
}

function interrupts(lines, at) {
  const line = lines[at];
  return line.trim() === '' || FENCE.test(line) || HEADING.test(line) || RULE.test(line)
    || QUOTE.test(line) || ITEM.test(line) || isTable(lines, at);
}

// A fence that is not closed goes on to the end: it is still being written.
function readFence(lines, first, match, blocks) {
  const [, indent, fence, about] = match;
  const close = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}[ \\t]*$`);
  const strip = new RegExp(`^ {0,${indent.length}}`);
  let at = first + 1;
  while (at < lines.length && !close.test(lines[at])) at += 1;
  const text = lines.slice(first + 1, at).map((line) => line.replace(strip, '')).join('\n');
  blocks.push({ kind: 'code', language: about.trim().split(/\s/)[0].slice(0, 40), text });
  return at + 1;
}

const indentOf = (line) => /^[ \t]*/.exec(line)[0].replaceAll('\t', '    ').length;

function readList(lines, first, blocks) {
  const [, indent, bullet] = ITEM.exec(lines[first]);
  const ordered = /\d/.test(bullet);
  const items = [];
  let at = first;
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    const same = match && /\d/.test(match[2]) === ordered && match[1].length <= indent.length + 1;
    if (same && !RULE.test(lines[at])) {
      items.push([match[3] ?? '']);
      at += 1;
      continue;
    }
    const next = lines[at].trim() === '' ? lines[at + 1] ?? '' : lines[at];
    const deeper = next.trim() !== '' && indentOf(next) > indent.length + 1;
    const goesOn = lines[at].trim() !== '' && !interrupts(lines, at); // a line without its indent
    if (!deeper && !goesOn) {
      if (lines[at].trim() === '' && continuesList(lines[at + 1], ordered, indent)) {
        at += 1;
        continue;
      }
      break;
    }
    items.at(-1).push(lines[at]);
    at += 1;
  }
  const start = ordered ? Number.parseInt(bullet, 10) : 0;
  blocks.push({ kind: 'list', ordered, start, items: items.map(dedent) });
  return at;
}

function continuesList(line, ordered, indent) {
  const match = line === undefined ? null : ITEM.exec(line);
  return match && /\d/.test(match[2]) === ordered && match[1].length <= indent.length + 1;
}

function dedent([head, ...rest]) {
  const least = Math.min(...rest.filter((line) => line.trim()).map(indentOf), 99);
  return [head, ...rest.map((line) => line.replaceAll('\t', '    ').slice(Math.min(least, indentOf(line))))];
}

function isTable(lines, at) {
  const next = lines[at + 1];
  return lines[at].includes('|') && next !== undefined && next.includes('-')
    && next.length < 2000 && DIVIDER.test(next) && cells(lines[at]).length === cells(next).length;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, '').replace(/\|$/, '');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
}

function readTable(lines, first, blocks) {
  const aligns = cells(lines[first + 1]).map((cell) => {
    if (cell.endsWith(':')) return cell.startsWith(':') ? 'centre' : 'right';
    return '';
  });
  const rows = [];
  let at = first + 2;
  while (at < lines.length && lines[at].includes('|')) {
    const row = cells(lines[at]).slice(0, aligns.length);
    while (row.length < aligns.length) row.push('');
    rows.push(row);
    at += 1;
  }
  blocks.push({ kind: 'table', aligns, head: cells(lines[first]), rows });
  return at;
}

function element(name, children = []) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function draw(block, depth) {
  switch (block.kind) {
    case 'heading': return element(`h${Math.min(6, block.level + 2)}`, inline(block.text));
    case 'rule': return element('hr');
    case 'code': return codeBlock(block);
    case 'quote': return element('blockquote', drawAll(block.lines, depth + 1));
    case 'list': return drawList(block, depth);
    case 'table': return drawTable(block);
    default: return element('p', inline(block.text));
  }
}

function drawAll(lines, depth) {
  if (depth > DEEPEST) return [element('p', [lines.join('\n')])];
  return readBlocks(lines).map((block) => draw(block, depth));
}

function drawList(block, depth) {
  const list = element(block.ordered ? 'ol' : 'ul', block.items.map(([first, ...rest]) => {
    const task = /^\[([ xX])\](?=\s)/.exec(first);
    const lines = [task ? (task[1] === ' ' ? '☐' : '☑') + first.slice(3) : first, ...rest];
    const inner = drawAll(lines, depth + 1);
    // An item's first paragraph stands beside its mark, without a paragraph's distance.
    const head = inner[0]?.tagName === 'P' ? [...inner.shift().childNodes] : [];
    return element('li', [...head, ...inner]);
  }));
  if (block.ordered && block.start !== 1) list.start = block.start;
  return list;
}

function drawTable({ aligns, head, rows }) {
  const row = (cells_, name) => element('tr', cells_.map((cell, i) => {
    const node = element(name, inline(cell));
    if (aligns[i]) node.className = aligns[i];
    return node;
  }));
  const table = element('table', [
    element('thead', [row(head, 'th')]),
    element('tbody', rows.map((cells_) => row(cells_, 'td'))),
  ]);
  const wide = element('div', [table]);
  wide.className = 'wide';
  wide.tabIndex = 0;
  return wide;
}
