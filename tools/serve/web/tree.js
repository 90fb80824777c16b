// A conversation: a tree of messages, of which one path is shown. Each message remembers which of those behind it is on the path.

const ROOT = 'root';
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, '0')).join('');

export const newChat = () => ({ id: newId(), title: '', updated: Date.now(), nodes: { [ROOT]: { id: ROOT, children: [], pick: null } } });

/** The messages that are shown, the first first; up to `end` and with it, if that is given. */
export function path(chat, end = null) {
  const list = [];
  for (let node = chat.nodes[ROOT]; node; node = chat.nodes[node.pick]) {
    if (node.id !== ROOT) list.push(node);
    if (node.id === end) break;
  }
  return list;
}

/** A new message behind `parent`, which is shown from now on. */
export function add(chat, parent, role, text) {
  const node = { id: newId(), parent: parent ?? ROOT, role, text, children: [], pick: null };
  chat.nodes[node.id] = node;
  const before = chat.nodes[node.parent];
  before.children.push(node.id);
  before.pick = node.id;
  if (role === 'user' && !chat.title) chat.title = text.trim().replace(/\s+/g, ' ').slice(0, 80);
  chat.updated = Date.now();
  return node;
}

export function remove(chat, node) {
  const before = chat.nodes[node.parent];
  before.children = before.children.filter((id) => id !== node.id);
  before.pick = before.children.at(-1) ?? null;
  delete chat.nodes[node.id];
}

/** Takes away answers of which nothing had come when the page went away. */
export function tidy(chat) {
  for (const node of Object.values(chat.nodes)) if (node.role === 'assistant' && !node.text && !node.children.length) remove(chat, node);
}

/** Which version of a message this is, and of how many. */
export function version(chat, node) {
  const { children } = chat.nodes[node.parent];
  return { n: children.indexOf(node.id), of: children.length };
}

export function choose(chat, node, step) {
  const before = chat.nodes[node.parent];
  const { n, of } = version(chat, node);
  before.pick = before.children[Math.min(Math.max(n + step, 0), of - 1)];
}

export const contains = (chat, words) =>
  chat.title.toLowerCase().includes(words) || Object.values(chat.nodes).some((node) => node.text?.toLowerCase().includes(words));

/** A conversation out of a file, or null where it is none. Nothing is taken over but what a conversation has. */
export function read(value) {
  if (typeof value?.id !== 'string' || typeof value.nodes !== 'object' || !value.nodes?.[ROOT]) return null;
  const nodes = {};
  for (const [id, node] of Object.entries(value.nodes)) {
    const children = Array.isArray(node?.children) ? node.children.filter((child) => typeof child === 'string') : [];
    const one = { id, children, pick: children.includes(node?.pick) ? node.pick : (children.at(-1) ?? null) };
    if (id !== ROOT) {
      if (!['user', 'assistant'].includes(node?.role) || typeof node.text !== 'string' || typeof node.parent !== 'string') return null;
      const stats = Object.fromEntries(Object.entries(node.stats ?? {}).filter(([, n]) => typeof n === 'number'));
      Object.assign(one, { parent: node.parent, role: node.role, text: node.text, stats });
      if (['stopped', 'cut', 'broken'].includes(node.note)) one.note = node.note;
      if (typeof node.why === 'string') one.why = node.why;
    }
    nodes[id] = one;
  }
  // Every message hangs on the one that it names, so there is no circle and no message twice.
  const hangs = ([id, node]) => node.children.every((child) => Object.hasOwn(nodes, child) && nodes[child].parent === id) && new Set(node.children).size === node.children.length;
  if (!Object.entries(nodes).every(hangs)) return null;
  return { id: value.id, title: String(value.title ?? ''), updated: Number(value.updated) || 0, nodes };
}
