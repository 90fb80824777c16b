// Markdown with code and math. What a model writes is never trusted: HTML in it is text, and what becomes of it is cleaned.

import MarkdownIt from './vendor/markdown-it.min.js';
import { t } from './strings.js';

const LANGUAGES = {
  bash: 'bash', sh: 'bash', shell: 'bash', c: 'c', cpp: 'cpp', 'c++': 'cpp', csharp: 'csharp', cs: 'csharp', css: 'css', diff: 'diff', go: 'go', ini: 'ini', toml: 'ini',
  java: 'java', javascript: 'javascript', js: 'javascript', json: 'json', kotlin: 'kotlin', latex: 'latex', tex: 'latex', markdown: 'markdown', md: 'markdown', php: 'php',
  python: 'python', py: 'python', ruby: 'ruby', rb: 'ruby', rust: 'rust', rs: 'rust', sql: 'sql', typescript: 'typescript', ts: 'typescript', html: 'xml', xml: 'xml', yaml: 'yaml', yml: 'yaml',
};

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });
markdown.inline.ruler.before('escape', 'math', inlineMath);
markdown.block.ruler.before('fence', 'math', blockMath, { alt: ['paragraph', 'blockquote', 'list'] });
const math = (tokens, at) => `<span class="${tokens[at].block ? 'math block' : 'math'}">${markdown.utils.escapeHtml(tokens[at].content)}</span>`;
markdown.renderer.rules.math = math;
// A picture would be fetched from somebody else: it is a link.
markdown.renderer.rules.image = (tokens, at) => {
  const { escapeHtml } = markdown.utils;
  return `<a href="${escapeHtml(tokens[at].attrGet('src') ?? '')}">${escapeHtml(tokens[at].content || 'image')}</a>`;
};

/** `$x$`, `$$x$$`, `\(x\)` and `\[x\]` in a line. A dollar before a digit or a blank begins nothing, so that prices stay prices. */
function inlineMath(state, silent) {
  const found = /^(?:\$\$([^$]+)\$\$|\$(?![\s\d.,]+(?:\s|$))((?:[^$\\\n]|\\.)*[^\s\\$])\$(?!\d)|\\\((.+?)\\\)|\\\[([^]+?)\\\])/.exec(state.src.slice(state.pos));
  if (!found || (found[2] !== undefined && /^\s/.test(found[2]))) return false;
  if (!silent) {
    const token = state.push('math', 'math', 0);
    token.content = found[1] ?? found[2] ?? found[3] ?? found[4];
    token.block = found[1] !== undefined || found[4] !== undefined;
  }
  state.pos += found[0].length;
  return true;
}

/** Lines from `$$` to `$$`, or from `\[` to `\]`. */
function blockMath(state, first, last, silent) {
  const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]);
  const open = ['$$', '\\['].find((mark) => line(first).startsWith(mark));
  if (!open) return false;
  const close = open === '$$' ? '$$' : '\\]';
  let text = line(first).slice(2);
  let n = first;
  while (!text.trimEnd().endsWith(close)) {
    if (++n >= last) return false;
    text += `\n${line(n)}`;
  }
  if (silent) return true;
  const token = state.push('math', 'math', 0);
  token.content = text.trimEnd().slice(0, -2);
  token.block = true;
  state.line = n + 1;
  return true;
}

DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName === 'A') {
    node.target = '_blank';
    node.rel = 'noopener noreferrer';
  }
});

/** Shows `text` in `place`. */
export function show(place, text) {
  const clean = DOMPurify.sanitize(markdown.render(text), { RETURN_DOM_FRAGMENT: true, FORBID_ATTR: ['style'], FORBID_TAGS: ['style', 'form', 'input', 'img'] });
  for (const code of clean.querySelectorAll('pre > code')) frame(code);
  const formulas = clean.querySelectorAll('span.math');
  place.replaceChildren(clean);
  if (formulas.length) renderMath(formulas);
}

function frame(code) {
  const name = /language-(\S+)/.exec(code.className)?.[1] ?? '';
  const pre = code.parentElement;
  const box = document.createElement('div');
  box.className = 'code';
  const head = document.createElement('div');
  head.className = 'code-head';
  const label = document.createElement('span');
  label.textContent = name || t('code');
  const copy = document.createElement('button');
  copy.type = 'button';
  copy.className = 'quiet copy-code';
  copy.textContent = t('copy');
  head.append(label, copy);
  pre.replaceWith(box);
  // Long lines are scrolled to by keys, too.
  pre.tabIndex = 0;
  box.append(head, pre);
  colour(code, LANGUAGES[name.toLowerCase()]);
}

const grammars = new Map();

async function colour(code, name) {
  if (!name) return;
  if (!grammars.has(name)) {
    grammars.set(name, Promise.all([import('./vendor/highlight.min.js'), import(`./vendor/languages/${name}.min.js`)]).then(([{ default: highlight }, grammar]) => {
      highlight.registerLanguage(name, grammar.default);
      return highlight;
    }));
  }
  const highlight = await grammars.get(name);
  code.innerHTML = highlight.highlight(code.textContent, { language: name, ignoreIllegals: true }).value;
}

let katex;

/** KaTeX is fetched with the first formula. It writes styles by itself, as the page's policy asks. */
async function renderMath(formulas) {
  katex ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = new URL('./vendor/katex.min.js', import.meta.url);
    script.onload = () => resolve(window.katex);
    script.onerror = reject;
    document.head.append(script);
  });
  const { render } = await katex;
  for (const place of formulas) {
    const block = place.classList.contains('block');
    render(place.textContent, place, { displayMode: block, throwOnError: false, strict: 'ignore', trust: false, maxExpand: 200, maxSize: 20 });
    if (block) place.tabIndex = 0;
  }
}
