// The data as rows, and the tree of modules that they stand in.
const DATA = JSON.parse(byId('data').textContent);
const LEVELS = 32;
const CHANGE = DATA.change || null;

function record(row, tables) {
  const found = {};
  DATA.columns.forEach((name, at) => { found[name] = row[at]; });
  found.at = found.at || found.name;
  found.dtype = tables.dtypes[found.dtype];
  found.role = tables.roles[found.role];
  found.series = found.series < 0 ? null : tables.series[found.series];
  found.flags = [];
  found.change = null;
  found.random = found.role === 'generator'; // in no norm, change or tile
  return found;
}

const TENSORS = DATA.tensors.map(row => record(row, DATA));
const BY_NAME = new Map(TENSORS.map(tensor => [tensor.name, tensor]));
for (const [name, kind, what] of DATA.files[DATA.files.length - 1].flags) {
  if (BY_NAME.has(name)) BY_NAME.get(name).flags.push({kind, what});
}
const BEFORE = CHANGE ? CHANGE.before.tensors.map(row => record(row, CHANGE.before)) : [];
if (CHANGE) {
  for (const [at, change] of Object.entries(CHANGE.rows)) TENSORS[at].change = change;
  for (const change of CHANGE.removed) {
    const tensor = BEFORE[change.was];
    tensor.change = change;
    tensor.gone = true;
    TENSORS.push(tensor);
  }
}

const NODES = [];
function node(key, path, above) {
  NODES.push({key, path, above, level: above ? above.level + 1 : 0, below: [], inner: new Map(), tensor: null,
    open: false, number: NODES.length});
  return NODES[NODES.length - 1];
}

const TREE = node('', '', null);
const MODULES = new Map([['', TREE]]);
for (const tensor of TENSORS) {
  const keys = tensor.at.split('.');
  if (keys.length > LEVELS) keys.splice(LEVELS - 1, keys.length, keys.slice(LEVELS - 1).join('.'));
  const last = keys.pop();
  let here = TREE;
  for (const key of keys) {
    let next = here.inner.get(key);
    if (!next) {
      next = node(key, here === TREE ? key : `${here.path}.${key}`, here);
      here.inner.set(key, next);
      here.below.push(next);
      if (!MODULES.has(next.path)) MODULES.set(next.path, next);
    }
    here = next;
  }
  const leaf = node(last, tensor.at, here);
  leaf.tensor = tensor;
  tensor.node = leaf;
  here.below.push(leaf);
}

// The figures of a module from those of what is in it: sums, extremes, and the deviation about the common mean.
function together(module) {
  const sum = {tensors: 0, elements: 0, bytes: 0, tile: 0, zeros: 0, nan: 0, inf: 0, min: null, max: null, l2: 0, finite: 0,
    mean: 0, spread: 0, kinds: new Set(), flags: 0, moved: 0, was: 0, changed: 0, some: false};
  const parts = [];
  for (const inner of module.below) {
    const own = inner.tensor ? leaf(inner.tensor) : together(inner);
    if (inner.tensor && inner.tensor.gone) continue;
    own.kinds.forEach(kind => sum.kinds.add(kind));
    sum.flags += own.flags;
    sum.changed += own.changed;
    sum.tensors += own.tensors;
    if (inner.tensor && inner.tensor.tied) continue;
    for (const name of ['elements', 'bytes', 'tile', 'zeros', 'nan', 'inf']) sum[name] += own[name];
    if (inner.tensor && inner.tensor.random) continue;
    sum.moved = Math.hypot(sum.moved, own.moved);
    sum.was = Math.hypot(sum.was, own.was);
    if (!own.some || typeof own.mean !== 'number') continue;
    sum.some = true;
    sum.min = sum.min === null ? own.min : Math.min(sum.min, own.min);
    sum.max = sum.max === null ? own.max : Math.max(sum.max, own.max);
    sum.l2 = Math.hypot(sum.l2, own.l2);
    sum.finite += own.finite;
    parts.push(own);
  }
  for (const part of parts) sum.mean += part.mean * (part.finite / sum.finite);
  for (const part of parts) {
    sum.spread += (part.finite / sum.finite) * (part.spread + (part.mean - sum.mean) ** 2);
  }
  sum.std = sum.finite > 1 ? Math.sqrt(sum.spread * sum.finite / (sum.finite - 1)) : null;
  sum.relative = CHANGE && sum.was ? sum.moved / sum.was : null;
  module.sum = sum;
  return sum;
}
function leaf(tensor) {
  const finite = tensor.computed ? tensor.elements - tensor.nan - tensor.inf : 0;
  const change = tensor.change || {};
  const was = change.was === undefined ? 0 : amount(BEFORE[change.was].l2) || 0;
  const relative = amount(change.relative ?? null);
  // the step of an optimizer is no norm
  const known = Number.isFinite(was) && Number.isFinite(relative ?? 0) && tensor.elements > 1;
  return {tensors: 1, elements: tensor.elements, bytes: tensor.bytes,
    tile: tensor.random ? 0 : tensor.bytes, zeros: tensor.zeros, nan: tensor.nan,
    inf: tensor.inf, min: tensor.min, max: tensor.max, l2: amount(tensor.l2), finite, mean: tensor.mean,
    spread: finite > 1 ? (tensor.std || 0) ** 2 * (finite - 1) / finite : 0, kinds: new Set([tensor.dtype]),
    flags: tensor.flags.length, relative, moved: known ? (relative || 0) * was : 0, was: known ? was : 0,
    changed: tensor.change && tensor.change.kind !== 'identical' ? 1 : 0,
    some: finite > 0};
}
together(TREE);
