// A block of code, with a button that copies it; and copying.

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Not where the page came over plain HTTP from another machine.
  }
  const area = document.createElement('textarea');
  area.value = text;
  area.className = 'unseen';
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  return done;
}

// A button that copies what `text()` returns.
export function copyButton(text, label) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = 'Copy';
  button.setAttribute('aria-label', label);
  button.addEventListener('click', async () => {
    const told = (await copy(text())) ? 'Copied' : 'Select and copy by hand';
    button.textContent = told;
    button.setAttribute('aria-label', told);
    setTimeout(() => {
      button.textContent = 'Copy';
      button.setAttribute('aria-label', label);
    }, 1600);
  });
  return button;
}

export function codeBlock({ language, text }) {
  const block = document.createElement('div');
  block.className = 'code';
  const head = document.createElement('div');
  head.className = 'code-head';
  const name = document.createElement('span');
  name.textContent = language || 'text';
  const pre = document.createElement('pre');
  pre.tabIndex = 0;
  const code = document.createElement('code');
  code.textContent = text;
  pre.append(code);
  head.append(name, copyButton(() => code.textContent, 'Copy the code'));
  block.append(head, pre);
  // While it is written, so that its button and what is selected in it stay.
  block.update = (next) => {
    if (next.language !== language) return false;
    if (code.firstChild && next.text.startsWith(code.textContent)) {
      code.firstChild.appendData(next.text.slice(code.textContent.length));
    } else code.textContent = next.text;
    return true;
  };
  return block;
}
