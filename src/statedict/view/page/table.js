// The table: rows are made as they come into sight, so that tens of thousands open at once.
const ROW = 30;
const SPARE = 12;
const HEADS = [
  ['name', 'name', 268], ['dtype', 'dtype', 78], ['shape', 'shape', 110], ['elements', 'elements', 96],
  ['bytes', 'bytes', 80],
  ...(CHANGE ? [['change', 'change', 92], ['relative', 'relative', 88], ['max_abs', 'max |Δ|', 88],
    ['cosine', 'cosine', 88], ['share', 'changed %', 92]] : []),
  ['histogram', 'histogram', 112], ['min', 'min', 90], ['max', 'max', 90], ['mean', 'mean', 90], ['std', 'std', 82],
  ['l2', 'L2', 82], ['zeros', 'zeros', 84], ['nan', 'NaN', 64], ['inf', 'Inf', 64],
];
const TEXTS = new Set(['name', 'dtype', 'shape', 'change', 'histogram']);
let body, scroller, status, search, chip;

function tensorCells(tensor) {
  const change = tensor.change || {};
  const own = {
    dtype: tensor.dtype, shape: shape(tensor.shape), elements: whole(tensor.elements), bytes: bytes(tensor.bytes),
    change: change.kind || '', relative: figure(change.relative ?? null), max_abs: figure(change.max_abs ?? null),
    cosine: change.cosine === undefined ? '–' : typeof change.cosine === 'number' ? change.cosine.toFixed(5) : '–',
    share: percent(change.share),
  };
  for (const name of ['min', 'max', 'mean', 'std', 'l2']) own[name] = figure(tensor[name]);
  for (const name of ['zeros', 'nan', 'inf']) own[name] = tensor.computed ? whole(tensor[name]) : '–';
  own.histogram = spark(tensor);
  return own;
}
function moduleCells(sum) {
  const kinds = [...sum.kinds];
  const own = {dtype: kinds.length === 1 ? kinds[0] : kinds.length ? 'mixed' : '', shape: count(sum.tensors, 'tensor'),
    elements: whole(sum.elements), bytes: bytes(sum.bytes), histogram: '',
    change: sum.changed ? `${whole(sum.changed)} of ${whole(sum.tensors)}` : '',
    relative: sum.relative === null ? '' : figure(sum.relative), max_abs: '', cosine: '', share: ''};
  for (const name of ['min', 'max', 'mean', 'std', 'l2']) own[name] = sum.some ? figure(sum[name]) : '';
  for (const name of ['zeros', 'nan', 'inf']) own[name] = whole(sum[name]);
  return own;
}

function tableRow(at) {
  const {node: inner, level, open} = view.rows[at];
  const tensor = inner.tensor;
  const cells = tensor ? tensorCells(tensor) : moduleCells(inner.sum);
  const label = tensor && view.sort ? tensor.at : inner.key;
  const kind = `${tensor ? '' : ' module'}${(tensor ? tensor.gone : !inner.sum.tensors) ? ' gone' : ''}`;
  const row = el('tr', {
    class: `row${kind}`, role: 'row', 'data-at': at, tabindex: at === view.active ? 0 : -1, 'aria-rowindex': at + 2,
    'aria-level': level + 1, 'aria-expanded': tensor ? null : String(Boolean(open)),
    'aria-label': tensor ? null : `module ${inner.path}`,
  });
  for (const [key] of HEADS) {
    const bad = (key === 'nan' || key === 'inf') && (tensor ? tensor[key] : inner.sum[key]) > 0;
    const cell = el('td', {role: 'gridcell', class: `${TEXTS.has(key) ? 'text' : 'number'} c-${key}${bad ? ' bad' : ''}`
      + (key === 'change' && tensor && tensor.change ? ` k-${tensor.change.kind}` : '')});
    if (key === 'name') {
      const flags = tensor ? tensor.flags.length : open ? 0 : inner.sum.flags;
      cell.append(el('span', {class: 'name', style: `padding-left:${Math.min(level, 14) * 16}px`, title: inner.path},
        el('span', {class: 'twist', 'aria-hidden': 'true'}, tensor ? '' : open ? '▾' : '▸'),
        el('span', {class: 'key'}, shortened(label || '(unnamed)', tensor && view.sort ? innerWidth < 800 ? 24 : 42 : 300)),
        flags ? el('span', {class: 'flag', title: tensor ? tensor.flags.map(flag => flag.what).join('\n')
          : count(flags, 'flag')}, `⚑${tensor ? '' : ` ${flags}`}`) : null,
        tensor && tensor.tied ? el('span', {class: 'tie', title: `the bytes of ${tensor.tied}`}, 'tied') : null));
    } else cell.append(cells[key]);
    row.append(cell);
  }
  return row;
}

