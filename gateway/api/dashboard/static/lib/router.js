/** Views are at /dashboard/{view}?{query}; this is all that knows the address bar. */

import {writeQuery} from './query.js';

const ROOT = '/dashboard';
const NOT_VIEWS = [`${ROOT}/api/`, `${ROOT}/assets/`];

/** @returns {{name: string, search: string}} the view's name, "" for the first view */
export function place() {
  const [, name = ''] = location.pathname.slice(ROOT.length).split('/');
  return {name, search: location.search};
}

/** The address of a view, for links: link('spend', {range: '7d'}) */
export function link(view, query = {}) {
  return `${ROOT}/${view}${writeQuery(query)}`;
}

export function show(address, {replace = false} = {}) {
  if (address === location.pathname + location.search) return;
  if (replace) history.replaceState(null, '', address);
  else history.pushState(null, '', address);
}

/** The secret of a one-time link. It leaves the address bar and the history at once. */
export function takeLinkSecret() {
  const secret = new URLSearchParams(location.hash.slice(1)).get('link');
  if (secret) history.replaceState(null, '', location.pathname + location.search);
  return secret;
}

/** Calls `moved` when the address changes: back, forward, and clicks on links between views. */
export function watchPlace(moved) {
  addEventListener('popstate', () => moved());
  document.addEventListener('click', (event) => {
    const anchor = event.target.closest?.('a[href]');
    if (!anchor || !isViewLink(anchor) || opensElsewhere(event)) return;
    event.preventDefault();
    show(anchor.pathname + anchor.search);
    moved();
  });
}

function isViewLink({origin, pathname, target, hash, attributes}) {
  if (origin !== location.origin || target || hash || attributes.download) return false;
  if (pathname !== ROOT && !pathname.startsWith(`${ROOT}/`)) return false;
  return !NOT_VIEWS.some((prefix) => pathname.startsWith(prefix));
}

function opensElsewhere(event) {
  const {button, metaKey, ctrlKey, shiftKey, altKey, defaultPrevented} = event;
  return defaultPrevented || button !== 0 || metaKey || ctrlKey || shiftKey || altKey;
}
