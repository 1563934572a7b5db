/** Requests: the recent ones that failed or were refused, and all that the books have of one (`?id=`). */

import {html, nothing} from '../vendor/lit-html.js';
import {pager} from '../admin/parts.js';
import {loadRequest, requestPage} from '../admin/request_page.js';
import {ago, clock, count, dayShort, fullTime, latency, usd} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {getPage} from '../lib/pages.js';
import {OUTCOMES, flagText, outcomeOf} from '../lib/requests.js';
import {link} from '../lib/router.js';
import {badge, empty, skeleton} from '../ui/feedback.js';
import {filter} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {page} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {table} from '../ui/table.js';

await stylesheet('admin');

const PAGE_ROWS = 50;
const TROUBLE = 'refused,failed';

const OUTCOME_OPTIONS = [
  {value: TROUBLE, label: 'Refused and failed'},
  {value: '', label: 'All'},
  ...Object.entries(OUTCOMES).map(([value, {label}]) => ({value, label})),
];

const SINCE_OPTIONS = [
  {value: '', label: 'Any time'},
  {value: '1h', label: 'Last hour'},
  {value: '24h', label: 'Last 24 hours'},
  {value: '7d', label: 'Last 7 days'},
];

export const requests = {
  refreshSeconds: 15,
  defaults: {outcome: TROUBLE, key: '', model: '', flag: '', since: '', after: '', id: '', from: ''},
  partOf: (query) => query.id,
  load: (query, {signal}) => (query.id ? loadRequest(query, signal) : loadList(query, signal)),
  render: (view) => (view.query.id ? requestPage(view) : list(view)),
};

const paramsOf = ({outcome, key, model, flag, since, after}) => ({outcome, key, model, flag, since, after, limit: PAGE_ROWS});

async function loadList(query, signal) {
  const [found, models] = await Promise.all([getPage('/admin/requests', paramsOf(query), {signal}), get('/models', {}, {signal})]);
  return {...found, models: models.data.map(({id}) => id)};
}

const list = (view) =>
  page({
    title: 'Requests',
    lead: 'Why a request was refused, why it failed, and what each one cost.',
    json: href('/admin/requests', paramsOf(view.query)),
    rows: ['requests', ({data}) => data],
    filters: filters(view),
    view,
    skeleton: skeleton('table', 12),
    content: (data) => rows(view, data),
  });

const filters = (view) => html`
  ${lookUp(view)} ${outcomeFilter(view)} ${modelFilter(view)} ${sinceFilter(view)} ${chip(view, 'key')} ${chip(view, 'flag')}
`;

/** Enter opens the request. Ids of upstream contain no time, so its page asks from when on. */
const lookUp = ({app}) => html`
  <form class="search" role="search" @submit=${(event) => openId(event, app)}>
    ${icon('search')}
    <input name="id" type="search" aria-label="Look up a request by its id" placeholder="Look up an id: req_…" autocomplete="off" spellcheck="false" required />
  </form>
`;

function openId(event, app) {
  event.preventDefault();
  const id = event.currentTarget.elements.id.value.trim();
  if (id) app.navigate('requests', {id});
}

const chosen = (setQuery, name) => (value) => setQuery({[name]: value, after: ''});

const outcomeFilter = ({query, setQuery}) =>
  filter({label: 'Outcome', name: 'outcome', value: query.outcome, options: OUTCOME_OPTIONS, onChange: chosen(setQuery, 'outcome')});

function modelFilter({query, data, setQuery}) {
  const models = [...new Set([...(data?.models ?? []), query.model])].filter(Boolean);
  const options = [{value: '', label: 'All'}, ...models];
  return filter({label: 'Model', name: 'model', value: query.model, options, onChange: chosen(setQuery, 'model')});
}

const sinceFilter = ({query, setQuery}) =>
  filter({label: 'Since', name: 'since', value: query.since, options: SINCE_OPTIONS, onChange: chosen(setQuery, 'since')});

/** A filter that a link or a click in the table has set; a click takes it away. */
const chip = ({query, setQuery}, name) =>
  query[name]
    ? html`<button class="filter-chip" title="Remove this filter" @click=${() => setQuery({[name]: '', after: ''})}>
        ${name} <strong>${query[name]}</strong> ${icon('close')}
      </button>`
    : nothing;

const rows = (view, {data, after}) => html`
  ${table({caption: 'Requests, newest first', columns: COLUMNS(view), rows: data, cards: true, empty: nothingFound(view)})}
  ${pager({view, shown: data.length, next: after})}
`;

const COLUMNS = ({setQuery}) => [
  {name: 'time', label: 'Time', cell: timeCell},
  {name: 'outcome', label: 'Outcome', cell: outcomeCell},
  {name: 'reason', label: 'Reason', cell: reasonCell},
  {name: 'key', label: 'Key', cell: ({key}) => html`<button class="link nowrap" title="Only requests of ${key}" @click=${() => setQuery({key, after: ''})}>${key}</button>`},
  {name: 'model', label: 'Asked for', cell: (record) => askedCell(record)},
  {name: 'cost', label: 'Cost', number: true, cell: costCell},
  {name: 'latency_ms', label: 'Took', number: true, hide: true, cell: ({latency_ms: ms}) => latency(ms)},
];

const askedCell = ({n, model, size, quality}) => html`
  <span class="asked">${n > 1 ? `${n} × ` : ''}${model ?? '–'}<span class="note">${[size, quality].filter(Boolean).join(', ')}</span></span>
`;

const timeCell = ({id, time}) => html`
  <a class="when" href=${link('requests', {id})} title=${fullTime(time)}>
    ${dayShort(time)}, ${clock(time)}<span class="note">${ago(time)}</span>
  </a>
`;

function outcomeCell({outcome, count: times}) {
  const {label, level} = outcomeOf(outcome);
  return html`<span class="row badges outcome">${badge(label, level)}${times > 1 ? html`<span class="note" title="Refusals of one reason share a record in each minute">× ${count(times)}</span>` : nothing}</span>`;
}

const reasonCell = ({reason, message, flags = []}) => html`
  <div class="reason">
    ${reason ? html`<code>${reason}</code>` : nothing}
    ${message ? html`<span class="note">${message}</span>` : nothing}
    ${flags.map((flag) => html`<span class="note">${flagText(flag)}</span>`)}
  </div>
`;

function costCell({cost_usd: cost, saved_usd: saved}) {
  if (!cost && saved) return html`<span class="ok-text">${usd(saved)} saved</span>`;
  return cost ? usd(cost) : html`<span class="note">–</span>`;
}

function nothingFound({query, setQuery, data}) {
  if (data.after) {
    const further = html`<button class="button" @click=${() => setQuery({after: data.after})}>Look further</button>`;
    return empty({title: 'Nothing so far', text: 'None of the requests that were looked at is like that. There are earlier ones.', action: further});
  }
  const isFiltered = query.key || query.model || query.flag || query.since || query.after;
  const all = html`<button class="button" @click=${() => setQuery({outcome: '', key: '', model: '', flag: '', since: '', after: ''})}>Show all requests</button>`;
  if (query.outcome === TROUBLE && !isFiltered) {
    return empty({icon: 'check', title: 'Nothing was refused, and nothing failed', text: 'Refusals and failures appear here with their reasons, a few seconds after they happen.', action: all});
  }
  return empty({icon: 'requests', title: 'No request matches', text: 'Choose another outcome, model or time.', action: all});
}
