// Histograms, small in the table and large in the panel of one tensor.
function bins(tensor) {
  if (!tensor.histogram) return [];
  const [exponent, negative, positive] = tensor.histogram;
  const made = [];
  for (let at = negative.length - 1; at >= 0; at--) made.push({exponent: exponent + at, sign: -1, n: negative[at]});
  if (negative.length || positive.length || tensor.zeros) made.push({exponent: null, sign: 0, n: tensor.zeros});
  positive.forEach((n, at) => made.push({exponent: exponent + at, sign: 1, n}));
  while (made.length && !made[0].n && made[0].sign) made.shift();
  while (made.length && !made[made.length - 1].n && made[made.length - 1].sign) made.pop();
  return made;
}

function spark(tensor) {
  const found = bins(tensor);
  if (!found.length) return '';
  const most = Math.max(...found.map(bin => bin.n)), width = Math.min(7, 98 / found.length);
  const paths = {'-1': '', 0: '', 1: ''};
  found.forEach((bin, at) => {
    if (!bin.n) return;
    const high = Math.max(1, 20 * bin.n / most);
    const x = (at * width).toFixed(1), wide = Math.max(width - 0.8, 0.8).toFixed(1);
    paths[bin.sign] += `M${x} 22v-${high.toFixed(1)}h${wide}V22z`;
  });
  return svg('svg', {class: 'spark', width: 98, height: 22, 'aria-hidden': 'true'},
    svg('path', {class: 'minus', d: paths['-1']}), svg('path', {class: 'zero', d: paths[0]}),
    svg('path', {class: 'plus', d: paths[1]}));
}

const RAISED = {'-': '⁻', 0: '⁰', 1: '¹', 2: '²', 3: '³', 4: '⁴', 5: '⁵', 6: '⁶', 7: '⁷', 8: '⁸', 9: '⁹'};
const power = n => `2${String(n).replace(/./g, digit => RAISED[digit])}`;
const span = bin => bin.sign === 0 ? '0' : bin.sign > 0 ? `${power(bin.exponent)} to ${power(bin.exponent + 1)}`
  : `−${power(bin.exponent + 1)} to −${power(bin.exponent)}`;

function large(tensor, before, logarithmic) {
  const found = bins(tensor), was = before ? bins(before) : [];
  if (!found.length) return el('p', {class: 'note'}, 'There is no histogram of it.');
  const order = bin => bin.sign * (1 + (bin.exponent === null ? 0 : bin.exponent + 2000));
  const keys = [...new Map([...found, ...was].map(bin => [order(bin), bin])).entries()].sort((a, b) => a[0] - b[0]);
  const now = new Map(found.map(bin => [order(bin), bin.n])), old = new Map(was.map(bin => [order(bin), bin.n]));
  const scale = n => logarithmic ? Math.log10(1 + n) : n;
  const most = Math.max(...found.map(bin => scale(bin.n)), ...was.map(bin => scale(bin.n)));
  const wide = 520, high = 190, foot = 26, each = wide / keys.length;
  const every = Math.ceil(keys.length / 9);
  const middle = keys.findIndex(([, bin]) => bin.sign === 0);
  const parts = keys.map(([key, bin], at) => {
    const n = now.get(key) || 0, m = old.get(key) || 0;
    const tall = n ? Math.max(1, (high - 14) * scale(n) / most) : 0, then = m ? (high - 14) * scale(m) / most : 0;
    const text = bin.sign === 0 ? '0' : `${bin.sign < 0 ? '−' : ''}${power(bin.exponent + (bin.sign < 0 ? 1 : 0))}`;
    const marked = middle < 0 ? at % every === 0 : (at - middle) % every === 0;
    return svg('g', {},
      svg('rect', {class: 'hit', x: at * each, y: 0, width: each, height: high}),
      svg('rect', {class: bin.sign < 0 ? 'minus' : bin.sign ? 'plus' : 'zero', x: at * each + 0.5, y: high - tall,
        width: Math.max(each - 1, 0.8), height: tall}),
      then ? svg('path', {class: 'then', d: `M${at * each} ${high - then}h${each}`}) : '',
      marked ? svg('text', {x: (at + 0.5) * each, y: high + 17, 'text-anchor': 'middle'}, text) : '',
      svg('title', {}, `${span(bin)}: ${whole(n)}${before ? `, was ${whole(m)}` : ''}`));
  });
  const said = `Histogram by powers of two from ${figure(tensor.min)} to ${figure(tensor.max)}`;
  return svg('svg', {class: 'large', viewBox: `-14 0 ${wide + 28} ${high + foot}`, role: 'img', 'aria-label': said},
    svg('path', {class: 'base', d: `M0 ${high}.5h${wide}`}), parts);
}

