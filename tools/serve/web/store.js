// Conversations, in the browser's IndexedDB.

import { read } from './tree.js';

const FORMAT = 'yuan-conversations';
let opened;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open('yuan', 1);
    request.onupgradeneeded = () => request.result.createObjectStore('chats', { keyPath: 'id' });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction('chats', mode);
    const request = work(transaction.objectStore('chats'));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

export const all = async () => (await run('readonly', (store) => store.getAll())).sort((a, b) => b.updated - a.updated);
export const put = (chat) => run('readwrite', (store) => store.put(chat));
export const remove = (id) => run('readwrite', (store) => store.delete(id));

export const text = (chats) => JSON.stringify({ format: FORMAT, version: 1, chats }, null, 1);

/** The conversations of a file; none where it is another file. */
export function parse(text) {
  try {
    const file = JSON.parse(text);
    return file.format === FORMAT && Array.isArray(file.chats) ? file.chats.map(read).filter(Boolean) : [];
  } catch {
    return [];
  }
}
