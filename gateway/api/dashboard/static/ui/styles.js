/**
 * Stylesheets of some views only. Their modules wait for it before they render:
 *
 *   await stylesheet('studio');
 */

const loading = new Map();

export function stylesheet(name) {
  if (!loading.has(name)) loading.set(name, load(name));
  return loading.get(name);
}

function load(name) {
  const link = document.createElement('link');
  link.rel = 'stylesheet';
  link.href = `/dashboard/assets/${name}.css`;
  // Without its styles a view still works.
  const loaded = new Promise((resolve) => ['load', 'error'].forEach((event) => link.addEventListener(event, resolve)));
  document.head.append(link);
  return loaded;
}
