// What differs between two files: how many of each kind, which most, where in the depth, and the lists.
const ORDER = ['identical', 'changed', 'close', 'retyped', 'reshaped', 'renamed', 'added', 'removed'];
const changeState = {group: ''};

function showKind(kind) {
  Object.assign(view, {query: '', kind, module: '', sort: kind === 'changed' ? 'relative' : '', down: true});
  search.value = '';
  byId('kind').value = kind;
  refresh();
  byId('tensors').scrollIntoView();
  search.focus({preventScroll: true});
}

function most() {
  const all = TENSORS.filter(tensor => tensor.elements > 1 && !tensor.random && valueOf(tensor, 'relative') > 0);
  const weights = all.filter(tensor => tensor.role !== 'optimizer');
  const found = (weights.length ? weights : all).sort((a, b) => valueOf(b, 'relative') - valueOf(a, 'relative'));
  if (!found.length) return null;
  const high = valueOf(found.find(tensor => Number.isFinite(valueOf(tensor, 'relative'))) || found[0], 'relative');
  return el('div', {class: 'column'}, el('h3', {}, 'What changed most'), el('ol', {class: 'bars'},
    found.slice(0, 15).map(tensor => {
      const value = valueOf(tensor, 'relative');
      const share = Math.max(0.5, Math.min(100, 100 * value / high));
      return el('li', {}, el('button', {type: 'button', onclick: () => showTensor(tensor), title: tensor.at},
        el('span', {class: 'mono'}, shortened(tensor.at, 46)), el('b', {}, figure(value)),
        el('i', {style: `width:${share}%`})));
    })));
}

function heatRows() {
  const made = new Map();
  for (const [group, lines] of DEEP) {
    const some = [...lines].filter(([, found]) => found.some(tensor => tensor.change));
    if (some.some(([, found]) => found.some(tensor => valueOf(tensor, 'relative') > 0))) made.set(group, some);
  }
  return made;
}

function drawHeat() {
  const lines = heatRows().get(changeState.group);
  const places = [...new Map(lines.flatMap(([, found]) => found.map(tensor => [deepLabel(tensor.depth), tensor.depth])))]
    .sort((a, b) => deepOrder(a[1], b[1])).map(([name]) => name);
  const prefix = common(lines.map(([name]) => name));
  const [low] = bounds();
  const z = [], names = [];
  for (const [, found] of lines) {
    const at = new Map(found.map(tensor => [deepLabel(tensor.depth), tensor]));
    z.push(places.map(place => {
      const tensor = at.get(place);
      if (!tensor || !tensor.change) return null;
      const value = valueOf(tensor, 'relative');
      return value > 0 ? Math.log10(Math.min(value, 1e30)) : tensor.change.kind === 'identical' ? low - 0.5 : null;
    }));
    names.push(places.map(place => {
      const tensor = at.get(place);
      return tensor ? `${plain(shortened(tensor.at, 80))}<br><b>${figure(valueOf(tensor, 'relative') || 0)}</b>` : '';
    }));
  }
  const scale = [[0, COLD], ...RAMP.map((step, at) => [0.12 + 0.88 * at / (RAMP.length - 1), step])];
  Plotly.react(byId('heat-chart'), [{type: 'heatmap', z, x: places, text: names, xgap: 1, ygap: 1, colorscale: scale,
    y: lines.map(([name]) => plain(shortened(name.slice(prefix.length), innerWidth < 700 ? 18 : 34))),
    customdata: lines.map(([, found]) => places.map(place =>
      found.find(tensor => deepLabel(tensor.depth) === place)?.name ?? '')),
    hovertemplate: '%{text}<extra></extra>', hoverongaps: false,
    colorbar: {thickness: 10, outlinewidth: 0, tickprefix: '10<sup>', ticksuffix: '</sup>', nticks: 5},
  }], layout({height: Math.max(200, 70 + 24 * lines.length), margin: {l: 8, r: 8, t: 4, b: 8},
    xaxis: {type: 'category', title: {text: 'layer'}, nticks: 24, showgrid: false},
    yaxis: {type: 'category', autorange: 'reversed', showgrid: false}}), CONFIG);
}

function heat() {
  const found = heatRows();
  if (!found.size) return null;
  changeState.group = [...found.keys()][0];
  return el('div', {class: 'column'}, el('h3', {}, 'Relative change by layer'),
    found.size > 1 && choice('of', [...found.keys()].map(name => [name, name]), value => {
      changeState.group = value;
      drawHeat();
    }), el('div', {id: 'heat-chart', class: 'chart'}));
}

function listed(title, heads, rows, more) {
  if (!rows.length) return null;
  return el('details', {open: rows.length <= 6}, el('summary', {}, `${title} `, el('b', {}, whole(rows.length + (more || 0)))),
    el('div', {class: 'over'}, el('table', {class: 'list'}, el('thead', {}, el('tr', {}, heads.map(name =>
      el('th', {scope: 'col'}, name)))), el('tbody', {}, rows.slice(0, 1000).map(cells =>
      el('tr', {}, cells.map(cell => el('td', {class: 'mono'}, cell ?? '–'))))))));
}

function change() {
  if (!CHANGE) return;
  const counts = new Map(ORDER.map(kind => [kind, TENSORS.filter(one => one.change && one.change.kind === kind).length]));
  const chips = el('div', {class: 'chips'}, ORDER.filter(kind => counts.get(kind)).map(kind =>
    el('button', {type: 'button', class: `chip k-${kind}`, onclick: () => showKind(kind)},
      el('b', {}, whole(counts.get(kind))), ` ${kind}`)),
    CHANGE.values.length ? el('a', {class: 'chip', href: '#changed-values'}, el('b', {}, whole(CHANGE.values.length
      + CHANGE.more_values)), ' values differ') : null);
  const of = kind => TENSORS.filter(tensor => tensor.change && tensor.change.kind === kind);
  const about = tensor => [tensor.at, tensor.dtype, shape(tensor.shape)];
  const ends = DATA.kind === 'run' ? ', from the first step to the last' : '';
  section('change', CHANGE.same ? 'Nothing changed' : 'What changed', `${CHANGE.summary}${ends}`, chips,
    el('div', {class: 'columns'}, most(), heat()),
    el('div', {class: 'lists'},
      listed('prefixes that moved', ['from → to', 'tensors'], CHANGE.moved.map(([rule, n]) => [rule, whole(n)])),
      listed('renamed', ['before', 'after', ''], of('renamed').map(tensor => [tensor.change.before, tensor.at,
        tensor.change.weak ? 'same bytes, proves little' : ''])),
      listed('added', ['name', 'dtype', 'shape'], of('added').map(about)),
      listed('removed', ['name', 'dtype', 'shape'], of('removed').map(about)),
      listed('retyped', ['name', 'before', 'after'], of('retyped').map(tensor => [tensor.at,
        ...(tensor.change.dtypes || [])])),
      listed('reshaped', ['name', 'before', 'after'], of('reshaped').map(tensor => [tensor.at,
        ...(tensor.change.shapes || []).map(shape)])),
      el('div', {id: 'changed-values'}, listed('values that differ', ['path', 'before', 'after'],
        CHANGE.values.map(([, path, one, other]) => [path, one, other]), CHANGE.more_values)),
      CHANGE.notes.map(note => el('p', {class: 'note'}, note))));
  if (byId('heat-chart')) {
    drawn(drawHeat);
    byId('heat-chart').on('plotly_click', event => {
      const tensor = BY_NAME.get(event.points?.[0]?.customdata);
      if (tensor) setTimeout(() => showDetail(tensor));
    });
  }
}
