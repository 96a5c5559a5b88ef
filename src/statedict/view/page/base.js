// Elements, numbers and colours.
const NS = 'http://www.w3.org/2000/svg';

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return node;
}
const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const svg = (tag, props, ...children) => fill(document.createElementNS(NS, tag), props, children);
const byId = id => document.getElementById(id);

const whole = value => typeof value === 'number' ? Math.round(value).toLocaleString('en-US') : '–';
const count = (n, noun) => `${whole(n)} ${noun}${n === 1 ? '' : 's'}`;

function bytes(n) {
  let size = n;
  for (const unit of ['B', 'kB', 'MB', 'GB', 'TB']) {
    if (size < 999.95 || unit === 'TB') return unit === 'B' ? `${n} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1000;
  }
}

function figure(value) {
  if (value === null || value === undefined) return '–';
  if (typeof value !== 'number') return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(3) : value.toPrecision(4);
  return text.replace('-', '−').replace('e−', 'e-').replace('e+', 'e');
}
const percent = share => share === undefined || share === null ? '–'
  : share >= 0.001 ? `${(100 * share).toFixed(1)}%` : share > 0 ? '< 0.1%' : '0%';
const shape = sizes => sizes.length ? sizes.join('×') : 'scalar';
const amount = value => typeof value === 'number' ? value : value === 'inf' ? Infinity : value === '-inf' ? -Infinity
  : null;

// plotly reads a few tags in texts; names have none
const plain = text => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
function shortened(text, most) {
  if (text.length <= most) return text;
  const end = Math.floor(most * 2 / 3);
  return `${text.slice(0, most - end - 1)}…${text.slice(-end)}`;
}

const dark = matchMedia('(prefers-color-scheme: dark)');
const root = document.documentElement;
const isDark = () => root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches;
const colour = name => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const TILES = ['#3f62a8', '#2c7565', '#85549a', '#985728', '#477537', '#a04468', '#41698a', '#756525', '#5a5aae',
  '#2a747f'];
const LINES = {
  light: ['#2b5fc4', '#c2501c', '#1b7f5c', '#8a3fb0', '#b03060', '#6b6f00', '#0f7c93', '#8c4a2f', '#4b4bd1', '#5c6670'],
  dark: ['#7fa8ff', '#ff9d6b', '#56cfa1', '#cf9bf0', '#ff8fb3', '#cdcf5a', '#62cfe4', '#dba58c', '#a9a7ff', '#b4bdc7'],
};
const line = at => LINES[isDark() ? 'dark' : 'light'][at % 10];

const charts = [];
const CONFIG = {responsive: true, displaylogo: false, displayModeBar: false, showTips: false};
function layout(extra) {
  const axis = {gridcolor: colour('line'), zerolinecolor: colour('line'), linecolor: colour('line'), automargin: true};
  const made = Object.assign({
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', showlegend: false, hovermode: 'closest',
    font: {family: 'system-ui, sans-serif', size: 12, color: colour('soft')},
    hoverlabel: {align: 'left', bgcolor: colour('panel'), bordercolor: colour('edge'), font: {color: colour('text')}},
    margin: {l: 8, r: 8, t: 8, b: 8},
  }, extra);
  for (const name of ['xaxis', 'yaxis']) made[name] = Object.assign({}, axis, extra[name]);
  return made;
}
function drawn(draw) {
  charts.push(draw);
  draw();
}

function section(id, title, note, ...children) {
  byId('nav').append(el('a', {href: `#${id}`}, title));
  const made = el('section', {id, 'aria-labelledby': `${id}-title`},
    el('div', {class: 'section-head'}, el('h2', {id: `${id}-title`}, title), note && el('p', {class: 'note'}, note)),
    ...children);
  byId('main').append(made);
  return made;
}
function choice(label, options, changed) {
  const select = el('select', {onchange: () => changed(select.value)},
    options.map(([value, text]) => el('option', {value}, text)));
  return el('label', {class: 'choice'}, el('span', {}, label), select);
}
