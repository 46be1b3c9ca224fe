// Where a message is written: its height, its keys, its buttons.

export class Composer {
  // act: { send(text) → whether it was taken, stop() }
  constructor(act) {
    this.form = document.getElementById('composer');
    this.field = document.getElementById('prompt');
    this.sendButton = document.getElementById('send');
    this.stopButton = document.getElementById('stop');
    this.act = act;
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.send();
    });
    this.field.addEventListener('input', () => this.fit());
    this.field.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    this.stopButton.addEventListener('click', () => act.stop());
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && !document.querySelector('dialog[open]')) act.stop();
    });
  }

  // chat: whether the model answers; otherwise it continues.
  show(chat) {
    document.body.classList.toggle('continues', !chat);
    this.sendButton.textContent = chat ? 'Send' : 'Continue';
    this.field.placeholder = chat ? 'Write a message' : 'Write a beginning';
    document.getElementById('prompt-label').textContent = chat ? 'Message' : 'Text to continue';
    const mode = document.getElementById('mode');
    mode.hidden = chat;
    mode.textContent = chat ? '' : 'This model has no chat template: it continues your text and '
      + 'does not answer.';
  }

  send() {
    if (!this.act.send(this.field.value)) return;
    this.field.value = '';
    this.fit();
  }

  // A text that could not be sent, in front of what was begun meanwhile.
  giveBack(text) {
    this.field.value = text + this.field.value;
    this.fit();
  }

  busy(underWay) {
    const focused = [this.sendButton, this.stopButton].includes(document.activeElement);
    this.sendButton.hidden = underWay;
    this.stopButton.hidden = !underWay;
    if (focused) (underWay ? this.stopButton : this.field).focus();
  }

  fit() {
    this.field.style.height = 'auto';
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
