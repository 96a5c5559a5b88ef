// What the file is, in numbers, and what in it deserves a look.
const ROLES = {parameter: 'parameters', buffer: 'buffers', optimizer: 'optimizer state',
  quantization: 'quantization', generator: 'generator state', tensor: 'other tensors'};

const KINDS = ['missing', 'shape', 'range', 'nan', 'inf', 'negative', 'exploded', 'edge', 'denormal', 'dead rows', 'zeros', 'constant'];

function card(label, value, note) {
  return el('div', {class: 'card'}, el('dt', {}, label), el('dd', {}, value), note && el('dd', {class: 'note'}, note));
}

function head(file, label) {
  const [tensors, elements, size] = file.total;
  const kinds = Object.entries(file.dtypes);
  const cards = el('dl', {class: 'cards'},
    card('file', bytes(file.size), file.format),
    card('tensors', whole(tensors), `${whole(elements)} elements`),
    Object.entries(file.roles).filter(([, one]) => one[2]).map(([role, one]) =>
      card(ROLES[role], bytes(one[2]), `${whole(one[1])} elements`)),
    card(kinds.length === 1 ? 'dtype' : 'dtypes', kinds.length === 1 ? kinds[0][0] : whole(kinds.length),
      kinds.length > 1 && kinds.slice(0, 4).map(([name, one]) =>
        `${name} ${size ? Math.round(100 * one[2] / size) : 0}%`).join(', ')),
    file.wasted ? card('wasted', bytes(file.wasted), 'in storages that are larger than their views') : null,
    Object.keys(file.opaque).length ? card('opaque objects',
      whole(Object.values(file.opaque).reduce((a, b) => a + b, 0)), Object.keys(file.opaque).slice(0, 3).join(', '))
      : null);
  return el('div', {class: 'file'}, el('p', {class: 'path'}, label && el('b', {}, label), file.name), cards);
}

function flagged(file) {
  const others = file.flags.filter(([name]) => !BY_NAME.has(name));
  const rank = kind => (KINDS.indexOf(kind) + KINDS.length + 1) % (KINDS.length + 1);
  const known = file.flags.filter(([name]) => BY_NAME.has(name)).sort((a, b) => rank(a[1]) - rank(b[1]));
  if (!known.length && !others.length) return el('p', {class: 'fine'}, 'Nothing is flagged.');
  const most = 8;
  const rows = known.map(([name, kind, what], at) => el('li', {hidden: at >= most},
    el('span', {class: `tag ${kind.replace(' ', '-')}`}, kind),
    el('button', {type: 'button', class: 'link mono', onclick: () => showTensor(BY_NAME.get(name))},
      BY_NAME.get(name).at), el('span', {class: 'what'}, what)));
  const more = known.length > most && el('button', {type: 'button', class: 'plain', onclick: event => {
    rows.forEach(row => { row.hidden = false; });
    event.currentTarget.remove();
  }}, `all ${whole(known.length)}`);
  const lines = others.map(([name, kind, what]) => el('li', {}, el('span', {class: 'tag'}, kind),
    el('span', {class: 'mono'}, name), el('span', {class: 'what'}, what)));
  return el('div', {}, el('ul', {class: 'flags'}, lines, rows), more);
}

function heading() {
  const files = DATA.files;
  const last = files[files.length - 1];
  const labels = files.length === 1 ? [''] : DATA.kind === 'run' ? ['first', 'last'] : ['A', 'B'];
  section('summary', 'Summary', null, files.map((file, at) => head(file, labels[at])),
    el('h3', {}, files.length > 1 ? `What deserves a look in ${labels[1]}` : 'What deserves a look'), flagged(last));
}
