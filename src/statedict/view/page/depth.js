// Norms over the depth of the model: a line for each kind of tensor, a point for each layer.
const METRICS = {rms: 'root mean square', l2: 'L2 norm', std: 'standard deviation', high: 'largest magnitude',
  relative: 'relative change'};
const depthState = {group: '', metric: 'rms', off: new Set()};

const deepOrder = (a, b) => {
  for (let at = 0; at < Math.max(a.length, b.length); at++) {
    if (a[at] !== b[at]) return (a[at] ?? -1) - (b[at] ?? -1);
  }
  return 0;
};
const deepLabel = depth => depth.join('.');

function metricOf(tensor, metric) {
  if (metric === 'high') return tensor.min === null ? null : Math.max(Math.abs(tensor.min), Math.abs(tensor.max));
  if (metric === 'relative') return valueOf(tensor, 'relative');
  return amount(tensor[metric]);
}

// Series by what they belong to: the weights of a model, or one moment of an optimizer.
function deepGroups() {
  const made = new Map();
  for (const tensor of TENSORS) {
    if (!tensor.series || tensor.gone || tensor.random || !tensor.computed) continue;
    const last = tensor.at.slice(tensor.at.lastIndexOf('.') + 1);
    const owner = DATA.files[DATA.files.length - 1].optimizers.find(one => tensor.role === 'optimizer'
      && tensor.at.startsWith(one.path ? `${one.path}.` : ''));
    const star = tensor.series.search(/[^.]*\*/);
    const group = owner ? `${owner.path || 'optimizer'}: ${last}` : tensor.series.slice(0, star).split('.')[0] || 'model';
    if (!made.has(group)) made.set(group, new Map());
    const lines = made.get(group);
    if (!lines.has(tensor.series)) lines.set(tensor.series, []);
    lines.get(tensor.series).push(tensor);
  }
  for (const [group, lines] of made) {
    for (const [name, found] of lines) if (found.length < 2) lines.delete(name);
    if (!lines.size) made.delete(group);
    for (const found of lines.values()) found.sort((a, b) => deepOrder(a.depth, b.depth));
  }
  return made;
}
const DEEP = deepGroups();

function common(names) {
  if (names.length < 2) return '';
  let prefix = names[0];
  for (const name of names) while (!name.startsWith(prefix)) prefix = prefix.slice(0, -1);
  return prefix.slice(0, prefix.lastIndexOf('.') + 1);
}

function drawDepth() {
  const lines = [...DEEP.get(depthState.group)];
  const places = [...new Map(lines.flatMap(([, found]) => found.map(tensor => [deepLabel(tensor.depth), tensor.depth])))]
    .sort((a, b) => deepOrder(a[1], b[1])).map(([name]) => name);
  const values = lines.flatMap(([, found]) => found.map(tensor => metricOf(tensor, depthState.metric)))
    .filter(value => value > 0);
  const wide = values.length && Math.max(...values) / Math.min(...values) > 50;
  const traces = lines.map(([name, found], at) => ({
    type: 'scatter', mode: found.length > 150 ? 'lines' : 'lines+markers', name: plain(name),
    visible: !depthState.off.has(name),
    x: found.map(tensor => deepLabel(tensor.depth)),
    y: found.map(tensor => { const value = metricOf(tensor, depthState.metric); return wide && !(value > 0) ? null
      : value; }),
    line: {color: line(at), width: 1.8, dash: ['solid', 'dash', 'dot'][Math.floor(at / 10) % 3]},
    marker: {size: 5}, customdata: found.map(tensor => tensor.name),
    text: found.map(tensor => plain(shortened(tensor.at, 90))),
    hovertemplate: '%{text}<br><b>%{y:.4g}</b><extra></extra>',
  }));
  Plotly.react(byId('depth-chart'), traces, layout({height: 360, margin: {l: 8, r: 12, t: 8, b: 8},
    xaxis: {type: 'category', categoryorder: 'array', categoryarray: places, title: {text: 'layer'}, nticks: 24},
    yaxis: {type: wide ? 'log' : 'linear', title: {text: METRICS[depthState.metric]}, exponentformat: 'power', dtick: wide ? 1 : null,
      rangemode: wide ? 'normal' : 'tozero'}}), CONFIG);
  const prefix = common(lines.map(([name]) => name));
  legend(byId('depth-legend'), lines.map(([name]) => [name, name.slice(prefix.length)]), depthState.off, drawDepth);
}

function legend(host, names, off, draw) {
  const focused = [...host.children].indexOf(document.activeElement);
  host.replaceChildren(...names.map(([name, label], at) => el('button', {type: 'button', class: 'series',
    'aria-pressed': String(!off.has(name)), title: name, onclick: () => {
      if (off.has(name)) off.delete(name); else off.add(name);
      draw();
    }}, el('i', {style: `background:${line(at)}`}), shortened(label, 44))));
  if (focused >= 0) host.children[focused]?.focus();
}

function depth() {
  if (!DEEP.size) return;
  depthState.group = [...DEEP.keys()][0];
  const metrics = Object.entries(METRICS).filter(([key]) => key !== 'relative' || CHANGE);
  const host = el('div', {id: 'depth-chart', class: 'chart'});
  section('depth', 'Norms by depth', 'A line for each kind of tensor, a point for each layer.',
    el('div', {class: 'bar'},
      DEEP.size > 1 && choice('of', [...DEEP.keys()].map(name => [name, name]), value => {
        depthState.group = value;
        depthState.off.clear();
        drawDepth();
      }),
      choice('figure', metrics, value => { depthState.metric = value; drawDepth(); })),
    host, el('div', {id: 'depth-legend', class: 'legend', role: 'group', 'aria-label': 'Lines'}));
  drawn(drawDepth);
  host.on('plotly_click', event => {
    const tensor = BY_NAME.get(event.points?.[0]?.customdata);
    if (tensor) setTimeout(() => showDetail(tensor));
  });
}
