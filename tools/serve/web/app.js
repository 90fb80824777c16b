// The page: what its parts have to do with each other.

import * as api from './api.js';
import * as map from './map.js';
import * as settings from './settings.js';
import * as store from './store.js';
import { language, number, setLanguage, t, translate } from './strings.js';
import * as thread from './thread.js';
import * as tree from './tree.js';

const $ = (id) => document.getElementById(id);
const wide = matchMedia('(min-width: 1100px)');
const middle = matchMedia('(min-width: 800px)');
let chats = [];
let chat = tree.newChat();
let model = null;
let running = null;
let failure = null;

// The conversation

const deeds = {
  choose(node, step) {
    tree.choose(chat, node, step);
    keep(chat);
    draw();
    $('thread').querySelector(`[data-id="${chat.nodes[node.parent].pick}"] .icon:not(:disabled)`)?.focus();
  },
  edit: (node) => thread.edit(node, (text) => answer(tree.add(chat, node.parent, 'user', text.trim()))),
  regenerate: (node) => answer(chat.nodes[node.parent]),
  retry: () => answer(tree.path(chat).at(-1)),
  async copy(text) {
    // Pages of other machines without TLS have no clipboard but this.
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else {
      const field = document.createElement('textarea');
      field.value = text;
      document.body.append(field);
      field.select();
      document.execCommand('copy');
      field.remove();
    }
    say(t('copied'));
  },
};

function draw() {
  thread.draw(chat, deeds, failure, Boolean(running));
  const title = chat.title || t('untitled');
  $('title').textContent = title;
  document.title = chat.title ? `${title} – Yuan` : 'Yuan';
  $('send').hidden = Boolean(running);
  $('stop').hidden = !running;
  gauge();
  list();
}

function gauge(used = tree.path(chat).findLast((node) => node.stats?.total)?.stats.total ?? 0) {
  const all = model?.max_model_len ?? 0;
  const bar = $('gauge');
  bar.setAttribute('aria-valuemax', all || 1);
  bar.setAttribute('aria-valuenow', Math.min(used, all));
  bar.firstElementChild.style.width = `${all ? Math.min(100, (100 * used) / all) : 0}%`;
  bar.classList.toggle('full', all > 0 && used > 0.9 * all);
  const text = !all ? '' : used ? t('gauge', { used: number(used), all: number(all) }) : t('noGauge', { all: number(all) });
  $('gauge-text').textContent = text;
  bar.setAttribute('aria-valuetext', text);
}

async function keep(one) {
  try {
    await store.put(one);
  } catch (error) {
    say(t('notKept', { why: error?.message ?? '' }));
  }
}

