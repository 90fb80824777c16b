// What the page says, in English and in Chinese. Words in braces are put in by `t`.

const english = {
  skip: 'Skip to the message', chats: 'Conversations', history: 'History', close: 'Close', new: 'New conversation', search: 'Search conversations',
  none: 'No conversations yet.', noneFound: 'Nothing found.', export: 'Export', import: 'Import', delete: 'Delete “{title}”', deleted: 'Deleted.', undo: 'Undo',
  imported: 'Conversations imported: {n}.', notImported: 'This file holds no conversations of this page.', notKept: 'The browser does not keep conversations here: {why}',
  settings: 'Settings', experts: 'Experts at work', conversation: 'Conversation', write: 'Write a message', send: 'Send', stop: 'Stop', context: 'Context used',
  theme: 'Theme: {name}', auto: 'as the system', light: 'light', dark: 'dark', otherLanguage: 'Chinese (中文)',
  untitled: 'New conversation', hello: 'What shall we talk about?', helloMore: 'Everything stays in this browser and on the server that you connect to.',
  you: 'You', answerer: 'Answer', edit: 'Edit', copy: 'Copy', copied: 'Copied', regenerate: 'Answer again', saveEdit: 'Send again', cancel: 'Cancel', editing: 'Edit the message',
  previous: 'Previous version', next: 'Next version', version: 'Version {n} of {of}', answered: 'The answer is complete.', stopped: 'Stopped.', cut: 'The answer has reached its limit of tokens.',
  broken: 'The answer was cut off: {why}',
  waiting: 'Waiting for the server…', queued: 'Waiting in the queue…', reading: 'Reading the prompt: {done} of {total} tokens', gauge: '{used} of {all} tokens', noGauge: '{all} tokens of context',
  speed: '{n} tokens/s', tokens: '{n} tokens', kept: 'prompt {n}, {kept} already read',
  busy: 'The server is busy and its queue is full. Try again in a moment.', loading: 'The model is being loaded…', offline: 'The server does not answer. Is it running?',
  tooLong: 'The conversation is longer than the context: {why}', keyNeeded: 'This server asks for a key.', failed: 'The server says: {why}', again: 'Try again',
  system: 'System prompt', systemHint: 'What the model is told before every conversation', sampler: 'How tokens are chosen', samplerHint: 'An empty field leaves the choice to the server.',
  key: 'API key', keyHint: 'Kept in this browser. Needed only where the server asks for one.', save: 'Save', reset: 'Reset',
  temperature: 'Temperature', top_p: 'Top-p', top_k: 'Top-k', min_p: 'Min-p', repeat_penalty: 'Repeat penalty', seed: 'Seed', max_tokens: 'Longest answer',
  mapHint: 'Arrow keys move over the experts. The table below has the same figures.', mapLabel: '{layers} layers of {experts} experts',
  mapAbout: 'Each row is a layer, each cell one of its {experts} experts. A token wakes {used} in every layer.', noTiles: 'The experts of this model are not in tiles, so nothing is counted.',
  inMemory: 'in memory', onDrive: 'on the drive', onGpu: 'on the GPU', chosenNow: 'chosen just now', tip: 'Layer {layer}, expert {expert}: {n} tokens, {place}',
  hitRate: 'Found in memory', lately: 'lately {n}', perToken: 'Read per token', rate: 'Tokens per second', running: 'Sequences', inQueue: 'In the queue', of: '{n} of {of}',
  memory: 'Memory', ofBudget: '{used} of {all}', trunk: 'trunk', expertBytes: 'experts', kv: 'keys and values', scratch: 'scratch',
  asTable: 'As a table', layer: 'Layer', busiest: 'Busiest expert', mapOff: 'The map is not connected: {why}', code: 'Code',
};

