// What a person has set: system prompt, sampler, key.

import { t } from './strings.js';

const NUMBERS = {
  temperature: { min: 0, max: 5, step: 0.05 }, top_p: { min: 0, max: 1, step: 0.01 }, top_k: { min: 0, max: 100000, step: 1 }, min_p: { min: 0, max: 1, step: 0.01 },
  repeat_penalty: { min: 0.01, max: 10, step: 0.01 }, seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }, max_tokens: { min: 1, max: 1000000, step: 1 },
};
const $ = (id) => document.getElementById(id);
let values = JSON.parse(localStorage.getItem('yuan.settings') ?? '{}');
let saved = () => {};

/** What a request has of them. */
export const sampler = () => Object.fromEntries(Object.keys(NUMBERS).filter((name) => Number.isFinite(values[name])).map((name) => [name, values[name]]));
export const system = () => values.system ?? '';

export function draw() {
  $('numbers').replaceChildren(...Object.entries(NUMBERS).map(([name, range]) => {
    const label = document.createElement('label');
    const text = document.createElement('span');
    text.textContent = t(name);
    const input = document.createElement('input');
    Object.assign(input, { type: 'number', id: `set-${name}`, inputMode: 'decimal', ...range, step: range.step === 1 ? 1 : 'any' });
    label.append(text, input);
    return label;
  }));
}

function fill(of) {
  for (const name of Object.keys(NUMBERS)) $(`set-${name}`).value = of[name] ?? '';
  $('set-system').value = of.system ?? '';
}

/** Opens the dialog, with a note if there is a reason; calls `then` when it was saved. */
export function open(note = '', then = () => {}) {
  saved = then;
  fill(values);
  $('set-key').value = localStorage.getItem('yuan.key') ?? '';
  $('settings-note').hidden = !note;
  $('settings-note').textContent = note;
  if (!$('settings').open) $('settings').showModal();
  if (note) $('set-key').focus();
}

export function begin() {
  draw();
  $('settings-open').onclick = () => open();
  $('settings-close').onclick = () => $('settings').close();
  $('reset').onclick = () => fill({});
  // Beside the dialog.
  $('settings').addEventListener('click', (event) => event.target === $('settings') && $('settings').close());
  $('settings-form').onsubmit = () => {
    values = { system: $('set-system').value };
    for (const name of Object.keys(NUMBERS)) {
      const { value, valueAsNumber } = $(`set-${name}`);
      if (value !== '') values[name] = valueAsNumber;
    }
    localStorage.setItem('yuan.settings', JSON.stringify(values));
    localStorage.setItem('yuan.key', $('set-key').value.trim());
    saved();
  };
}
