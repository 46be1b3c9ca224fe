// The course of a conversation: ask, stream, stop, ask again.

import { chunks, Problem } from '../api.js';
import { count, rate, seconds } from '../format.js';
import { chatRequest, reasonOf, textOf, textRequest } from './requests.js';

export class Chat {
  // view: ChatView or TextView. listener: { changed(), grown(), announce(text), giveBack(text),
  // firstToken(seconds) }
  constructor(conversation, settings, view, facts, listener) {
    Object.assign(this, { conversation, settings, view, facts, listener });
    this.attempt = null; // the AbortController of the answer under way
  }

  get underWay() {
    return this.attempt !== null;
  }

  // Draws the conversation as it stands.
  show() {
    this.view.show(this.conversation, this.underWay, this.actions());
    this.listener.changed();
  }

  actions() {
    const { last } = this.conversation;
    if (this.underWay || last?.role !== 'assistant') return {};
    const actions = {};
    const again = last.text ? 'Regenerate' : 'Try again';
    if (last.text || !last.full) actions[again] = () => this.regenerate();
    if (!this.facts.chat && last.text && !last.full) actions.Continue = () => this.send('');
    return actions;
  }

  // Whether it was taken.
  send(text) {
    const { conversation, facts } = this;
    const empty = facts.chat ? text.trim() === '' : text === '' && conversation.text === '';
    if (this.underWay || empty) return false;
    if (text === '' && conversation.last?.full) {
      conversation.last.problem ??= this.full;
      this.show();
      return false;
    }
    this.forgetFull();
    if (text !== '') conversation.add('user', text);
    this.answer();
    return true;
  }

  regenerate() {
    if (this.underWay || this.conversation.last?.role !== 'assistant') return;
    this.conversation.turns.pop();
    this.answer();
  }

  // What was said of the context before, which is full no more, or will be found full again.
  forgetFull() {
    const { last, turns } = this.conversation;
    if (!last?.full) return;
    delete last.problem;
    if (last.role === 'assistant' && !last.text) turns.pop();
  }

  // The text that does not fit goes back to where it was written.
  giveBack(turn, told) {
    const { conversation, listener } = this;
    const { turns } = conversation;
    turns.pop();
    if (conversation.last?.role === 'user') listener.giveBack(turns.pop().text);
    const { last } = conversation;
    const place = last?.role === 'assistant' ? last : turn;
    if (place === turn) turns.push(turn);
    place.full = true;
    place.problem = place === turn ? told : this.full;
  }

  get full() {
    return `The context of ${this.facts.context} tokens is full: shorten what you wrote, begin `
      + 'anew with New, or have the server started with a larger --context.';
  }

  stop() {
    this.attempt?.abort();
  }

  clear() {
    this.stop();
    this.conversation.clear();
    this.attempt = null;
    this.show();
  }

  async answer() {
    const { conversation, listener, facts } = this;
    const asked = [...conversation.turns];
    const turn = conversation.add('assistant', '');
    const attempt = new AbortController();
    this.attempt = attempt;
    this.show();
    listener.announce(facts.chat ? 'The model is answering.' : 'The model is writing.');
    const course = new Course(listener, facts.context);
    try {
      const path = facts.chat ? 'v1/chat/completions' : 'v1/completions';
      const request = (facts.chat ? chatRequest : textRequest)(facts.name, this.settings, asked);
      for await (const chunk of chunks(path, request, attempt.signal)) {
        if (this.attempt !== attempt) return;
        const text = textOf(chunk);
        course.take(chunk, text);
        if (!text) continue;
        turn.text += text;
        this.grow();
      }
      turn.note = course.note();
      turn.full = course.full;
    } catch (error) {
      if (error.name === 'AbortError') turn.note = course.note('stopped');
      else if (error.code === 'context_length_exceeded') this.giveBack(turn, error.message);
      else if (error instanceof Problem) turn.problem = error.message;
      else throw error;
    } finally {
      if (this.attempt === attempt) this.end(turn);
    }
  }

  end(turn) {
    this.attempt = null;
    this.conversation.save();
    this.show();
    const failed = this.conversation.last?.problem; // which tells itself
    this.listener.announce(failed ? '' : `${turn.text} – ${turn.note ?? 'done'}`);
  }

  // Draws once for each frame, however many chunks come.
  grow() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      if (!this.underWay) return;
      this.view.grow(this.conversation);
      this.listener.grown();
    });
  }
}

// What an answer's line says of it.
class Course {
  constructor(listener, context) {
    Object.assign(this, { listener, context });
    this.begun = performance.now();
    this.first = this.last = this.usage = this.reason = null;
    this.pieces = 0;
  }

  take(chunk, text) {
    this.usage = chunk.usage ?? this.usage;
    this.reason = reasonOf(chunk) ?? this.reason;
    if (!text) return;
    this.last = performance.now();
    this.pieces += 1;
    if (this.first === null) {
      this.first = this.last;
      this.listener.firstToken((this.first - this.begun) / 1000);
    }
  }

  // Whether nothing more fits.
  get full() {
    return this.reason === 'length' && this.usage?.total_tokens >= this.context;
  }

  note(stopped = '') {
    const parts = [];
    const tokens = this.usage?.completion_tokens;
    if (tokens !== undefined) parts.push(count(tokens, 'token'));
    const made = (tokens ?? this.pieces) - 1;
    const time = (this.last - this.first) / 1000;
    if (made > 0 && time > 0) parts.push(`${rate(made / time)} tokens/s`);
    if (this.first !== null) parts.push(`first after ${seconds((this.first - this.begun) / 1000)}`);
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${cached} of ${this.usage.prompt_tokens} prompt tokens reused`);
    if (stopped) parts.push(stopped);
    else if (this.full) parts.push(`the context of ${this.context} tokens is full`);
    else if (this.reason === 'length') parts.push('stopped at the limit of tokens');
    return parts.join(' · ') || 'no text';
  }
}