const spacer = rows => el('tr', {class: 'space', 'aria-hidden': 'true'},
  el('td', {colspan: HEADS.length, style: `height:${rows * ROW}px`}));

function paint(focus, everything) {
  const first = everything ? 0 : Math.max(0, Math.floor(scroller.scrollTop / ROW) - SPARE);
  const last = everything ? view.rows.length
    : Math.min(view.rows.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW) + SPARE);
  const held = focus || (body.contains(document.activeElement) && document.activeElement.matches('tr'));
  const made = [];
  if (first > 0) made.push(spacer(first));
  for (let at = first; at < last; at++) made.push(tableRow(at));
  if (last < view.rows.length) made.push(spacer(view.rows.length - last));
  body.replaceChildren(...made);
  if (held) body.querySelector(`tr[data-at="${view.active}"]`)?.focus({preventScroll: true});
}

function refresh(keep) {
  choose();
  if (!keep) { view.active = 0; scroller.scrollTop = 0; }
  byId('grid').setAttribute('aria-rowcount', view.rows.length + 1);
  status.textContent = `${whole(view.kept)} of ${count(TENSORS.length, 'tensor')}`;
  chip.hidden = !view.module;
  byId('empty').hidden = view.rows.length > 0;
  chip.replaceChildren('in ', el('b', {}, shortened(view.module, 60)), el('span', {'aria-hidden': 'true'}, ' ×'));
  for (const head of byId('grid').querySelectorAll('th')) {
    head.setAttribute('aria-sort', head.dataset.key !== view.sort ? 'none' : view.down ? 'descending' : 'ascending');
  }
  paint();
}

function move(to) {
  view.active = Math.max(0, Math.min(to, view.rows.length - 1));
  const top = view.active * ROW, room = scroller.clientHeight - byId('grid').tHead.offsetHeight - ROW;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top > scroller.scrollTop + room) scroller.scrollTop = top - room;
  paint(true);
}

function toggle(inner, open) {
  inner.open = open;
  inner.shut = !open;
  refresh(true);
}

function act(at, shift) {
  view.active = at;
  const row = view.rows[at];
  if (!row) return;
  if (row.node.tensor) { paint(true); showDetail(row.node.tensor); }
  else if (shift) openModule(row.node.path);
  else { toggle(row.node, !row.open); paint(true); }
}

function pressed(event) {
  const row = view.rows[view.active];
  if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor(scroller.clientHeight / ROW) - 2);
  const above = () => {
    for (let at = view.active - 1; at >= 0; at--) if (view.rows[at].level < row.level) return at;
    return view.active;
  };
  const steps = {ArrowDown: view.active + 1, ArrowUp: view.active - 1, PageDown: view.active + page,
    PageUp: view.active - page, Home: 0, End: view.rows.length - 1};
  if (event.key in steps) move(steps[event.key]);
  else if (event.key === 'Enter' || event.key === ' ') act(view.active, event.shiftKey);
  else if (event.key === 'ArrowRight' && !row.node.tensor && !row.open) { toggle(row.node, true); paint(true); }
  else if (event.key === 'ArrowRight' && row.open) move(view.active + 1);
  else if (event.key === 'ArrowLeft' && row.open) { toggle(row.node, false); paint(true); }
  else if (event.key === 'ArrowLeft') move(above());
  else return;
  event.preventDefault();
}

