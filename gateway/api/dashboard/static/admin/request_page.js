/** All that the books have of one request: what happened and when, what it cost, its records. */

import {html, nothing} from '../vendor/lit-html.js';
import {clock, count, fullTime, time, usd} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {costRows, flagText, kindLabel, outcomeOf, timeLine} from '../lib/requests.js';
import {link} from '../lib/router.js';
import {badge, empty, skeleton} from '../ui/feedback.js';
import {selectField} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {card, page} from '../ui/page.js';
import {table} from '../ui/table.js';

const SINCE = [
  {value: '24h', label: 'The last 24 hours'},
  {value: '7d', label: 'The last 7 days'},
  {value: '30d', label: 'The last 30 days'},
];

const STEP_ICONS = {ok: 'check', warning: 'clock', fault: 'alert', none: 'arrow'};

const paramsOf = ({from}) => ({since: from});

/** An unknown id is an answer too: the page then says what to do. */
export async function loadRequest(query, signal) {
  try {
    const found = await get(`/admin/requests/${encodeURIComponent(query.id)}`, paramsOf(query), {signal});
    return {open_purchases: [], followed: [], ...found};
  } catch (error) {
    if (error.status === 404 || error.param === 'since') return {missing: error};
    throw error;
  }
}

export const requestPage = (view) =>
  page({
    title: 'Request',
    lead: html`<a class="back" href=${link('requests')}>${icon('back')} All requests</a> <span class="mono break">${view.query.id}</span>`,
    json: href(`/admin/requests/${encodeURIComponent(view.query.id)}`, paramsOf(view.query)),
    view,
    skeleton: html`<div class="stack">${skeleton('tiles', 4)}${skeleton('table', 5)}</div>`,
    content: (data) => (data.missing ? missing(view, data.missing) : contents(data)),
  });

function missing({query, setQuery}, error) {
  const search = selectField({
    label: 'Search all records of',
    name: 'from',
    value: query.from,
    options: [{value: '', label: 'the time in the id'}, ...SINCE],
    onChange: (from) => setQuery({from}),
  });
  return html`<div class="card">${empty({title: 'No request was found', text: error.message, action: search})}</div>`;
}

function contents(found) {
  const first = found.records[0];
  return html`
    <div class="stack">
      <div class="tiles">${tiles(found, first)}</div>
      <div class="grid">
        <div class="half">${card({title: 'What happened', body: html`<ol class="timeline">${timeLine(found).map(step)}</ol>`})}</div>
        <div class="half">${costCard(found)}</div>
      </div>
      ${found.records.map((record) => recordCard(record))} ${found.followed.map((record) => recordCard(record, 'The purchase that it followed'))}
    </div>
  `;
}

const tile = (label, value, note = nothing) => html`
  <div class="tile"><span class="tile-label">${label}</span><strong class="tile-value">${value}</strong><span class="tile-note">${note}</span></div>
`;

function tiles({cost_usd: cost, saved_usd: saved, open_purchases: open}, first) {
  const key = first?.key ?? open[0]?.key;
  const {label, text} = outcomeOf(first?.outcome ?? 'under way');
  return html`
    ${tile('Outcome', open.length ? 'Under way' : label, text)}
    ${tile('Cost', usd(cost), saved ? `${usd(saved)} saved` : nothing)}
    ${tile('Key', html`<a href=${link('keys', first?.key_id ? {key: first.key_id} : {search: key, state: 'all'})}>${key}</a>`, first?.team ? `team ${first.team}` : nothing)}
    ${tile('Time', first ? clock(first.time) : '–', first ? fullTime(first.time) : nothing)}
  `;
}

const step = ({time: at, title, text, level}) => html`
  <li class="timeline-item">
    <span class="timeline-icon ${level}">${icon(STEP_ICONS[level])}</span>
    <div class="timeline-text"><strong>${title}</strong> <span class="muted">${text}</span></div>
    <time class="note" title=${fullTime(at)}>${time(at)}</time>
  </li>
`;

function costCard({records, cost_usd: cost}) {
  const rows = costRows(records);
  const body = table({
    caption: 'Cost by kind',
    rows,
    columns: [
      {name: 'kind', label: 'Kind', cell: (row) => kindLabel(row.kind)},
      {name: 'tokens', label: 'Tokens', number: true, cell: (row) => (row.tokens ? count(row.tokens) : '–')},
      {name: 'usd', label: 'Cost', number: true, cell: (row) => usd(row.usd)},
    ],
    footer: {kind: 'Total', usd: usd(cost)},
    empty: html`<p class="note">Nothing was charged.</p>`,
  });
  const dates = [...new Set(records.map((record) => record.price_date).filter(Boolean))];
  return card({title: 'Cost', note: dates.length ? `prices of ${dates.join(', ')}` : nothing, body});
}

// Records

/** Fields that have a place of their own, or are shown by their neighbours. */
const HIDDEN = new Set(['time', 'outcome', 'cost_usd', 'saved_usd', 'costs_usd', 'tokens', 'request_id', 'price_date']);

function recordCard(record, title = record.corrects ? 'Correction' : 'Record') {
  const {label, level} = outcomeOf(record.outcome);
  const fields = Object.entries(record).filter(([name, value]) => !HIDDEN.has(name) && !isBlank(value));
  return card({
    title,
    note: html`${badge(label, level)} ${fullTime(record.time)}`,
    body: html`<dl class="pairs record">${fields.map(([name, value]) => html`<dt>${name.replaceAll('_', ' ')}</dt><dd>${valueOf(name, value, record)}</dd>`)}</dl>`,
  });
}

const isBlank = (value) =>
  value === null || value === '' || (typeof value === 'object' && !Object.keys(value).length);

const VALUES = {
  key: (key, {key_id: id}) => html`<a href=${link('keys', {key: id})}>${key}</a>`,
  team: (team) => html`<a href=${link('teams', {team})}>${team}</a>`,
  followed: (id) => html`<a class="mono" href=${link('requests', {id})}>${id}</a>`,
  corrects: (id) => html`<a class="mono" href=${link('requests', {id})}>${id}</a>`,
  corrected_at: fullTime,
  flags: (flags) => flags.map((flag) => html`<div><code>${flag}</code> ${flagText(flag)}</div>`),
  labels: (labels) => Object.entries(labels).map(([name, value]) => html`${badge(`${name}=${value}`)} `),
  tags: (tags) => tags.map((tag) => html`${badge(tag)} `),
  latency_ms: (ms) => `${count(ms)} ms`,
};

const MONO = new Set(['id', 'key_id', 'fingerprint', 'prompt_hmac', 'upstream_request_id', 'client_address']);

function valueOf(name, value, record) {
  if (VALUES[name]) return VALUES[name](value, record);
  if (MONO.has(name)) return html`<span class="mono">${value}</span>`;
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}
