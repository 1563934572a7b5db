/** Spend: who spent what, on what, when; against the period before, and what if. */

import {html, nothing} from '../vendor/lit-html.js';
import {change, clock, count, day, percent, usd, zone} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {RANGES, dateIn, isOneDay, periodOf} from '../lib/period.js';
import {writeQuery} from '../lib/query.js';
import {GROUPS, PATH, dimensionOf, filtersOf, loadReport, tableParams} from '../lib/report.js';
import {shareBar} from '../ui/bar.js';
import {chart} from '../ui/chart.js';
import {empty, skeleton} from '../ui/feedback.js';
import {choice, filter} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {page, tile} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {table} from '../ui/table.js';

await stylesheet('overview');

const MAX_ROWS = 50;

export const spend = {
  refreshSeconds: 30,
  defaults: {range: '30d', by: 'team', label: 'cost_center', sort: '-cost_usd', show: 'groups'},
  async load(query, {signal}) {
    const [report, qualities] = await Promise.all([loadReport(asChosen(query), {signal}), knownQualities()]);
    return {...report, qualities};
  },
  render: (view) => spendPage({...view, query: asChosen(view.query)}),
};

/** Links may name a label as reports do: `by=label:cost_center`. */
function asChosen(query) {
  const [by, label = query.label] = query.by.split(/:(.*)/);
  return {...query, by, label};
}

const spendPage = (view) =>
  page({
    title: 'Spend',
    lead: periodText(periodOf(view.query)),
    json: href(PATH, tableParams(view.query)),
    csv: href(PATH, {...tableParams(view.query), format: 'csv'}),
    filters: filters(view),
    view,
    skeleton: html`<div class="stack">${skeleton('tiles', 4)} ${skeleton('chart')} ${skeleton('table', 8)}</div>`,
    actions: focusLink(view.query),
    content: (data) => (data.rows.length ? contents(ofData(view, data), data) : nothingSpent(view)),
  });

/** The data on the screen are those of an earlier query until the new ones arrive. */
function ofData(view, data) {
  const {sort, show, all} = view.query;
  return {...view, query: {...data.query, sort, show, all}};
}

/** Months can be exported as FOCUS 1.2, too. */
function focusLink(query) {
  if (!query.range.endsWith('month')) return nothing;
  const month = periodOf(query).from.slice(0, 7);
  return html`<a class="button quiet" href=${href('/admin/usage/focus.csv', {month})} download>FOCUS</a>`;
}

function periodText(period) {
  const {from, to} = period;
  const zoned = `days of ${zone()}`;
  const show = (date) => day(Date.parse(`${date}T12:00Z`) / 1000);
  return isOneDay(period) ? `${show(from)}, by hour, ${zone()}` : `${show(from)} to ${show(to)}, ${zoned}`;
}

/** The qualities that "what if" can ask for; read once. */
let qualities;

async function knownQualities() {
  qualities ??= await get('/models').then(qualitiesOf, () => undefined);
  return qualities ?? ['low', 'medium', 'high'];
}

function qualitiesOf({data}) {
  const parameters = data.flatMap((model) => model.parameters).filter(({name}) => name === 'quality');
  return [...new Set(parameters.flatMap(({values}) => values ?? []))].filter((name) => name !== 'auto');
}

// Filters

const filters = (view) => html`
  ${periodFilter(view)}
  ${choice({
    label: 'Group by',
    name: 'by',
    value: view.query.by,
    options: GROUPS,
    onChange: (by) => view.setQuery({by, all: ''}),
  })}
  ${view.query.by === 'label' ? labelName(view) : nothing} ${whatIfFilter(view)} ${compareButton(view)}
  ${chips(view)}
`;

const periodFilter = ({query, setQuery}) => html`
  ${filter({
    label: 'Period',
    name: 'range',
    value: query.range,
    set: false,
    options: RANGES,
    onChange: (range) => setQuery(rangeChange(range, query)),
  })}
  ${query.range === 'custom' ? dateInputs(query, setQuery) : nothing}
`;

/** Dates to choose begin with those of the period before the choice. */
const rangeChange = (range, query) => ({range, from: '', to: '', ...(range === 'custom' ? periodOf(query) : {})});

const dateInputs = (query, setQuery) =>
  html`${dateInput('from', 'From', query, setQuery)} ${dateInput('to', 'To', query, setQuery)}`;

const dateInput = (name, label, query, setQuery) => html`
  <div class="filter">
    <label for="filter-${name}">${label}</label>
    <input
      id="filter-${name}"
      type="date"
      max=${dateIn()}
      .value=${periodOf(query)[name]}
      @change=${({target}) => target.value && setQuery({[name]: target.value})}
    />
  </div>
`;

const labelName = ({query, setQuery}) => html`
  <div class="filter">
    <label for="filter-label">Name of the label</label>
    <input id="filter-label" .value=${query.label} @change=${({target}) => setQuery({label: target.value.trim()})} />
  </div>
`;

