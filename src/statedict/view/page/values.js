// What is no tensor: hyperparameters as tables, all values as a tree.
const said = value => value === undefined ? '' : value === null ? 'None' : value === true ? 'True'
  : value === false ? 'False' : Array.isArray(value) ? `(${value.map(said).join(', ')})`
  : typeof value === 'number' ? String(Number(value.toPrecision(8))) : String(value);

// One row a group; what is off in all of them is a line below.
function hyperparameters(optimizer) {
  const keys = [...new Set(optimizer.groups.flatMap(group => Object.keys(group)))];
  const off = keys.filter(key => optimizer.groups.every(group => [null, false, undefined].includes(group[key])));
  const shown = keys.filter(key => !off.includes(key));
  return el('div', {}, el('h3', {}, el('span', {class: 'mono'}, optimizer.path || 'optimizer'),
    optimizer.model !== null && el('span', {class: 'note'}, ` of ${optimizer.model || 'the model'}`
      + `${optimizer.inferred ? ', names inferred from order and shapes' : ''}`)),
    el('div', {class: 'over'}, el('table', {class: 'list hyper'},
      el('thead', {}, el('tr', {}, el('th', {scope: 'col'}, 'group'), shown.map(key => el('th', {scope: 'col'}, key)))),
      el('tbody', {}, optimizer.groups.map((group, at) => el('tr', {}, el('th', {scope: 'row'}, at),
        shown.map(key => el('td', {class: 'mono'}, shortened(said(group[key]), 80)))))))),
    off.length ? el('p', {class: 'note'}, `off: ${off.join(', ')}`) : null);
}

function branch([key, text, note, below], level) {
  const label = [el('span', {class: 'mono'}, key || '(unnamed)'), text !== null && [' ', el('code', {}, text)],
    note && el('span', {class: 'note'}, ` ${note}`)];
  if (!below.length) return el('li', {}, label);
  const made = el('details', {open: level < 1 && below.length <= 12}, el('summary', {}, label,
    el('span', {class: 'note'}, ` ${whole(below.length)}`)));
  const grow = () => { if (made.open && !made.querySelector('ul')) made.append(el('ul', {}, below.map(one =>
    branch(one, level + 1)))); };
  made.addEventListener('toggle', grow);
  grow();
  return el('li', {}, made);
}

function values() {
  const optimizers = DATA.files[DATA.files.length - 1].optimizers.filter(one => one.groups.length);
  if (!optimizers.length && !DATA.values.length) return;
  section('values', 'Values', 'What is in the file beside tensors.', optimizers.map(hyperparameters),
    DATA.values.length ? [optimizers.length ? el('h3', {}, 'All values') : null,
      el('ul', {class: 'tree'}, DATA.values.map(one => branch(one, 0)))] : null);
}
