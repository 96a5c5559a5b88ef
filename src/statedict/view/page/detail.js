// Histograms, small in the table and large in the panel of one tensor.
function powerBins(tensor) {
  if (!tensor.histogram) return [];
  const [exponent, negative, positive] = tensor.histogram;
  const made = [];
  const put = (order, sign, n, text, range) => made.push({order, sign, n, text, range});
  for (let at = negative.length - 1; at >= 0; at--) {
    const high = `−${power(exponent + at + 1)}`;
    put(-2001 - exponent - at, -1, negative[at], high, `${high} to −${power(exponent + at)}`);
  }
  if (negative.length || positive.length || tensor.zeros) put(0, 0, tensor.zeros, '0', '0');
  positive.forEach((n, at) => put(2001 + exponent + at, 1, n, power(exponent + at),
    `${power(exponent + at)} to ${power(exponent + at + 1)}`));
  while (made.length && !made[0].n && made[0].sign) made.shift();
  while (made.length && !made[made.length - 1].n && made[made.length - 1].sign) made.pop();
  return made;
}

// Bins of one width, whose edges are multiples of it; of no width if all elements are equal.
function linearBins(tensor, width) {
  if (!tensor.linear) return [];
  const [first, own, counts] = tensor.linear, made = new Map();
  counts.forEach((n, at) => {
    const order = !width ? 0 : Math.floor(own ? (first + at) * own / width : amount(first) / width);
    const bin = made.get(order) || {order, n: 0, sign: (width ? order : amount(first)) < 0 ? -1 : 1,
      text: figure(width ? order * width : first)};
    bin.n += n;
    bin.range = width ? `${bin.text} to ${figure((order + 1) * width)}` : bin.text;
    made.set(order, bin);
  });
  return [...made.values()];
}

function spark(tensor) {
  const found = linearBins(tensor, tensor.linear && tensor.linear[1]);
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

function large(tensor, before, powers, logarithmic) {
  const width = Math.max(...[tensor, before].map(one => one && one.linear ? one.linear[1] : 0));
  const read = one => !one ? [] : powers ? powerBins(one) : linearBins(one, width);
  const found = read(tensor), was = read(before);
  if (!found.length) return el('p', {class: 'note'}, 'There is no histogram of it.');
  const orders = [...found, ...was].map(bin => bin.order), low = Math.min(...orders), high = Math.max(...orders);
  const between = !powers && high - low < 200 ? Array.from({length: high - low}, (_, at) => low + at) : [];
  const empty = order => ({order, n: 0, sign: order < 0 ? -1 : 1, text: figure(order * width),
    range: `${figure(order * width)} to ${figure((order + 1) * width)}`});
  const keys = [...new Map([...between.map(empty), ...found, ...was].map(bin => [bin.order, bin])).entries()]
    .sort((a, b) => a[0] - b[0]);
  const now = new Map(found.map(bin => [bin.order, bin.n])), old = new Map(was.map(bin => [bin.order, bin.n]));
  const scale = n => logarithmic ? Math.log10(1 + n) : n;
  const most = Math.max(...found.map(bin => scale(bin.n)), ...was.map(bin => scale(bin.n)));
  const wide = 520, tallest = 190, foot = 26, each = wide / keys.length;
  const every = Math.ceil(keys.length / 9);
  const middle = keys.findIndex(([, bin]) => bin.order === 0);
  const parts = keys.map(([key, bin], at) => {
    const n = now.get(key) || 0, m = old.get(key) || 0;
    const tall = n ? Math.max(1, (tallest - 14) * scale(n) / most) : 0, then = m ? (tallest - 14) * scale(m) / most : 0;
    const marked = middle < 0 ? at % every === 0 : (at - middle) % every === 0;
    return svg('g', {},
      svg('rect', {class: 'hit', x: at * each, y: 0, width: each, height: tallest}),
      svg('rect', {class: bin.sign < 0 ? 'minus' : bin.sign ? 'plus' : 'zero', x: at * each + 0.5, y: tallest - tall,
        width: Math.max(each - 1, 0.8), height: tall}),
      then ? svg('path', {class: 'then', d: `M${at * each} ${tallest - then}h${each}`}) : '',
      marked ? svg('text', {x: (at + (powers ? 0.5 : 0)) * each, y: tallest + 17, 'text-anchor': 'middle'}, bin.text) : '',
      svg('title', {}, `${bin.range}: ${whole(n)}${before ? `, was ${whole(m)}` : ''}`));
  });
  const said = `Histogram${powers ? ' by powers of two' : ''} from ${figure(tensor.min)} to ${figure(tensor.max)}`;
  return svg('svg', {class: 'large', viewBox: `-14 0 ${wide + 28} ${tallest + foot}`, role: 'img', 'aria-label': said},
    svg('path', {class: 'base', d: `M0 ${tallest}.5h${wide}`}), parts);
}

let shown = null, cameFrom = null, logarithmic = false, powers = false;

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
      quantization: 'of quantized weights', generator: 'state of a generator of random numbers', tensor: 'tensor'}[tensor.role]],
    tensor.tied && ['tied', `has the bytes of ${tensor.tied}`],
    change.kind && ['change', change.kind], change.before && ['was', change.before],
    change.relative !== undefined && ['relative change', figure(change.relative)],
    change.max_abs !== undefined && ['largest change', figure(change.max_abs)],
    change.cosine !== undefined && ['cosine', figure(change.cosine)],
    change.share !== undefined && ['elements changed', percent(change.share)],
    change.equal !== undefined && ['values', change.equal ? 'equal' : 'differ'],
    change.same_as && ['same bytes as', change.same_as],
  ].filter(Boolean);
  const toggle = (id, label, on, turn) => el('button', {type: 'button', class: 'plain', id, 'aria-pressed': String(on),
    onclick: () => { turn(); showDetail(tensor); byId(id).focus(); }}, label);
  panel.replaceChildren(
    el('div', {class: 'detail-head'}, el('h2', {id: 'detail-title', class: 'mono'}, tensor.at),
      el('button', {type: 'button', class: 'plain', id: 'close', 'aria-label': 'Close', onclick: hideDetail}, '✕')),
    el('ul', {class: 'flags'}, tensor.flags.map(flag => el('li', {}, el('span', {
      class: `tag ${flag.kind.replace(' ', '-')}`}, flag.kind), el('span', {class: 'what'}, flag.what)))),
    el('dl', {class: 'facts'}, facts.map(([name, text]) => [el('dt', {}, name), el('dd', {}, text)])),
    el('div', {class: 'detail-bar'}, el('h3', {}, 'Values'),
      toggle('powers', 'by powers of two', powers, () => { powers = !powers; }),
      toggle('log', 'logarithmic counts', logarithmic, () => { logarithmic = !logarithmic; })),
    large(tensor, before, powers, logarithmic),
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
