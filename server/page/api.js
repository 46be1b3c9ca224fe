// Requests to the server, with the API key where it asks for one, and streams of events.

import { askForKey, currentKey } from './key.js';

export class Problem extends Error {
  // status: of HTTP; 0 where there was no answer. code: the server's, for programs.
  constructor(message, status = 0, retryAfter = null, code = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.code = code;
  }
}

// A page that is reloaded or left loses its requests, which nobody need be told. A moment later, as
// it may stay after all: then a request that fails has failed.
const LEAVING = 5000; // ms
let leaving = false;
addEventListener('beforeunload', () => {
  leaving = true;
  setTimeout(() => { leaving = false; }, LEAVING);
});

// The error of a request that failed, as it is told. Who stopped it knows.
function failure(error, told) {
  if (error.name === 'AbortError') return error;
  return leaving ? new DOMException('the page was left', 'AbortError') : new Problem(told);
}

const UNREACHABLE = 'The server does not answer. See that pocketmoe serve still runs, then try again.';

async function once(path, body, signal) {
  const headers = {};
  const key = currentKey();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers['content-type'] = 'application/json';
  try {
    return await fetch(new URL(path, document.baseURI), {
      method: body === undefined ? 'GET' : 'POST',
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      signal,
      cache: 'no-store',
    });
  } catch (error) {
    throw failure(error, UNREACHABLE);
  }
}

// The response, of status 200. Asks for a key as often as the server does.
export async function ask(path, { body, signal } = {}) {
  for (;;) {
    const used = currentKey();
    const response = await once(path, body, signal);
    if (response.ok) return response;
    const { told, code } = await refusal(response);
    if (response.status !== 401) {
      throw new Problem(told, response.status, response.headers.get('retry-after'), code);
    }
    // Another request may have been given a new key meanwhile.
    if (currentKey() === used && !(await askForKey(used ? told : null))) {
      throw new Problem('The server wants an API key. Send again to give one.', 401);
    }
  }
}

async function refusal(response) {
  const text = await response.text().catch(() => '');
  try {
    const { message, code } = JSON.parse(text).error;
    if (typeof message === 'string') return { told: sentence(message), code };
  } catch {
    // Something between here and the server has answered.
  }
  return { told: `The server answered with status ${response.status}. Try again later.` };
}

export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? '' : '.');
}

// The data of server-sent events, as text, one by one.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith('data:')) yield line.slice(5).trim();
      }
    }
  } catch (error) {
    throw failure(error, 'The connection to the server broke. Try again.');
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Chunks of an answer.
export async function* chunks(path, body, signal) {
  const response = await ask(path, { body, signal });
  for await (const data of events(response)) {
    if (data === '[DONE]') return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(sentence(String(chunk.error.message)), 500);
    yield chunk;
  }
  throw new Problem('The connection to the server broke before the answer was whole. Try again.');
}