function atEnd() {
  const box = $('scroll');
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

const toEnd = () => ($('scroll').scrollTop = $('scroll').scrollHeight);

/** Asks for an answer to the messages up to this one. */
async function answer(parent) {
  if (running || !parent || parent.role !== 'user') return;
  const mine = chat;
  // Before the answer is there: it is not part of what is asked.
  mine.nodes[parent.parent].pick = parent.id;
  const asked = tree.path(mine, parent.id).map(({ role, text }) => ({ role, content: text }));
  if (settings.system()) asked.unshift({ role: 'system', content: settings.system() });
  const node = tree.add(mine, parent.id, 'assistant', '');
  node.stats = {};
  if (!chats.includes(mine)) chats.unshift(mine);
  localStorage.setItem('yuan.chat', mine.id);
  const stop = new AbortController();
  [running, failure] = [{ stop, chat: mine }, null];
  keep(mine);
  draw();
  toEnd();
  $('progress').textContent = t('queued');
  $('speed').textContent = '';
  let [pieces, begun, total, waiting, took, kept] = [0, 0, 0, 0, 0, performance.now()];
  // Should the page go away meanwhile, it is an answer that was stopped.
  const keepSoFar = () => {
    const copy = structuredClone(mine);
    copy.nodes[node.id].note = 'stopped';
    kept = performance.now();
    keep(copy);
  };
  const grow = () => {
    waiting = 0;
    if (performance.now() - kept > 1000 && chats.includes(mine)) keepSoFar();
    if (chat !== mine) return;
    const [follow, start] = [atEnd(), performance.now()];
    thread.grow(node);
    gauge(total + pieces);
    const rate = ((pieces - 1) * 1000) / (performance.now() - begun);
    if (pieces > 2) $('speed').textContent = t('speed', { n: number(rate, rate < 100 ? 1 : 0) });
    if (follow) toEnd();
    took = performance.now() - start;
  };
  const hear = (event) => {
    const read = event.prompt_progress;
    if (read) {
      total = read.total;
      $('progress').textContent = read.processed < read.total ? t('reading', { done: number(read.processed), total: number(read.total) }) : '';
    }
    const choice = event.choices?.[0];
    if (choice?.delta?.content) {
      $('progress').textContent = '';
      if (!pieces++) begun = performance.now();
      node.text += choice.delta.content;
      // A long answer is shown less often, so that there is time for other things.
      waiting ||= setTimeout(grow, Math.min(Math.max(4 * took, 16), 500));
    }
    if (choice?.finish_reason === 'length') node.note = 'cut';
    if (event.timings) Object.assign(node.stats, { answer: event.timings.predicted_n, rate: event.timings.predicted_per_second });
    if (event.usage) Object.assign(node.stats, { prompt: event.usage.prompt_tokens, cached: event.usage.prompt_tokens_details?.cached_tokens ?? 0, total: event.usage.total_tokens });
  };
  let said = 'answered';
  try {
    await api.chat({ messages: asked, stream: true, stream_options: { include_usage: true }, return_progress: true, ...settings.sampler() }, stop.signal, hear);
  } catch (error) {
    if (error.name === 'AbortError') {
      node.note = said = 'stopped';
    } else if (node.text) {
      Object.assign(node, { note: 'broken', why: error.message || t(error.kind ?? 'failed') });
      said = 'broken';
    } else {
      failure = error;
    }
    if (node.text) Object.assign(node.stats, { answer: pieces, total: total + pieces });
  }
  clearTimeout(waiting);
  running = null;
  if (!node.text && (failure || node.note === 'stopped')) tree.remove(mine, node);
  if (chat !== mine) failure = null;
  $('progress').textContent = '';
  mine.updated = Date.now();
  // Unless it was deleted meanwhile.
  if (chats.includes(mine)) keep(mine);
  const follow = atEnd();
  draw();
  if (follow) toEnd();
  $('heard').textContent = failure ? '' : t(said, { why: node.why });
  if (failure?.kind === 'keyNeeded') settings.open(t('keyNeeded'), begun ? undefined : deeds.retry);
  else if (!document.activeElement || document.activeElement === document.body) $('prompt').focus();
}

function send() {
  const text = $('prompt').value.trim();
  if (!text || running) return;
  $('prompt').value = '';
  fit();
  answer(tree.add(chat, tree.path(chat).at(-1)?.id, 'user', text));
}

function fit() {
  const field = $('prompt');
  field.style.height = 'auto';
  field.style.height = `${Math.min(field.scrollHeight, innerHeight / 3)}px`;
}

// The history

function list() {
  const words = $('search').value.trim().toLowerCase();
  const found = chats.filter((one) => !words || tree.contains(one, words)).sort((a, b) => b.updated - a.updated);
  $('no-chats').hidden = found.length > 0;
  $('no-chats').textContent = t(words ? 'noneFound' : 'none');
  $('chats').replaceChildren(...found.map((one) => {
    const li = document.createElement('li');
    const open = document.createElement('button');
    open.className = 'chat';
    open.textContent = one.title || t('untitled');
    if (one === chat) open.setAttribute('aria-current', 'page');
    open.onclick = () => show(one);
    const away = document.createElement('button');
    away.className = 'icon small delete';
    away.title = t('delete', { title: '' }).replace(/[“”]/g, '').trim();
    away.setAttribute('aria-label', t('delete', { title: one.title }));
    away.innerHTML = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13"/></svg>';
    away.onclick = () => remove(one);
    li.append(open, away);
    return li;
  }));
}

function show(one) {
  [chat, failure] = [one, null];
  localStorage.setItem('yuan.chat', one.id);
  $('speed').textContent = '';
  draw();
  toEnd();
  if (!middle.matches) side(false);
}

function remove(one) {
  if (running?.chat === one) running.stop.abort();
  chats = chats.filter((other) => other !== one);
  if (chat === one) chat = tree.newChat();
  const gone = store.remove(one.id).catch(() => {});
  // At once: what is said meanwhile would be said over.
  draw();
  $('search').focus();
  say(t('deleted'), t('undo'), async () => {
    await gone;
    chats.push(one);
    keep(one);
    show(one);
  });
}

function download() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([store.text(chats)], { type: 'application/json' }));
  link.download = `yuan-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function upload(file) {
  const found = store.parse(await file.text());
  for (const one of found) {
    // What is there already stays unless the file's is newer.
    const old = chats.find((other) => other.id === one.id);
    if (old && old.updated >= one.updated) continue;
    chats = [one, ...chats.filter((other) => other !== old)];
    if (chat === old) chat = one;
    await keep(one);
  }
  draw();
  say(found.length ? t('imported', { n: number(found.length) }) : t('notImported'));
}

// Around it

let hide;
function say(text, label, deed) {
  const toast = $('toast');
  toast.replaceChildren(text);
  if (label) {
    const button = document.createElement('button');
    button.className = 'quiet';
    button.textContent = label;
    button.onclick = () => {
      toast.replaceChildren();
      deed();
    };
    toast.append(button);
  }
  clearTimeout(hide);
  hide = setTimeout(() => toast.replaceChildren(), label ? 8000 : 3000);
}

/** Opens or closes the list of conversations, or the map: beside the conversation where there is room, else over it. */
function part(id, open, over) {
  document.body.classList.toggle(`${id}-open`, open);
  $(`${id}-open`).setAttribute('aria-expanded', open);
  if (!over) localStorage.setItem(`yuan.${id}`, open ? 'open' : 'closed');
  $('shade').hidden = !(over && open);
  document.querySelector('main').inert = over && open;
}

function side(open) {
  part('side', open, !middle.matches);
  if (!middle.matches && open) $('search').focus();
  else if (!middle.matches) $('side-open').focus();
}

function mapPart(open) {
  part('map', open, !wide.matches);
  map.watch(open && !document.hidden);
  if (!wide.matches && open) $('map-close').focus();
}

function layout() {
  side(middle.matches && localStorage.getItem('yuan.side') !== 'closed');
  mapPart(wide.matches && localStorage.getItem('yuan.map') !== 'closed');
}

const themes = ['auto', 'light', 'dark'];
function theme(name = localStorage.getItem('yuan.theme') ?? 'auto') {
  localStorage.setItem('yuan.theme', name);
  document.documentElement.dataset.theme = name;
  const label = t('theme', { name: t(name) });
  $('theme').setAttribute('aria-label', label);
  $('theme').title = label;
  map.draw();
}

function texts() {
  translate();
  $('language').textContent = language() === 'zh' ? 'EN' : '中文';
  $('language').lang = language() === 'zh' ? 'en' : 'zh-CN';
  $('language').title = t('otherLanguage');
  $('language').setAttribute('aria-label', `${$('language').textContent} – ${t('otherLanguage')}`);
  settings.draw();
  theme();
  map.tell();
  draw();
}

/** Finds out what is served, as often as it takes. */
async function connect() {
  for (;;) {
    try {
      model = await api.model();
      $('model').textContent = model.id;
      gauge();
      return;
    } catch (error) {
      $('model').textContent = t(error.kind ?? 'offline', { why: error.message });
      if (error.kind === 'keyNeeded') return settings.open(t('keyNeeded'), connect);
    }
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
}

async function begin() {
  map.begin();
  settings.begin();
  texts();
  layout();
  $('composer').onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  $('prompt').oninput = fit;
  $('prompt').onkeydown = (event) => {
    if (thread.isSend(event)) {
      event.preventDefault();
      send();
    }
  };
  $('stop').onclick = () => {
    running?.stop.abort();
    $('prompt').focus();
  };
  $('thread').onclick = (event) => {
    const copy = event.target.closest('.copy-code');
    if (copy) deeds.copy(copy.closest('.code').querySelector('code').textContent);
  };
  $('new').onclick = () => {
    show(tree.newChat());
    $('prompt').focus();
  };
  $('search').oninput = list;
  $('export').onclick = download;
  $('import').onclick = () => $('import-file').click();
  $('import-file').onchange = ({ target }) => {
    if (target.files[0]) upload(target.files[0]);
    target.value = '';
  };
  $('language').onclick = () => {
    setLanguage(language() === 'zh' ? 'en' : 'zh');
    texts();
  };
  $('theme').onclick = () => theme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length]);
  $('side-open').onclick = () => side(!document.body.classList.contains('side-open'));
  $('map-open').onclick = () => mapPart(!document.body.classList.contains('map-open'));
  $('side-close').onclick = () => side(false);
  $('map-close').onclick = () => {
    mapPart(false);
    $('map-open').focus();
  };
  const closeOver = () => {
    if (!middle.matches && document.body.classList.contains('side-open')) side(false);
    if (!wide.matches && document.body.classList.contains('map-open')) $('map-close').click();
  };
  $('shade').onclick = closeOver;
  addEventListener('keydown', (event) => event.key === 'Escape' && closeOver());
  middle.onchange = wide.onchange = layout;
  matchMedia('(prefers-color-scheme: dark)').onchange = () => map.draw();
  document.addEventListener('visibilitychange', () => map.watch(!document.hidden && document.body.classList.contains('map-open')));
  connect();
  try {
    chats = (await store.all()).map(tree.read).filter(Boolean);
    chats.forEach(tree.tidy);
  } catch (error) {
    say(t('notKept', { why: error?.message ?? '' }));
  }
  const last = chats.find((one) => one.id === localStorage.getItem('yuan.chat'));
  if (last) chat = last;
  draw();
  toEnd();
  if (middle.matches) $('prompt').focus();
}

begin();
