// From a conversation to the body of a request, and from its chunks to text.

// The conversation so far as messages of a chat.
export function chatRequest(model, settings, turns) {
  const messages = [];
  for (const { role, text } of turns) {
    if (role === 'assistant' && text === '') continue; // an answer that failed
    const before = messages.at(-1);
    // Many templates want the roles to take turns.
    if (before?.role === role) before.content += `\n\n${text}`;
    else messages.push({ role, content: text });
  }
  if (settings.system) messages.unshift({ role: 'system', content: settings.system });
  const { max_tokens: most, ...sampling } = settings.sampling();
  return { model, messages, max_completion_tokens: most, ...sampling, ...STREAM };
}

// The conversation so far as one text to be continued.
export function textRequest(model, settings, turns) {
  const prompt = turns.map(({ text }) => text).join('');
  return { model, prompt, ...settings.sampling(), ...STREAM };
}

const STREAM = { stream: true, stream_options: { include_usage: true } };

export function textOf(chunk) {
  const choice = chunk.choices?.[0];
  return choice?.delta?.content ?? choice?.text ?? '';
}

export function reasonOf(chunk) {
  return chunk.choices?.[0]?.finish_reason ?? null;
}
