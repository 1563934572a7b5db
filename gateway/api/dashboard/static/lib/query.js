/**
 * Filters live in the URL's query, so that a view can be linked, reloaded and gone back to.
 * A query is an object of strings. Values equal to a view's defaults are not written.
 */

/** @returns {Record<string, string>} the defaults, and what the URL says instead */
export function readQuery(search, defaults = {}) {
  return {...defaults, ...Object.fromEntries(new URLSearchParams(search))};
}

/** "" or "?range=7d&team=art" */
export function writeQuery(query, defaults = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    const text = value === null || value === undefined ? '' : String(value);
    if (text !== (defaults[name] ?? '')) search.set(name, text);
  }
  const text = search.toString();
  return text ? `?${text}` : '';
}

/** "a,b" → ["a", "b"] */
export const listOf = (text) => (text ?? '').split(',').filter(Boolean);