const chinese = {
  skip: '跳到输入框', chats: '对话', history: '历史记录', close: '关闭', new: '新对话', search: '搜索对话',
  none: '还没有对话。', noneFound: '没有找到。', export: '导出', import: '导入', delete: '删除“{title}”', deleted: '已删除。', undo: '撤销',
  imported: '已导入 {n} 个对话。', notImported: '这个文件里没有本页面的对话。', notKept: '浏览器无法在此保存对话：{why}',
  settings: '设置', experts: '专家活动图', conversation: '对话内容', write: '输入消息', send: '发送', stop: '停止', context: '已用上下文',
  theme: '主题：{name}', auto: '跟随系统', light: '浅色', dark: '深色', otherLanguage: '英文（English）',
  untitled: '新对话', hello: '想聊点什么？', helloMore: '所有内容只保存在本浏览器和您连接的服务器上。',
  you: '您', answerer: '回答', edit: '编辑', copy: '复制', copied: '已复制', regenerate: '重新回答', saveEdit: '重新发送', cancel: '取消', editing: '编辑消息',
  previous: '上一个版本', next: '下一个版本', version: '第 {n} 个版本，共 {of} 个', answered: '回答完毕。', stopped: '已停止。', cut: '回答已达到长度上限。',
  broken: '回答中断：{why}',
  waiting: '正在等待服务器…', queued: '正在排队…', reading: '正在读取提示：{done} / {total} 个词元', gauge: '{used} / {all} 个词元', noGauge: '上下文 {all} 个词元',
  speed: '{n} 词元/秒', tokens: '{n} 个词元', kept: '提示 {n}，其中 {kept} 已读过',
  busy: '服务器繁忙，队列已满，请稍后再试。', loading: '正在加载模型…', offline: '服务器没有响应。它在运行吗？',
  tooLong: '对话超过了上下文长度：{why}', keyNeeded: '此服务器需要密钥。', failed: '服务器返回：{why}', again: '重试',
  system: '系统提示', systemHint: '每次对话之前告诉模型的内容', sampler: '如何选择词元', samplerHint: '留空则由服务器决定。',
  key: 'API 密钥', keyHint: '保存在本浏览器中。仅在服务器要求时需要。', save: '保存', reset: '恢复默认',
  temperature: '温度', top_p: 'Top-p', top_k: 'Top-k', min_p: 'Min-p', repeat_penalty: '重复惩罚', seed: '随机种子', max_tokens: '回答长度上限',
  mapHint: '用方向键在专家之间移动。下面的表格有同样的数据。', mapLabel: '{layers} 层，每层 {experts} 个专家',
  mapAbout: '每行是一层，每格是该层 {experts} 个专家之一。每个词元在每层唤醒 {used} 个。', noTiles: '此模型的专家未分块存放，因此没有统计。',
  inMemory: '在内存中', onDrive: '在硬盘上', onGpu: '在 GPU 上', chosenNow: '刚被选中', tip: '第 {layer} 层，专家 {expert}：{n} 个词元，{place}',
  hitRate: '内存命中率', lately: '最近 {n}', perToken: '每词元读取', rate: '每秒词元', running: '序列', inQueue: '排队', of: '{n} / {of}',
  memory: '内存', ofBudget: '{used} / {all}', trunk: '主干', expertBytes: '专家', kv: '键与值', scratch: '中间结果',
  asTable: '表格形式', layer: '层', busiest: '最忙的专家', mapOff: '活动图未连接：{why}', code: '代码',
};

const languages = { en: english, zh: chinese };
let current = localStorage.getItem('yuan.language') ?? ((navigator.language ?? '').startsWith('zh') ? 'zh' : 'en');

export const language = () => current;

export function setLanguage(name) {
  current = name;
  localStorage.setItem('yuan.language', name);
}

/** A text, with these words in it. */
export function t(key, words = {}) {
  const text = languages[current]?.[key] ?? english[key];
  return text.replace(/\{(\w+)\}/g, (_, word) => words[word] ?? '');
}

/** A number as the language writes it. */
export const number = (n, digits = 0) => new Intl.NumberFormat(current, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(n);

export const percent = (part) => new Intl.NumberFormat(current, { style: 'percent', maximumFractionDigits: 1 }).format(part);

export function bytes(n) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) [n, unit] = [n / 1000, unit + 1];
  return `${number(n, unit > 0 && n < 99.5 ? 1 : 0)} ${units[unit]}`;
}

/** Puts the texts into everything below `root` that names one. */
export function translate(root = document) {
  document.documentElement.lang = current === 'zh' ? 'zh-CN' : 'en';
  for (const node of root.querySelectorAll('[data-t]')) node.textContent = t(node.dataset.t);
  for (const node of root.querySelectorAll('[data-t-label]')) {
    node.setAttribute('aria-label', t(node.dataset.tLabel));
    if (node.tagName === 'BUTTON') node.title = t(node.dataset.tLabel);
  }
  for (const node of root.querySelectorAll('[data-t-placeholder]')) node.placeholder = t(node.dataset.tPlaceholder);
}
