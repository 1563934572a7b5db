/** Keys: a list with their limits, and a page for each key (`?key=ID`). */

import {html, nothing} from '../vendor/lit-html.js';
import {editKey, makeKey, openRaise, revokeKey, rotateKey} from '../admin/dialogs.js';
import {isLimit, limitsCell, raiseBanner} from '../admin/limits.js';
import {menu, pager, searchBox, stateBadge} from '../admin/parts.js';
import {ago, fullTime} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {readOnlyReason} from '../lib/keys.js';
import {link} from '../lib/router.js';
import {empty, skeleton} from '../ui/feedback.js';
import {choice} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {page} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {table} from '../ui/table.js';

await stylesheet('admin');

const PAGE_ROWS = 50;

const STATES = [
  {value: 'active', label: 'Active'},
  {value: 'expired', label: 'Expired'},
  {value: 'revoked', label: 'Revoked'},
  {value: 'all', label: 'All'},
];

export const keys = {
  refreshSeconds: 30,
  defaults: {state: 'active', search: '', after: '', key: '', limit: ''},
  partOf: (query) => query.key,
  load: (query, {signal}) => (query.key ? loadOne(query.key, signal) : loadList(query, signal)),
  render: (view) => (view.query.key ? one(view) : list(view)),
};

/** The page of one key, with its chart: loaded when a key is first opened. */
let keyPages;

async function loadOne(id, signal) {
  keyPages ??= await import('../admin/key_page.js');
  return keyPages.loadKey(id, signal);
}

const one = (view) => keyPages?.keyPage(view) ?? page({title: 'Key', view, skeleton: skeleton('tiles', 4)});

const paramsOf = ({state, search, after}) => ({state, search, after, limit: PAGE_ROWS, with: 'limits'});

const loadList = (query, signal) => get('/admin/keys', paramsOf(query), {signal});

const list = (view) =>
  page({
    title: 'Keys',
    lead: 'Each person or service has one. Its limits apply from the next request on.',
    json: href('/admin/keys', paramsOf(view.query)),
    rows: ['keys', ({data}) => data],
    actions: html`<button class="button primary" @click=${() => makeKey(view)}>${icon('plus')} Make a key</button>`,
    filters: filters(view),
    view,
    skeleton: skeleton('table', 10),
    content: (data) => rows(view, data),
  });

const filters = ({query, setQuery}) => html`
  ${searchBox({label: 'Search keys', placeholder: 'Name, team or label', value: query.search, setQuery})}
  ${choice({label: 'State', name: 'state', value: query.state, options: STATES, onChange: (state) => setQuery({state, after: ''})})}
`;

const rows = (view, {data, has_more: hasMore}) => html`
  ${view.query.limit ? raiseBanner(view, `key:${view.query.search}`, view.query.limit) : nothing}
  ${table({caption: 'Keys', columns: columns(view), rows: data, rowClass: rowClass, cards: true, empty: nothingFound(view)})}
  ${pager({view, shown: data.length, next: hasMore ? data.at(-1)?.id : null})}
`;

const rowClass = (key) => `key-row ${key.revoked_at ? 'dim' : ''}`;

const columns = (view) => [
  {name: 'name', label: 'Key', cell: nameCell},
  {name: 'state', label: 'State', cell: stateBadge},
  {name: 'limits', label: 'Limits', cell: (key) => (key.revoked_at ? '–' : limitsCell(key))},
  {name: 'last_used_at', label: 'Last used', cell: usedCell},
  {name: 'actions', label: 'Actions', cell: (key) => actions(view, key)},
];

const nameCell = (key) => html`
  <div class="key-name">
    <a class="name" href=${link('keys', {key: key.id})}>${key.name}</a>
    <span class="note">
      ${key.team ? html`<a href=${link('teams', {team: key.team})}>${key.team}</a> · ` : nothing}<span class="mono">${key.prefix}…</span>
    </span>
  </div>
`;

const usedCell = ({last_used_at: at}) =>
  at ? html`<time title=${fullTime(at)}>${ago(at)}</time>` : html`<span class="note">never</span>`;

/** What can be done with a key, in the list. */
const actions = (view, key) =>
  menu(`Actions for ${key.name}`, [
    {label: 'Its requests', icon: 'requests', href: link('requests', {key: key.name, outcome: ''})},
    {label: 'Its images', icon: 'images', href: link('images', {key: key.name})},
    {label: 'Playground', icon: 'playground', hidden: Boolean(key.revoked_at), href: link('playground', {key: key.id})},
    {label: 'Raise a limit', icon: 'bolt', hidden: Boolean(key.revoked_at) || !key.used?.some(isLimit), run: () => openRaise(view, `key:${key.name}`)},
    ...(readOnlyReason(key) ? [] : changes(view, key)),
  ]);

const changes = (view, key) => [
  {label: 'Edit', icon: 'edit', run: () => editKey(view, key)},
  {label: 'Rotate the secret', icon: 'refresh', run: () => rotateKey(view, key)},
  {label: 'Revoke', icon: 'trash', danger: true, run: () => revokeKey(view, key)},
];

function nothingFound(view) {
  const {query, setQuery} = view;
  if (query.search || query.state !== 'active') {
    const clear = () => setQuery({search: '', state: 'active', after: '', limit: ''});
    return empty({
      title: 'No key matches',
      text: 'Search for another name, team or label, or among all states.',
      action: html`<button class="button" @click=${clear}>Show all active keys</button>`,
    });
  }
  return empty({
    icon: 'key',
    title: 'Make the first key',
    text: 'Give each person or service a key of its own: you see what each one spends, and limit it.',
    action: html`<button class="button primary" @click=${() => makeKey(view)}>Make a key</button>`,
  });
}
