// The messages of a conversation, as they are shown.

import { show } from './markdown.js';
import { number, t } from './strings.js';
import { path, version } from './tree.js';

const $ = (id) => document.getElementById(id);
const icons = {
  edit: 'M4 20h4L19 9l-4-4L4 16zM13 7l4 4', copy: 'M9 9h11v11H9zM5 15H4V4h11v1', again: 'M20 12a8 8 0 11-2.500-5.800M20 3v4h-4', back: 'M14 6l-6 6 6 6', on: 'M10 6l6 6-6 6',
};

function make(kind, className, text) {
  const node = document.createElement(kind);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function button(icon, label, press) {
  const node = make('button', 'icon small');
  node.type = 'button';
  node.title = label;
  node.setAttribute('aria-label', label);
  node.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${icons[icon]}"/></svg>`;
  node.onclick = press;
  return node;
}

/** Shows a conversation. `deeds` has what its buttons do. */
export function draw(chat, deeds, failure, busy) {
  const nodes = path(chat);
  const list = nodes.map((node) => message(chat, node, deeds, busy));
  if (!nodes.length) list.push(hello());
  if (failure) list.push(trouble(failure, deeds));
  $('thread').replaceChildren(...list);
}

function hello() {
  const box = make('div', 'hello');
  box.append(make('p', 'brand large', '源'), make('p', 'hello-text', t('hello')), make('p', 'faint', t('helloMore')));
  box.firstChild.setAttribute('aria-hidden', 'true');
  return box;
}

function trouble(failure, deeds) {
  const box = make('div', 'note');
  box.setAttribute('role', 'alert');
  const again = make('button', 'quiet', t('again'));
  again.onclick = deeds.retry;
  box.append(make('p', '', t(failure.kind ?? 'failed', { why: failure.message })), again);
  return box;
}

function message(chat, node, deeds, busy) {
  const box = make('article', `message ${node.role}`);
  box.dataset.id = node.id;
  const mine = node.role === 'user';
  box.setAttribute('aria-label', t(mine ? 'you' : 'answerer'));
  const text = make('div', 'text');
  if (mine) text.textContent = node.text;
  else show(text, node.text);
  box.append(text);
  const foot = make('div', 'foot');
  const { n, of } = version(chat, node);
  if (of > 1) {
    const back = button('back', t('previous'), () => deeds.choose(node, -1));
    const on = button('on', t('next'), () => deeds.choose(node, 1));
    back.disabled = busy || n === 0;
    on.disabled = busy || n === of - 1;
    const which = make('span', 'faint which', `${n + 1}/${of}`);
    which.setAttribute('aria-label', t('version', { n: n + 1, of }));
    which.setAttribute('role', 'img');
    foot.append(back, which, on);
  }
  const change = mine ? button('edit', t('edit'), () => deeds.edit(node)) : button('again', t('regenerate'), () => deeds.regenerate(node));
  change.disabled = busy;
  change.classList.add(mine ? 'edit' : 'regenerate');
  foot.append(button('copy', t('copy'), () => deeds.copy(node.text)), change);
  if (!mine) foot.append(make('span', 'faint stats', stats(node)));
  box.append(foot);
  return box;
}

function stats(node) {
  const s = node.stats ?? {};
  const parts = [];
  if (node.note) parts.push(t(node.note, { why: node.why }));
  if (s.answer) parts.push(t('tokens', { n: number(s.answer) }));
  if (s.rate) parts.push(t('speed', { n: number(s.rate, s.rate < 100 ? 1 : 0) }));
  if (s.cached) parts.push(t('kept', { n: number(s.prompt), kept: number(s.cached) }));
  return parts.join(' · ');
}

/** Shows more of an answer. */
export function grow(node) {
  const text = $('thread').querySelector(`[data-id="${node.id}"] .text`);
  if (text) show(text, node.text);
}

/** A message becomes a field. */
export function edit(node, send) {
  const box = $('thread').querySelector(`[data-id="${node.id}"]`);
  const form = make('form', 'edit-form');
  const field = make('textarea');
  field.value = node.text;
  field.rows = Math.min(12, node.text.split('\n').length + 1);
  field.setAttribute('aria-label', t('editing'));
  const buttons = make('div', 'buttons');
  const cancel = make('button', 'quiet', t('cancel'));
  cancel.type = 'button';
  const ok = make('button', 'primary', t('saveEdit'));
  buttons.append(cancel, ok);
  form.append(field, buttons);
  const before = [...box.childNodes];
  const close = () => {
    box.replaceChildren(...before);
    box.querySelector('.edit')?.focus();
  };
  cancel.onclick = close;
  form.onsubmit = (event) => {
    event.preventDefault();
    if (field.value.trim()) send(field.value);
  };
  field.onkeydown = (event) => {
    if (event.key === 'Escape') close();
    if (isSend(event)) form.onsubmit(event);
  };
  box.replaceChildren(form);
  field.focus();
}

/** Enter sends, unless it ends a word of an input method or a line. */
export const isSend = (event) => event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
