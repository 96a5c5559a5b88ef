// The theme, the keys, and the sections in order.
function remembered(value) {
  try {
    if (value === undefined) return localStorage.getItem('statedict-theme');
    localStorage.setItem('statedict-theme', value);
  } catch { /* a page from a disk may have no storage */ }
  return null;
}
function themed(name) {
  if (name === 'light' || name === 'dark') root.dataset.theme = name;
  byId('theme').textContent = isDark() ? 'Light' : 'Dark';
  byId('theme').setAttribute('aria-label', `Change to ${isDark() ? 'light' : 'dark'} colours`);
  charts.forEach(draw => draw());
}
themed(remembered());
byId('theme').addEventListener('click', () => {
  const next = isDark() ? 'light' : 'dark';
  remembered(next);
  themed(next);
});
dark.addEventListener('change', () => themed());

heading();
change();
run();
metrics();
treemap();
table();
depth();
values();
showLevel('');

document.addEventListener('keydown', event => {
  if (event.key === '/' && !event.target.closest('input, select, textarea') && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
    search.select();
    byId('tensors').scrollIntoView();
  } else if (event.key === 'Escape' && shown) hideDetail();
});
root.dataset.ready = 'yes';
