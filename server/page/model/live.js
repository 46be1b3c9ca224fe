// What the server tells of the model: what it is, then events, over and over, with reconnecting.
// By fetch and not by EventSource, which cannot show an API key.

import { ask, events, Problem } from '../api.js';
import { onKey } from '../key.js';

const LEAST_WAIT = 500;
const MOST_WAIT = 10000; // ms between attempts
const QUIET = 15000; // ms without a word after which the connection counts as lost

// listener: { model(facts), event(told), state('live' | 'lost' | 'waiting', text) }
export function startLive(listener) {
  let wait = LEAST_WAIT;
  let timer = 0;
  let attempt = null; // the AbortController of what runs

  async function connect() {
    clearTimeout(timer);
    attempt?.abort();
    const mine = new AbortController();
    attempt = mine;
    let quiet = 0;
    const watch = () => {
      clearTimeout(quiet);
      quiet = setTimeout(() => mine.abort(), QUIET);
    };
    let next = '';
    try {
      listener.model(await (await ask('live/model', { signal: mine.signal })).json());
      const response = await ask('live/events', { signal: mine.signal });
      watch();
      for await (const data of events(response)) {
        watch();
        wait = LEAST_WAIT;
        listener.state('live', 'live');
        listener.event(JSON.parse(data));
      }
      next = 'reconnecting';
    } catch (error) {
      if (!(error instanceof Problem) && error.name !== 'AbortError') throw error;
      if (error.status === 401) {
        listener.state('lost', 'needs an API key');
        return; // until there is one
      }
      next = error.status >= 400 ? error.message : 'reconnecting';
    } finally {
      clearTimeout(quiet);
    }
    if (attempt !== mine) return; // another has taken over
    listener.state('lost', next);
    timer = setTimeout(connect, wait);
    wait = Math.min(2 * wait, MOST_WAIT);
  }

  onKey(() => connect());
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) return void connect();
    const mine = attempt;
    attempt = null; // nobody looks: the server need not tell
    clearTimeout(timer);
    mine?.abort();
    listener.state('waiting', 'paused');
  });
  connect();
}
