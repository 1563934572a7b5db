/**
 * The table of views: what the navigation shows, in this order and in these groups.
 *
 * The module of a view is loaded when someone first opens it, so that the page stays small.
 */

const GROUPS = [
  [
    {name: 'overview', label: 'Overview', icon: 'overview', kind: 'admin'},
    {name: 'spend', label: 'Spend', icon: 'spend', kind: 'admin'},
    {name: 'share', label: 'Your share', icon: 'share', kind: 'key'},
  ],
  [
    {name: 'keys', label: 'Keys', icon: 'key', kind: 'admin'},
    {name: 'teams', label: 'Teams', icon: 'teams', kind: 'admin'},
    {name: 'images', label: 'Images', icon: 'images', kind: 'any'},
  ],
  [{name: 'playground', label: 'Playground', icon: 'playground', kind: 'any'}],
  [
    {name: 'requests', label: 'Requests', icon: 'requests', kind: 'admin'},
    {name: 'events', label: 'Events', icon: 'events', kind: 'admin'},
    {name: 'settings', label: 'Settings', icon: 'settings', kind: 'admin'},
  ],
];

const opened = new Map();

const isFor = (row, session) => row.kind === 'any' || row.kind === session.kind;

/** The groups of the navigation for this session. */
export const groupsFor = (session) =>
  GROUPS.map((group) => group.filter((row) => isFor(row, session))).filter((group) => group.length);

/** The row of this name, or the first one that the session may see. */
export function rowNamed(name, session) {
  const rows = groupsFor(session).flat();
  return rows.find((row) => row.name === name) ?? rows[0];
}

/** The view of a row, if it was opened before. */
export const openedView = (row) => opened.get(row.name);

/** Loads the view of a row: its module exports it by its name. */
export async function openView(row) {
  const module = await import(`./${row.name}.js`);
  opened.set(row.name, {...row, ...module[row.name]});
  return opened.get(row.name);
}
