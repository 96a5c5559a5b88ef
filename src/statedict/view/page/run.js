// The checkpoints of a run: norms, flags and bytes, step by step.
const RUN = DATA.run || null;
const runState = {level: 1, off: new Set()};

const runLevels = () => [...new Set(RUN.modules.map(name => name.split('.').length))].sort((a, b) => a - b).slice(0, 8);

function drawRun() {
  const x = RUN.steps.map(step => step.step);
  const names = RUN.modules.map((name, at) => [name, at]).filter(([name]) => name.split('.').length === runState.level);
  const shown = names.slice(0, 40);
  if (runState.level === 0) shown.push(['everything', -1]);
  const rows = shown.map(([name, at]) => [name, at < 0 ? RUN.steps.map(step => step.l2) : RUN.l2[at]]);
  const values = rows.flatMap(([, norms]) => norms).filter(value => value > 0);
  const wide = values.length && Math.max(...values) / Math.min(...values) > 50;
  const traces = rows.map(([name, norms], at) => ({type: 'scatter', mode: 'lines+markers', name: plain(name), x,
    y: norms.map(value => typeof value === 'number' && (value > 0 || !wide) ? value : null),
    visible: !runState.off.has(name),
    line: {color: line(at), width: 1.8, dash: ['solid', 'dash', 'dot'][Math.floor(at / 10) % 3]}, marker: {size: 5},
    hovertemplate: `${plain(shortened(name, 80))}<br>step %{x}: <b>%{y:.5g}</b><extra></extra>`}));
  const bad = RUN.steps.filter(step => step.nan || step.inf);
  const shapes = bad.slice(0, 1).map(step => ({type: 'line', x0: step.step, x1: step.step, y0: 0, y1: 1, yref: 'paper',
    line: {color: colour('bad'), width: 1.5, dash: 'dot'}}));
  const annotations = bad.slice(0, 1).map(step => ({x: step.step, y: 1, yref: 'paper', yanchor: 'bottom',
    text: `first ${step.nan ? 'NaN' : 'Inf'}`, showarrow: false, font: {color: colour('bad')}}));
  Plotly.react(byId('run-chart'), traces, layout({height: 340, margin: {l: 8, r: 12, t: 22, b: 8}, shapes, annotations,
    xaxis: {title: {text: RUN.numbered ? 'step' : 'checkpoint'}, exponentformat: 'none'},
    yaxis: {title: {text: 'L2 norm'}, type: wide ? 'log' : 'linear', exponentformat: 'power', dtick: wide ? 1 : null}}), CONFIG);
  legend(byId('run-legend'), rows.map(([name]) => [name, name]), runState.off, drawRun);
}

// A small chart for each metric that the run recorded.
const METRICS_SHOWN = 24;
const recorded = () => [...new Set(RUN.steps.flatMap(step => Object.keys(step.metrics)))].slice(0, METRICS_SHOWN);

function drawMetrics() {
  recorded().forEach((name, at) => {
    const found = RUN.steps.filter(step => typeof step.metrics[name] === 'number');
    Plotly.react(byId(`metric-${at}`), [{type: 'scatter', mode: 'lines+markers', x: found.map(step => step.step),
      y: found.map(step => step.metrics[name]), line: {color: line(0), width: 1.8}, marker: {size: 5},
      hovertemplate: `${plain(shortened(name, 60))}<br>step %{x}: <b>%{y:.5g}</b><extra></extra>`}],
    layout({height: 170, margin: {l: 8, r: 12, t: 8, b: 8}, xaxis: {exponentformat: 'none', nticks: 5},
      yaxis: {nticks: 5, exponentformat: 'power'}}), CONFIG);
  });
}

function metrics() {
  if (!RUN || !recorded().length) return;
  const all = new Set(RUN.steps.flatMap(step => Object.keys(step.metrics))).size;
  section('metrics', 'Metrics', all > METRICS_SHOWN ? `${METRICS_SHOWN} of ${whole(all)}.` : null,
    el('div', {class: 'metrics'}, recorded().map((name, at) => el('figure', {},
      el('figcaption', {class: 'mono', title: name}, shortened(name, 40)),
      el('div', {id: `metric-${at}`, class: 'chart', role: 'img', 'aria-label': `${name} over the run`})))));
  drawn(drawMetrics);
}

function run() {
  if (!RUN) return;
  const bad = RUN.steps.find(step => step.nan || step.inf);
  const largest = Math.max(...RUN.steps.map(step => step.size));
  const rows = RUN.steps.map(step => el('tr', {class: step.nan || step.inf ? 'bad' : ''},
    el('td', {class: 'number'}, whole(step.step)), el('td', {class: 'mono'}, shortened(step.name, 60)),
    el('td', {class: 'number'}, bytes(step.size), el('i', {class: 'size', style: `width:${60 * step.size / largest}px`})),
    el('td', {class: 'number'}, whole(step.tensors)), el('td', {class: 'number'}, figure(step.l2)),
    el('td', {class: 'number'}, whole(step.nan)), el('td', {class: 'number'}, whole(step.inf)),
    el('td', {}, Object.entries(step.flags).map(([kind, n]) => el('span', {class: `tag ${kind.replace(' ', '-')}`},
      `${kind} ${whole(n)}`)))));
  const heads = [RUN.numbered ? 'step' : 'checkpoint', 'file', 'size', 'tensors', 'L2', 'NaN', 'Inf', 'flags'];
  const levels = [[0, 'everything'], ...runLevels().map(n => [n, n === 1 ? 'modules at the top' : `${n} levels down`])];
  runState.level = levels.length > 1 ? 1 : 0;
  const picked = choice('modules', levels, value => { runState.level = Number(value); runState.off.clear(); drawRun(); });
  picked.querySelector('select').value = runState.level;
  section('run', 'Over the run', bad ? `The first ${bad.nan ? 'NaN' : 'infinite number'} is at ${RUN.numbered ? 'step'
    : 'checkpoint'} ${whole(bad.step)}, in ${bad.bad.join(', ')}.` : 'No step has a NaN or an infinite number.',
    el('div', {class: 'bar'}, picked), el('div', {id: 'run-chart', class: 'chart'}),
    el('div', {id: 'run-legend', class: 'legend', role: 'group', 'aria-label': 'Lines'}),
    el('div', {class: 'over'}, el('table', {class: 'list', id: 'steps'}, el('thead', {}, el('tr', {}, heads.map((name, at) =>
      el('th', {scope: 'col', class: at === 0 || (at > 1 && at < 7) ? 'number' : ''}, name)))), el('tbody', {}, rows))));
  drawn(drawRun);
}
