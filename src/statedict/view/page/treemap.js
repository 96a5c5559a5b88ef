// Bytes by module; a click opens a module here and in the table.
let treemapColour = CHANGE ? 'change' : 'module';
let trail;

// The modules that get a colour each: what the root splits into, and what the largest of those does.
function groups() {
  let layer = TREE.below.filter(inner => inner.sum || inner.tensor);
  while (layer.length === 1 && !layer[0].tensor) layer = layer[0].below;
  for (let again = 0; again < 3 && layer.length < 10; again++) {
    const large = layer.find(inner => inner.sum && inner.sum.tile > 0.6 * TREE.sum.tile && inner.below.length > 1);
    if (!large) break;
    layer = layer.flatMap(inner => inner === large ? large.below : [inner]);
  }
  return layer;
}

function mixed(hex, share, other) {
  const parts = [1, 3, 5].map(at => Math.round(parseInt(hex.slice(at, at + 2), 16) * (1 - share)
    + parseInt(other.slice(at, at + 2), 16) * share));
  return `#${parts.map(part => part.toString(16).padStart(2, '0')).join('')}`;
}

const COLD = '#4d5866', RAMP = ['#3b5d8f', '#5a5aae', '#85549a', '#a8446b', '#b23a2f'];
function warm(relative, low, high) {
  if (!(relative > 0)) return COLD;
  const at = high > low ? Math.max(0, Math.min(1, (Math.log10(relative) - low) / (high - low))) : 1;
  const step = at * (RAMP.length - 1), from = Math.min(Math.floor(step), RAMP.length - 2);
  return mixed(RAMP[from], step - from, RAMP[from + 1]);
}
function bounds() {
  const found = TENSORS.filter(tensor => tensor.elements > 1 && !tensor.random && valueOf(tensor, 'relative') > 0)
    .map(tensor => Math.log10(Math.min(valueOf(tensor, 'relative'), 1e30))).sort((a, b) => a - b);
  if (!found.length) return [0, 0];
  const at = share => found[Math.round(share * (found.length - 1))];
  return [at(0.03), at(0.97)];
}

// A module that holds one module alone is one tile with it.
function innermost(module) {
  let here = module;
  while (!here.tensor && here.below.length === 1 && !here.below[0].tensor) here = here.below[0];
  return here;
}

const weight = inner => inner.tensor ? inner.tensor.tied || inner.tensor.gone || inner.tensor.random ? 0
  : inner.tensor.bytes : inner.sum.tile;

// What is in a module, the largest first; what is too much for a screen is one tile.
function inside(module) {
  const found = module.below.filter(weight);
  if (found.length <= 400) return [found.map(innermost), []];
  found.sort((a, b) => weight(b) - weight(a));
  return [found.slice(0, 300).map(innermost), found.slice(300)];
}

// As many levels as a screen has room for.
function levels(module) {
  let layer = [module], shown = 0, depth = 0;
  while (layer.length && (depth < 2 || shown + layer.length <= 450)) {
    shown += layer.length;
    depth += 1;
    layer = layer.flatMap(inner => inner.tensor ? [] : inside(inner)[0]);
  }
  return depth;
}

function tiles(start) {
  const made = {ids: [], labels: [], parents: [], values: [], customdata: [], marker: {colors: []}};
  const own = new Map(groups().map((inner, at) => [innermost(inner), TILES[at % TILES.length]]));
  const kinds = new Map(DATA.dtypes.map((name, at) => [name, TILES[at % TILES.length]]));
  const [low, high] = CHANGE ? bounds() : [0, 0];
  const tint = (inner, sum, family) => {
    if (treemapColour === 'change') {
      if (inner.tensor && inner.tensor.change && inner.tensor.change.kind === 'added') return '#2c7565';
      return warm(sum.relative, low, high);
    }
    if (treemapColour === 'dtype') return sum.kinds.size === 1 ? kinds.get([...sum.kinds][0]) : COLD;
    return mixed(family || COLD, inner.level % 2 ? 0.1 : 0, '#000000');
  };
  const put = (id, label, above, value, text, flat) => {
    made.ids.push(id);
    made.labels.push(plain(label));
    made.parents.push(above);
    made.values.push(value);
    made.customdata.push(text);
    made.marker.colors.push(flat);
  };
  const walk = (inner, above, base, inherited, left) => {
    const sum = inner.sum || leaf(inner.tensor);
    const family = own.get(inner) || inherited, id = String(inner.number), size = weight(inner);
    const label = inner === TREE ? 'all' : inner.path.slice(base ? base.length + 1 : 0) || '(unnamed)';
    const change = CHANGE && sum.relative !== null ? `<br>relative change ${figure(sum.relative)}` : '';
    put(id, shortened(label, 60), above, size, `<b>${plain(shortened(inner.path || 'all', 90))}</b><br>${bytes(size)}, `
      + `${(100 * size / TREE.sum.tile).toFixed(1)}%<br>${inner.tensor
        ? `${inner.tensor.dtype} ${shape(inner.tensor.shape)}` : count(sum.tensors, 'tensor')}${change}`,
      inner === TREE ? COLD : tint(inner, sum, family));
    if (inner.tensor || left < 2) return;
    const [shown, rest] = inside(inner);
    shown.forEach(next => walk(next, id, inner.path, family, left - 1));
    if (rest.length) {
      const size = rest.reduce((total, one) => total + weight(one), 0);
      put(`${id}+`, `${whole(rest.length)} more`, id, size, `${whole(rest.length)} more<br>${bytes(size)}`, COLD);
    }
  };
  let family = null;
  for (let up = start; up; up = up.above) family = family || own.get(up) || null;
  walk(start, '', start.above ? start.above.path : '', family, levels(start));
  return made;
}

