/** What the gateway noticed (events), and what people changed (audit). */

import {html, nothing} from '../vendor/lit-html.js';
import {auditList, byDay} from '../admin/audit.js';
import {eventList, KINDS} from '../admin/events.js';
import {pager} from '../admin/parts.js';
import {get, href} from '../lib/http.js';
import {empty, skeleton} from '../ui/feedback.js';
import {choice, filter} from '../ui/form.js';
import {card, page} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';

await stylesheet('admin');

const PAGE_ROWS = 50;

const TABS = [
  {value: 'events', label: 'Events'},
  {value: 'audit', label: 'Audit'},
];

const SINCE = [
  {value: '', label: 'Any time'},
  {value: '24h', label: 'Last 24 hours'},
  {value: '7d', label: 'Last 7 days'},
  {value: '30d', label: 'Last 30 days'},
];

/** Kinds of objects in the audit. */
const OBJECTS = [
  {value: '', label: 'Everything'},
  {value: 'key', label: 'Keys'},
  {value: 'team', label: 'Teams'},
  {value: 'limits', label: 'Limits and raises'},
  {value: 'cache', label: 'Cache'},
  {value: 'backup,signing_key,sign_in_link', label: 'Backups and secrets'},
];

/** Of the audit, where only the page filters, it reads so many events at once. */
const FILTERED_ROWS = 500;

export const events = {
  refreshSeconds: 30,
  defaults: {tab: 'events', kind: '', object: '', since: '', after: ''},
  partOf: (query) => query.tab,
  load: (query, {signal}) => get(pathOf(query), paramsOf(query), {signal}),
  render,
};

const pathOf = ({tab}) => (tab === 'audit' ? '/admin/audit' : '/admin/events');

const paramsOf = ({tab, kind, object, since, after}) =>
  tab === 'audit' ? {since, after, limit: object ? FILTERED_ROWS : PAGE_ROWS} : {kind, after, limit: PAGE_ROWS};

function render(view) {
  const isAudit = view.query.tab === 'audit';
  return page({
    title: 'Events',
    lead: isAudit ? 'Who changed what, and when.' : 'What the gateway noticed: budgets, unusual spending, retiring models, and keys that ask for more.',
    json: href(pathOf(view.query), paramsOf(view.query)),
    rows: [isAudit ? 'audit' : 'events', ({data}) => (isAudit ? ofObject(data, view.query) : data)],
    filters: filters(view, isAudit),
    view,
    skeleton: skeleton('table', 10),
    content: (data) => (isAudit ? auditContents(view, data) : eventContents(view, data)),
  });
}

const filters = ({query, setQuery}, isAudit) => html`
  ${choice({label: 'Show', name: 'tab', value: query.tab, options: TABS, onChange: (tab) => setQuery({tab, after: '', kind: '', object: '', since: ''})})}
  ${isAudit
    ? html`
        ${filter({label: 'Of', name: 'object', value: query.object, options: OBJECTS, onChange: (object) => setQuery({object, after: ''})})}
        ${filter({label: 'Since', name: 'since', value: query.since, options: SINCE, onChange: (since) => setQuery({since, after: ''})})}
      `
    : filter({label: 'Kind', name: 'kind', value: query.kind, options: kindOptions(), onChange: (kind) => setQuery({kind, after: ''})})}
`;

const kindOptions = () => [{value: '', label: 'All'}, ...Object.entries(KINDS).map(([value, {label}]) => ({value, label}))];

const eventContents = (view, {data, after}) =>
  data.length
    ? html`<div class="stack">${byDay(data, (events) => eventList(view, events))}</div> ${pager({view, shown: data.length, next: after})}`
    : card({body: nothingHappened(view)});

function ofObject(changes, {object}) {
  const kinds = object.split(',');
  return object ? changes.filter(({action}) => kinds.includes(action.split('.')[0])) : changes;
}

function auditContents(view, {data, has_more: hasMore}) {
  const shown = ofObject(data, view.query);
  const list = shown.length ? html`<div class="stack">${byDay(shown, auditList)}</div>` : card({body: nothingChanged(view)});
  return html`${list} ${pager({view, shown: shown.length, next: hasMore ? data.at(-1).id : null})}`;
}

const clear = ({setQuery}) => html`<button class="button" @click=${() => setQuery({kind: '', object: '', since: '', after: ''})}>Show all</button>`;

const nothingHappened = (view) =>
  view.query.kind
    ? empty({icon: 'events', title: 'No event matches', text: 'Choose another kind.', action: clear(view)})
    : empty({icon: 'events', title: 'Nothing has happened yet', text: 'Budgets that are used up or will not last, unusual spending, and keys that ask for more appear here. Set limits on keys to be told in time.'});

const nothingChanged = (view) =>
  empty({
    icon: 'edit',
    title: view.query.object || view.query.since ? 'No change matches' : 'Nothing was changed yet',
    text: 'Each change of a key, a team or a limit is kept here, with who made it; purges, restores and new signing keys too.',
    action: view.query.object || view.query.since ? clear(view) : nothing,
  });