function whatIfFilter({query, data, setQuery}) {
  const options = [
    {value: '', label: 'nothing'},
    {value: 'cache=off', label: 'no cache'},
    ...(data?.qualities ?? []).map((name) => ({value: `quality=${name}`, label: `all in quality ${name}`})),
  ];
  const onChange = (value) => setQuery({what_if: value});
  return filter({label: 'What if', name: 'what_if', value: query.what_if ?? '', options, onChange});
}

const compareButton = ({query, setQuery}) => html`
  <button
    class="button toggle"
    aria-pressed=${query.compare ? 'true' : 'false'}
    @click=${() => setQuery({compare: query.compare ? '' : '1'})}
  >
    Compare with the period before
  </button>
`;

const chips = ({query, setQuery}) =>
  Object.entries(filtersOf(query)).map(
    ([name, [value]]) => html`
      <button class="chip" title="Remove this filter" @click=${() => setQuery(withoutFilter(query, name))}>
        ${name.replace('label:', '')}: <strong>${value || 'none'}</strong> ${icon('close')}
      </button>
    `,
  );

const withoutFilter = ({without = ''}, name) => ({
  [name]: '',
  without: without.split(',').filter((each) => each !== name).join(','),
});

// Contents

const contents = (view, data) => html`
  <div class="stack">
    ${data.whatIf ? whatIfAnswer(data.whatIf) : nothing}
    <div class="tiles">${figures(data)}</div>
    <div class="card">${spendChart(view, data.chart)}</div>
    ${rowsTable(view, data)}
  </div>
`;

const nothingSpent = ({setQuery}) =>
  html`<div class="card">
    ${empty({
      icon: 'spend',
      title: 'Nothing was spent',
      text: 'No request of this period matches. Choose a longer period, or remove a filter.',
      action: html`<button class="button" @click=${() => setQuery({range: '90d'})}>Show 90 days</button>`,
    })}
  </div>`;

function figures({total, previousTotal}) {
  const against = (field) => previousTotal && comparisonText(total[field], previousTotal[field]);
  const {cost_usd: cost, saved_usd: saved, images_bought: bought, images_served: served} = total;
  return html`
    ${tile({label: 'Spent', value: usd(cost), note: against('cost_usd') ?? presumedPart(total)})}
    ${tile({label: 'Saved by the cache', value: usd(saved), level: 'saved', note: against('saved_usd') ?? savedPart(total)})}
    ${tile({label: 'Requests', value: count(total.requests), note: `${percent(ratio(total.hits, total.requests))} hits`})}
    ${tile({label: 'Images', value: count(bought + served), note: `${count(bought)} bought, ${count(served)} from the cache`})}
  `;
}

const comparisonText = (now, earlier) =>
  earlier ? `${change(now, earlier)} against ${usd(earlier)} before` : 'Nothing in the period before';

const ratio = (part, whole) => (whole ? part / whole : null);
const presumedPart = ({presumed_usd: presumed}) => (presumed ? `${usd(presumed)} of it presumed` : nothing);
const savedPart = ({cost_usd: cost, saved_usd: saved}) => `${percent(ratio(saved, cost + saved))} of ${usd(cost + saved)} without it`;

function whatIfAnswer({question, charged_usd: charged, what_if_usd: asked, uncomputed}) {
  const [less, word] = asked <= charged ? ['saved', 'less'] : ['fault', 'more'];
  const named = question === 'cache=off' ? 'Without the cache' : `In quality ${question.replace('quality=', '')}`;
  return html`
    <section class="card what-if">
      <p>
        ${named}, the same requests would have cost <strong>${usd(asked)}</strong> instead of ${usd(charged)}:
        <strong class="${less}-text">${usd(Math.abs(asked - charged))} ${word} (${change(asked, charged)})</strong>.
      </p>
      ${uncomputed?.length ? uncomputedParts(uncomputed) : nothing}
    </section>
  `;
}

const uncomputedParts = (parts) => html`
  <details>
    <summary>${usd(parts.reduce((sum, part) => sum + part.cost_usd, 0))} could not be computed and are in it as charged</summary>
    <ul>
      ${parts.map((part) => html`<li>${part.model ?? 'no model'}: ${usd(part.cost_usd)}, ${part.reason}</li>`)}
    </ul>
  </details>
`;

// Chart

function spendChart({query, setQuery}, data) {
  const hourly = isOneDay(periodOf(query));
  const grouped = query.show === 'groups' && data.groups.length > 0;
  return chart({
    title: `Spend by ${hourly ? 'hour' : 'day'}`,
    times: data.times,
    stacked: true,
    tall: true,
    series: [...(grouped ? groupSeries(data, query) : totalSeries(data)), ...beforeSeries(data)],
    label: hourly ? clock : day,
    note: data.groups.length ? showChoice(query, setQuery) : nothing,
    csv: href(PATH, {...tableParams(query), bucket_width: hourly ? '1h' : '1d', format: 'csv'}),
    onPick: hourly ? null : (index) => setQuery(oneDay(data.times[index])),
  });
}

const oneDay = (time) => ({range: 'custom', from: dateIn(time), to: dateIn(time)});