function drawTreemap() {
  const start = innermost(MODULES.get(view.module));
  const trace = Object.assign(tiles(view.module ? start : TREE), {
    type: 'treemap', branchvalues: 'total', sort: false, maxdepth: 40,
    textinfo: 'label', hovertemplate: '%{customdata}<extra></extra>', pathbar: {visible: false},
    textfont: {color: '#ffffff', size: 12}, insidetextfont: {color: '#ffffff'}, outsidetextfont: {color: '#ffffff'},
    tiling: {pad: 1.5, packing: 'squarify'},
  });
  trace.marker.line = {width: 1, color: colour('panel')};
  trace.marker.pad = {t: 20, l: 3, r: 3, b: 3};
  trace.marker.cornerradius = 3;
  Plotly.react(byId('treemap-chart'), [trace],
    layout({margin: {l: 0, r: 0, t: 0, b: 0}, height: innerWidth < 700 ? 320 : 440}), CONFIG);
}

function follow(id) {
  const found = NODES[parseInt(id, 10)];
  if (found.tensor) showDetail(found.tensor);
  else openModule(found.path);
}

// The title of the module that is open leads out of it.
function followed(id) {
  const start = MODULES.get(view.module);
  follow(start.above && id === String(innermost(start).number) ? String(start.above.number) : id);
}

// The trail to the module, and the chart at that level.
function showLevel(path, redraw) {
  const steps = [['', 'all']];
  const keys = [];
  for (let up = MODULES.get(path); up && up !== TREE; up = up.above) keys.unshift(up);
  for (const up of keys) steps.push([up.path, up.key]);
  trail.replaceChildren(...steps.flatMap(([to, name], at) => [at ? el('span', {'aria-hidden': 'true'}, '›') : '',
    el('button', {type: 'button', class: 'link', 'aria-current': at === steps.length - 1 ? 'location' : null,
      onclick: () => openModule(to)}, name)]));
  if (redraw && byId('treemap-chart')) drawTreemap();
}

// One tile takes the focus by Tab, the arrows lead to the others.
function reachable() {
  const first = byId('treemap-chart').data[0].ids[0];
  for (const slice of byId('treemap-chart').querySelectorAll('g.slice')) {
    const id = slice.__data__?.data?.data?.id ?? slice.__data__?.id;
    if (id === undefined) continue;
    slice.setAttribute('tabindex', id === first ? '0' : '-1');
    slice.setAttribute('role', 'button');
    slice.setAttribute('aria-label', NODES[parseInt(id, 10)].path || 'all');
    slice.dataset.id = id;
    if (!id.endsWith('+')) slice.dataset.path = NODES[id].path;
  }
}

function treemap() {
  trail = el('nav', {class: 'trail', 'aria-label': 'Module'});
  const host = el('div', {id: 'treemap-chart', class: 'chart', onkeydown: event => {
    const slice = event.target.closest?.('g.slice');
    const all = [...host.querySelectorAll('g.slice')], at = all.indexOf(slice);
    const steps = {ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0,
      End: all.length - 1};
    if (!slice || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Enter' || event.key === ' ') {
      followed(slice.dataset.id);
      host.querySelector('g.slice')?.focus();
    } else if (event.key in steps) {
      all.forEach(one => one.setAttribute('tabindex', '-1'));
      const next = all[Math.max(0, Math.min(steps[event.key], all.length - 1))];
      next.setAttribute('tabindex', '0');
      next.focus();
    } else return;
    event.preventDefault();
  }});
  const colours = [['module', 'module'], ['dtype', 'dtype']];
  if (CHANGE) colours.unshift(['change', 'relative change']);
  section('bytes', 'Bytes by module', 'Click a module to open it here and in the table.',
    el('div', {class: 'bar'}, trail, choice('colour', colours, value => { treemapColour = value; drawTreemap(); }),
      CHANGE && el('span', {class: 'ramp'}, 'same', el('i', {style: `background:${COLD}`}),
        RAMP.map(step => el('i', {style: `background:${step}`})), 'most')), host);
  if (!TREE.sum.tile) { host.replaceWith(el('p', {class: 'fine'}, 'There are no bytes to show.')); return; }
  drawn(drawTreemap);
  host.on('plotly_treemapclick', event => {
    const id = event.points?.[0]?.id;
    if (id === undefined) return false;
    setTimeout(() => followed(id));
    return false;
  });
  host.on('plotly_afterplot', reachable);
  reachable();
}