function sorted(key) {
  const first = !TEXTS.has(key) || key === 'shape';
  if (view.sort !== key) { view.sort = key; view.down = first; }
  else if (view.down === first) view.down = !first;
  else view.sort = '';
  refresh();
}

function openModule(path) {
  view.module = MODULES.has(path) ? path : '';
  const module = MODULES.get(view.module);
  for (let up = module; up; up = up.above) { up.open = true; up.shut = false; }
  if (module.below.length === 1 && !module.below[0].tensor) module.below[0].open = true;
  refresh();
  showLevel(view.module, true);
}

function showTensor(tensor) {
  Object.assign(view, {query: '', kind: '', module: '', sort: ''});
  search.value = '';
  byId('kind').value = '';
  for (let up = tensor.node.above; up; up = up.above) { up.open = true; up.shut = false; }
  refresh();
  move(view.rows.findIndex(row => row.node === tensor.node));
  showDetail(tensor);
}

function kinds() {
  const found = [['', 'everything']];
  const some = new Set(TENSORS.map(tensor => tensor.role));
  if (some.size > 1) for (const role of Object.keys(ROLES)) if (some.has(role)) found.push([role, ROLES[role]]);
  if (TENSORS.some(tensor => tensor.flags.length)) found.push(['flagged', 'flagged']);
  if (CHANGE) {
    found.push(['differs', 'what differs']);
    for (const kind of new Set(TENSORS.map(tensor => tensor.change ? tensor.change.kind : ''))) {
      if (kind) found.push([kind, kind]);
    }
  }
  return found;
}

function table() {
  search = el('input', {type: 'search', id: 'search', placeholder: 'Search: attn, *.bias, bfloat16', autocomplete: 'off',
    spellcheck: 'false', 'aria-label': 'Search the tensors by name, pattern or dtype', 'aria-keyshortcuts': '/',
    oninput: () => { view.query = search.value; refresh(); },
    onkeydown: event => { if (event.key === 'ArrowDown') { event.preventDefault(); move(0); } }});
  status = el('span', {class: 'status', role: 'status', id: 'status'});
  chip = el('button', {type: 'button', class: 'chip', id: 'module', title: 'show all modules', hidden: true,
    onclick: () => openModule('')});
  const kind = choice('show', kinds(), value => { view.kind = value; refresh(); });
  kind.querySelector('select').id = 'kind';
  body = el('tbody', {onkeydown: pressed, onclick: event => {
    const row = event.target.closest('tr[data-at]');
    if (row && !String(getSelection())) act(Number(row.dataset.at), event.shiftKey);
  }});
  const heads = HEADS.map(([key, label]) => el('th', {scope: 'col', role: 'columnheader', 'data-key': key,
    class: TEXTS.has(key) ? 'text' : 'number'},
    key === 'histogram' ? label : el('button', {type: 'button', onclick: () => sorted(key)}, label)));
  const width = HEADS.reduce((sum, head) => sum + head[2], 0);
  const grid = el('table', {id: 'grid', role: 'treegrid', 'aria-label': 'Tensors by module',
    style: `min-width:${width}px`},
    el('colgroup', {}, HEADS.map(head => el('col', {class: `w-${head[0]}`, style: head[0] === 'name' ? null
      : `width:${head[2]}px`}))),
    el('thead', {}, el('tr', {role: 'row'}, heads)), body);
  scroller = el('div', {class: 'scroll', id: 'scroll', onscroll: () => paint()}, grid);
  section('tensors', 'Tensors', el('span', {}, el('kbd', {}, '/'), ' search, ', el('kbd', {}, '↑↓←→'),
    ' move and fold, ', el('kbd', {}, 'Enter'), ' details'),
    el('div', {class: 'bar'}, search, kind, chip, status), scroller,
    el('p', {class: 'fine', id: 'empty', hidden: true}, 'No tensor is like that.'));
  unfold();
  refresh();
  new ResizeObserver(() => paint()).observe(scroller);
  addEventListener('beforeprint', () => paint(false, view.rows.length < 3000));
  addEventListener('afterprint', () => paint());
}
