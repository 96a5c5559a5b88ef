// Which rows the table shows, in which order.
const view = {query: '', kind: '', module: '', sort: '', down: true, rows: [], active: 0};

const VALUE = {
  name: tensor => tensor.at, dtype: tensor => tensor.dtype, shape: tensor => tensor.elements,
  change: tensor => tensor.change ? tensor.change.kind : '',
  relative: tensor => tensor.change ? amount(tensor.change.relative ?? null) : null,
  max_abs: tensor => tensor.change ? amount(tensor.change.max_abs ?? null) : null,
  cosine: tensor => tensor.change ? amount(tensor.change.cosine ?? null) : null,
  share: tensor => tensor.change ? amount(tensor.change.share ?? null) : null,
};
const valueOf = (tensor, key) => VALUE[key] ? VALUE[key](tensor) : amount(tensor[key]);

// A pattern as the command line has it: * and ? and [ ], and what is below a path that matches.
function globbed(pattern) {
  let made = '';
  for (let at = 0; at < pattern.length; at++) {
    const end = pattern[at] === '[' ? pattern.indexOf(']', at + 2) : -1;
    if (pattern[at] === '*') made += '.*';
    else if (pattern[at] === '?') made += '.';
    else if (end > 0) {
      const inside = pattern.slice(at + 1, end).replace(/[\\\]^]/g, '\\$&').replace(/^!/, '^');
      made += `[${inside}]`;
      at = end;
    } else made += pattern[at].replace(/[.+^${}()|[\]\\]/g, '\\$&');
  }
  try {
    return new RegExp(`^(?:${made.replace(/(\.\*)+/g, '.*')})(?:\\..*)?$`, 'is');
  } catch { return null; }
}

function tester() {
  const words = view.query.trim().toLowerCase().split(/\s+/).filter(Boolean).map(word => {
    const glob = /[*?[]/.test(word) && globbed(word);
    return glob ? text => glob.test(text) : text => text.includes(word);
  });
  const hit = tensor => {
    const names = [tensor.at.toLowerCase(), tensor.name.toLowerCase()];
    return words.every(test => names.some(test) || test(tensor.dtype));
  };
  const dot = `${view.module}.`;
  const inside = tensor => !view.module || tensor.at === view.module || tensor.at.startsWith(dot);
  const kinds = {
    flagged: tensor => tensor.flags.length > 0,
    differs: tensor => tensor.change && tensor.change.kind !== 'identical',
  };
  const kind = kinds[view.kind] || (tensor => !view.kind || tensor.role === view.kind
    || (tensor.change && tensor.change.kind === view.kind));
  return tensor => inside(tensor) && kind(tensor) && hit(tensor);
}

function compare(key, down) {
  return (one, other) => {
    const a = valueOf(one, key), b = valueOf(other, key);
    if (a === b) return 0;
    if (a === null) return 1;
    if (b === null) return -1;
    const order = typeof a === 'string' ? a.localeCompare(b, 'en', {numeric: true}) : a - b;
    return down ? -order : order;
  };
}

function choose() {
  const wanted = tester();
  const kept = TENSORS.filter(wanted);
  if (view.sort) {
    view.rows = kept.sort(compare(view.sort, view.down)).map(tensor => ({node: tensor.node, level: 0}));
  } else {
    const all = view.query.trim() || view.kind;
    const marked = new Set();
    for (const tensor of kept) for (let up = tensor.node; up && !marked.has(up); up = up.above) marked.add(up);
    view.rows = [];
    const start = MODULES.get(view.module) || TREE;
    const walk = (nodes, level) => {
      for (const inner of nodes) {
        if (!marked.has(inner)) continue;
        const open = !inner.tensor && (inner.open || Boolean(all) && !inner.shut);
        view.rows.push({node: inner, level, open});
        if (open) walk(inner.below, level + 1);
      }
    };
    walk(start.below, 0);
  }
  view.kept = kept.length;
  view.active = Math.max(0, Math.min(view.active, view.rows.length - 1));
}

// At first as many levels are open as fit a screen.
function unfold() {
  let layer = TREE.below.filter(inner => !inner.tensor), rows = TREE.below.length;
  while (layer.length) {
    const next = layer.reduce((sum, inner) => sum + inner.below.length, 0);
    if (rows + next > 60 && rows > 1) break;
    layer.forEach(inner => { inner.open = true; });
    rows += next;
    layer = layer.flatMap(inner => inner.below).filter(inner => !inner.tensor);
  }
}