let shown = null, cameFrom = null, logarithmic = false;

function fact(name, now, before) {
  return el('tr', {}, el('th', {scope: 'row'}, name), before === undefined ? null
    : el('td', {class: before === now ? 'same' : ''}, before), el('td', {}, now));
}

function showDetail(tensor) {
  const panel = byId('detail');
  if (!shown) cameFrom = document.activeElement;
  shown = tensor;
  const change = tensor.change || {};
  const before = !tensor.gone && change.was !== undefined ? BEFORE[change.was] : null;
  const pair = key => [figure(tensor[key]), before ? figure(before[key]) : undefined];
  const counts = key => [tensor.computed && tensor[key] !== null ? whole(tensor[key]) : '–',
    before ? before.computed && before[key] !== null ? whole(before[key]) : '–' : undefined];
  const rows = [
    fact('dtype', tensor.dtype, before ? before.dtype : undefined),
    fact('shape', shape(tensor.shape), before ? shape(before.shape) : undefined),
    fact('elements', whole(tensor.elements), before ? whole(before.elements) : undefined),
    fact('bytes', bytes(tensor.bytes), before ? bytes(before.bytes) : undefined),
    ['min', 'max', 'mean', 'std', 'l2', 'rms'].map(key => fact({l2: 'L2 norm', rms: 'RMS'}[key] || key, ...pair(key))),
    [['zeros', 'zeros'], ['nan', 'NaN'], ['inf', 'Inf'], ['denormal', 'denormal'], ['edge', 'at the edge'],
      ['dead', 'dead rows']].map(([key, name]) => fact(name, ...counts(key))),
  ];
  const facts = [
    tensor.name !== tensor.at && ['in the file', `${tensor.name}${tensor.inferred ? ' (the name is inferred)' : ''}`],
    ['role', {parameter: 'parameter', buffer: 'buffer', optimizer: 'optimizer state',
      generator: 'state of a generator of random numbers', tensor: 'tensor'}[tensor.role]],
    tensor.tied && ['tied', `has the bytes of ${tensor.tied}`],
    change.kind && ['change', change.kind], change.before && ['was', change.before],
    change.relative !== undefined && ['relative change', figure(change.relative)],
    change.max_abs !== undefined && ['largest change', figure(change.max_abs)],
    change.cosine !== undefined && ['cosine', figure(change.cosine)],
    change.share !== undefined && ['elements changed', percent(change.share)],
    change.equal !== undefined && ['values', change.equal ? 'equal' : 'differ'],
    change.same_as && ['same bytes as', change.same_as],
  ].filter(Boolean);
  const log = el('button', {type: 'button', class: 'plain', id: 'log', 'aria-pressed': String(logarithmic),
    onclick: () => { logarithmic = !logarithmic; showDetail(tensor); byId('log').focus(); }}, 'logarithmic counts');
  panel.replaceChildren(
    el('div', {class: 'detail-head'}, el('h2', {id: 'detail-title', class: 'mono'}, tensor.at),
      el('button', {type: 'button', class: 'plain', id: 'close', 'aria-label': 'Close', onclick: hideDetail}, '✕')),
    el('ul', {class: 'flags'}, tensor.flags.map(flag => el('li', {}, el('span', {
      class: `tag ${flag.kind.replace(' ', '-')}`}, flag.kind), el('span', {class: 'what'}, flag.what)))),
    el('dl', {class: 'facts'}, facts.map(([name, text]) => [el('dt', {}, name), el('dd', {}, text)])),
    el('div', {class: 'detail-bar'}, el('h3', {}, 'Values by powers of two'), log),
    large(tensor, before, logarithmic),
    before && el('p', {class: 'note'}, el('span', {class: 'then-key'}), ' before'),
    el('table', {class: 'figures'}, before && el('thead', {}, el('tr', {}, el('td'), el('th', {scope: 'col'}, 'before'),
      el('th', {scope: 'col'}, 'after'))), el('tbody', {}, rows)));
  panel.hidden = false;
  root.classList.add('detailed');
  byId('close').focus({preventScroll: true});
}

function hideDetail() {
  const row = body.querySelector(`tr[data-at="${view.active}"]`);
  const target = cameFrom && cameFrom.isConnected && cameFrom !== document.body ? cameFrom : row;
  shown = null;
  byId('detail').hidden = true;
  root.classList.remove('detailed');
  target?.focus({preventScroll: true});
}
