// Requests to the server.

/** What went wrong: `kind` is one of the page's texts. */
export class Failure extends Error {
  constructor(kind, why = '') {
    super(why);
    this.kind = kind;
  }
}

export const key = () => localStorage.getItem('yuan.key') ?? '';

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: 'no-store' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure('offline');
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw failure(said?.error, response.status);
}

function failure(error, status) {
  const why = error?.message ?? `${status}`;
  if (status === 401) return new Failure('keyNeeded', why);
  if (status === 429) return new Failure('busy', why);
  if (error?.code === 'loading') return new Failure('loading', why);
  if (error?.code === 'context_length_exceeded') return new Failure('tooLong', why);
  return new Failure('failed', why);
}

export const model = async () => (await (await call('v1/models')).json()).data[0];

/** Calls `hear` with the JSON of each event, until the stream ends or `signal` ends it. */
export async function events(path, options, hear) {
  const response = await call(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Failure('offline');
    }
    if (read.done) return;
    const lines = (rest + read.value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data: ') || line === 'data: [DONE]') continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw failure(event.error, 500);
      hear(event);
    }
  }
}

export const chat = (body, signal, hear) =>
  events('v1/chat/completions', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal }, hear);

export const experts = (signal, hear) => events('experts', { headers: { Accept: 'text/event-stream' }, signal }, hear);
