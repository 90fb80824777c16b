// The experts' map: layers by experts, which of them tokens choose, and where they are.

import * as api from './api.js';
import { bytes, number, percent, t } from './strings.js';

const $ = (id) => document.getElementById(id);
/** Seconds after which what was chosen has faded to a third. */
const FADE = 1.6;
/** Milliseconds that "lately" goes back. */
const LATELY = 10_000;
/** Milliseconds over which the rate of tokens is taken. */
const RATE = 2000;
const still = matchMedia('(prefers-reduced-motion: reduce)');

let now = null;
let heat = new Float32Array(0);
let past = [];
let at = null;
let connection = null;
let drawn = 0;
let frame = 0;
let later = 0;

/** Connects while the map can be seen. */
export function watch(seen) {
  if (!seen) {
    connection?.abort();
    connection = null;
  } else if (!connection) {
    connection = new AbortController();
    follow(connection.signal);
  }
}

async function follow(signal) {
  while (!signal.aborted) {
    let why = t('offline');
    try {
      await api.experts(signal, hear);
    } catch (error) {
      if (signal.aborted) return;
      why = t(error.kind ?? 'failed', { why: error.message });
    }
    $('map-about').textContent = t('mapOff', { why });
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

function hear(figures) {
  const before = now;
  now = figures;
  const cells = now.layers * now.experts;
  $('known').hidden = false;
  if (heat.length !== cells || !before) {
    heat = new Float32Array(cells);
    size();
  } else {
    now.chosen.forEach((row, layer) => {
      const more = row.map((n, expert) => n - before.chosen[layer][expert]);
      // The one that most tokens chose is the brightest of its layer, so that the map tells of many tokens as well as of one.
      const most = Math.max(...more);
      more.forEach((n, expert) => {
        const i = layer * now.experts + expert;
        if (n > 0) heat[i] = Math.max(heat[i], 0.15 + (0.85 * n) / most);
      });
    });
  }
  past.push({ time: performance.now(), tokens: now.tokens, hits: now.expert_hits, misses: now.expert_misses, read: now.bytes_read });
  past = past.filter((one, i) => i >= past.length - 2 || one.time > performance.now() - LATELY);
  tell();
  draw();
}

/** Texts and figures; again when the language has changed. */
export function tell() {
  if (!now) return;
  $('map-about').textContent = now.layers ? t('mapAbout', { experts: now.experts, used: now.experts_per_token }) : t('noTiles');
  $('grid').setAttribute('aria-label', t('mapLabel', { layers: now.layers, experts: now.experts }));
  $('grid').hidden = !now.layers;
  $('legend-gpu').hidden = !now.places.some((row) => row.includes('g'));
  const [first, last] = [past[0], past.at(-1)];
  const tokens = last.tokens - first.tokens;
  const since = past.find((one) => one.time > last.time - RATE) ?? first;
  const seconds = (last.time - since.time) / 1000;
  const asked = last.hits + last.misses - first.hits - first.misses;
  const rate = (hits, all) => percent(all ? hits / all : 1);
  const figures = [
    ['hitRate', rate(now.expert_hits, now.expert_hits + now.expert_misses), asked > 0 ? t('lately', { n: rate(last.hits - first.hits, asked) }) : ''],
    ['perToken', bytes(now.tokens ? now.bytes_read / now.tokens : 0), tokens > 0 ? t('lately', { n: bytes((last.read - first.read) / tokens) }) : ''],
    ['rate', number(seconds > 0.1 ? (last.tokens - since.tokens) / seconds : 0, 1), ''],
    ['running', t('of', { n: now.sequences, of: now.sequences_most }), ''],
    ['inQueue', t('of', { n: now.queue, of: now.queue_most }), ''],
  ];
  $('figures').replaceChildren(...figures.map(([name, value, more]) => {
    const box = document.createElement('div');
    const [term, figure, beside] = ['dt', 'dd', 'span'].map((kind) => document.createElement(kind));
    term.textContent = t(name);
    figure.textContent = value;
    beside.textContent = more;
    beside.className = 'faint';
    figure.append(' ', beside);
    box.append(term, figure);
    return box;
  }));
  memory();
  if (at) tip();
  if ($('table-box').open) table();
}

function memory() {
  const { budget, trunk, experts, keys_and_values: kv, scratch } = now.memory;
  const parts = [['trunk', trunk], ['expertBytes', experts], ['kv', kv], ['scratch', scratch]];
  const all = Math.max(budget, trunk + experts + kv + scratch, 1);
  $('memory').replaceChildren(...parts.map(([name, n]) => {
    const part = document.createElement('i');
    part.className = name;
    part.style.width = `${(100 * n) / all}%`;
    return part;
  }));
  const item = (text, name) => {
    const li = document.createElement('li');
    if (name) {
      const swatch = document.createElement('i');
      swatch.className = `swatch plain ${name}`;
      li.append(swatch);
    }
    li.append(text);
    return li;
  };
  const used = parts.reduce((sum, [, n]) => sum + n, 0);
  $('memory-text').replaceChildren(item(t('ofBudget', { used: bytes(used), all: bytes(budget) })), ...parts.map(([name, n]) => item(`${t(name)} ${bytes(n)}`, name)));
}

const place = (letter) => t({ m: 'inMemory', d: 'onDrive', g: 'onGpu' }[letter]);

function tip() {
  const [layer, expert] = at;
  $('tip').textContent = t('tip', { layer: layer + 1, expert: expert + 1, n: number(now.chosen[layer][expert]), place: place(now.places[layer][expert]) });
}

function table() {
  const head = ['layer', 'inMemory', 'onDrive', 'onGpu', 'busiest'].map((name) => t(name));
  const rows = now.places.map((row, layer) => {
    const count = (letter) => number([...row].filter((one) => one === letter).length);
    const most = Math.max(...now.chosen[layer]);
    return [number(layer + 1), count('m'), count('d'), count('g'), `${now.chosen[layer].indexOf(most) + 1} (${t('tokens', { n: number(most) })})`];
  });
  const line = (cells, kind) => {
    const tr = document.createElement('tr');
    tr.append(...cells.map((text, i) => {
      const cell = document.createElement(kind === 'th' || i === 0 ? 'th' : 'td');
      cell.scope = kind === 'th' ? 'col' : i === 0 ? 'row' : '';
      cell.textContent = text;
      return cell;
    }));
    return tr;
  };
  $('table').replaceChildren(line(head, 'th'), ...rows.map((row) => line(row, 'td')));
}

/** Where cells are: width and height of one with the gap behind it. */
function cell() {
  const width = $('grid').clientWidth / Math.max(now.experts, 1);
  return [width, Math.min(Math.max(360 / Math.max(now.layers, 1), 8), 26)];
}

function size() {
  const canvas = $('grid').firstElementChild;
  const [, high] = cell();
  const height = Math.round(high * now.layers);
  canvas.width = $('grid').clientWidth * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  canvas.style.height = `${height}px`;
}

/** Draws the map, and again until everything has faded. */
export function draw(time = performance.now()) {
  cancelAnimationFrame(frame);
  clearTimeout(later);
  if (!now?.layers || !$('grid').clientWidth) return;
  const seconds = Math.min(Math.max(time - drawn, 0) / 1000, 1);
  drawn = time;
  const canvas = $('grid').firstElementChild;
  const pen = canvas.getContext('2d');
  // The theme's colours are those of the legend.
  const look = (id) => getComputedStyle($(id));
  const [memory, hot, line] = [look('swatch-memory').backgroundColor, look('swatch-hot').backgroundColor, look('swatch-drive').borderTopColor];
  const ink = look('tip').color;
  pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const [wide, high] = cell();
  const gap = wide > 6 ? 2 : 1;
  let warm = false;
  for (let layer = 0; layer < now.layers; layer++) {
    for (let expert = 0; expert < now.experts; expert++) {
      const i = layer * now.experts + expert;
      heat[i] *= Math.exp(-seconds / FADE);
      if (heat[i] < 0.02) heat[i] = 0;
      else warm = true;
      const [x, y, w, h] = [expert * wide, layer * high, wide - gap, high - gap];
      const there = now.places[layer][expert];
      if (there !== 'd') {
        pen.fillStyle = memory;
        pen.fillRect(x, y, w, h);
      }
      if (heat[i] > 0) {
        pen.globalAlpha = Math.min(1, heat[i]);
        pen.fillStyle = hot;
        pen.fillRect(x, y, w, h);
        pen.globalAlpha = 1;
      }
      if (there === 'd') {
        pen.strokeStyle = line;
        pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
      }
      if (there === 'g') {
        pen.fillStyle = ink;
        pen.fillRect(x + w / 2 - 1.5, y + h / 2 - 1.5, 3, 3);
      }
    }
  }
  if (at) {
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.strokeRect(at[1] * wide - 1, at[0] * high - 1, wide - gap + 2, high - gap + 2);
    pen.lineWidth = 1;
  }
  // Where motion is not wanted, what is new shows with the next event.
  if (warm && still.matches) later = setTimeout(() => draw(), 1000);
  else if (warm) frame = requestAnimationFrame(draw);
}

function point(layer, expert) {
  if (!now?.layers) return;
  at = [Math.min(Math.max(layer, 0), now.layers - 1), Math.min(Math.max(expert, 0), now.experts - 1)];
  tip();
  draw();
}

export function begin() {
  const grid = $('grid');
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  grid.onkeydown = (event) => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    point((at?.[0] ?? 0) + move[0], (at?.[1] ?? 0) + move[1]);
  };
  grid.onfocus = () => at ?? point(0, 0);
  grid.onpointermove = (event) => {
    if (!now?.layers) return;
    const [wide, high] = cell();
    const box = grid.getBoundingClientRect();
    point(Math.floor((event.clientY - box.top) / high), Math.floor((event.clientX - box.left) / wide));
  };
  const leave = () => {
    at = null;
    $('tip').textContent = '';
    draw();
  };
  grid.onpointerleave = leave;
  grid.onblur = leave;
  $('table-box').ontoggle = () => now && table();
  new ResizeObserver(() => {
    if (now) size();
    draw();
  }).observe(grid);
}