const showChoice = ({show, by}, setQuery) =>
  choice({
    label: 'The chart shows',
    name: 'show',
    value: show,
    options: [
      {value: 'groups', label: `By ${by}`},
      {value: 'saved', label: 'With savings'},
    ],
    onChange: (value) => setQuery({show: value}, {replace: true}),
  });

const totalSeries = ({spent, saved}) => [
  {label: 'Spent', colour: 'spend', values: spent},
  {label: 'Saved by the cache', colour: 'saved', values: saved},
];

const beforeSeries = ({before}) =>
  before ? [{label: 'Period before', colour: 'before', values: before, line: true}] : [];

function groupSeries({groups, other}, query) {
  const named = groups.map(({name, values}, index) => ({label: name ?? nameless(query), colour: index + 1, values}));
  return other.some(Boolean) ? [...named, {label: 'Others', colour: 'other', values: other}] : named;
}

// Table

function rowsTable({query, setQuery}, {rows, total, previousTotal}) {
  const most = Math.max(...rows.map((row) => row.cost_usd + row.saved_usd));
  const columns = columnsFor(query, most, Boolean(previousTotal));
  const shown = query.all || query.by === 'day' ? rows : largest(rows, query.sort);
  return html`
    ${table({
      caption: `Spend by ${query.by}`,
      columns,
      rows: shown,
      sort: query.sort,
      setSort: (sort) => setQuery({sort}, {replace: true}),
      footer: footerOf(columns, {...total, previous_usd: previousTotal?.cost_usd}),
    })}
    ${shown.length < rows.length
      ? html`<button class="button" @click=${() => setQuery({all: '1'})}>Show all ${count(rows.length)} rows</button>`
      : nothing}
  `;
}

/** The rows that are shown first: the largest by cost, whatever the order on the screen. */
const largest = (rows) => [...rows].sort((a, b) => b.cost_usd - a.cost_usd).slice(0, MAX_ROWS);

const titleOf = ({by, label}) => (by === 'label' ? label : (GROUPS.find(({value}) => value === by)?.label ?? by));

const nameless = (query) => `no ${titleOf(query).toLowerCase()}`;

function columnsFor(query, most, compared) {
  return [
    {name: 'name', label: titleOf(query), cell: (row) => groupLink(row.name, query)},
    {name: 'cost_usd', label: 'Cost', number: true, cell: (row) => usd(row.cost_usd)},
    ...(compared && query.what_if ? [] : [shareColumn(most)]),
    ...(compared ? comparison : []),
    ...(query.what_if ? whatIfColumns : []),
    {name: 'saved_usd', label: 'Saved', number: true, cell: (row) => usd(row.saved_usd)},
    {name: 'requests', label: 'Requests', number: true, cell: (row) => count(row.requests)},
    {name: 'hits', label: 'Hits', number: true, value: hitRatio, cell: (row) => percent(hitRatio(row))},
    {name: 'images_bought', label: 'Bought', number: true, cell: (row) => count(row.images_bought)},
    {name: 'images_served', label: 'From cache', number: true, cell: (row) => count(row.images_served)},
  ];
}

const hitRatio = ({hits, requests}) => ratio(hits, requests);

/** It is left out where other columns need its room. */
const shareColumn = (most) => ({
  name: 'share',
  label: 'Spent and saved',
  sort: false,
  hide: true,
  cell: (row) => shareOf(row, most),
});

/** The totals, which have no name, need no bar. */
const shareOf = ({name, cost_usd: cost, saved_usd: saved}, most) =>
  name === undefined ? nothing : shareBar(cost / most, saved / most);

const comparison = [
  {name: 'previous_usd', label: 'Before', number: true, cell: (row) => usd(row.previous_usd)},
  {
    name: 'change',
    label: 'Change',
    number: true,
    value: (row) => row.cost_usd - (row.previous_usd ?? 0),
    cell: (row) => change(row.cost_usd, row.previous_usd),
  },
];

const whatIfColumns = [
  {name: 'what_if_usd', label: 'What if', number: true, cell: (row) => usd(row.what_if_usd)},
  {
    name: 'what_if_change',
    label: 'Difference',
    number: true,
    value: (row) => row.what_if_usd - row.cost_usd,
    cell: (row) => usd(row.what_if_usd - row.cost_usd),
  },
];

/** The cells of the totals are those of a row without a name. */
function footerOf(columns, total) {
  const cells = columns.filter(({name}) => name !== 'name').map(({name, cell}) => [name, cell(total)]);
  return {...Object.fromEntries(cells), name: 'Total'};
}

/** A row leads to its own report, grouped by what comes next. */
function groupLink(name, query) {
  const {by, without = ''} = query;
  const next = GROUPS.find(({value}) => value === by)?.next;
  const dimension = dimensionOf(query);
  const narrowed = name === null ? {without: [without, dimension].filter(Boolean).join(',')} : {[dimension]: name};
  const changes = by === 'day' ? oneDay(name) : narrowed;
  const text = by === 'day' ? day(name) : (name ?? nameless(query));
  const search = writeQuery({...query, ...changes, by: next, all: ''}, spend.defaults);
  return html`<a class="ellipsis name ${name === null ? 'muted' : ''}" href="/dashboard/spend${search}">${text}</a>`;
}
