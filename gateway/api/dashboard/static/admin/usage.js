/**
 * What a key or a team used in the last 30 days: a chart by day and a table by model.
 */
import {html, nothing} from '../vendor/lit-html.js';
import {count, unix, usd, zone} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {sumsBy} from '../lib/usage.js';
import {addDays, dateIn, startOfDay} from '../lib/zone.js';
import {shareBar} from '../ui/bar.js';
import {chart} from '../ui/chart.js';
import {empty} from '../ui/feedback.js';
import {card} from '../ui/page.js';
import {table} from '../ui/table.js';

const DAYS = 30;
const MAX_SERIES = 5;
/** The series of all further groups. */
const OTHERS = Symbol('others');

const paramsOf = (filter, by) => ({since: `${DAYS - 1}d`, bucket_width: '1d', group_by: by, ...filter});

/** @param {object} filter such as {key_id: …} @param {'model'|'key'} by what the rows are grouped by */
export async function loadUsage(filter, by, signal) {
  const {usage} = await get('/admin/usage', paramsOf(filter, by), {signal});
  return {rows: usage, by, filter};
}

export function usageCard({rows, by, filter}, {linkOf} = {}) {
  const groups = sumsBy(rows, by).map((sums) => ({name: sums[by], ...sums}));
  const csv = href('/admin/usage', {...paramsOf(filter, by), format: 'csv'});
  if (!groups.length) {
    return card({title: 'Last 30 days', body: empty({icon: 'spend', title: 'No requests yet', text: 'Spend by day and model appears here with the first request.'})});
  }
  return html`
    <section class="card">
      ${chart({title: 'Spend of the last 30 days', ...seriesOf(rows, groups, by), stacked: true, format: usd, csv})}
      ${groupTable(groups, by, linkOf)}
    </section>
  `;
}

function seriesOf(rows, groups, by) {
  const today = dateIn(Date.now() / 1000, zone());
  const dates = Array.from({length: DAYS}, (_, index) => addDays(today, index - DAYS + 1));
  const paid = groups.filter((group) => group.cost_usd);
  const shown = paid.slice(0, MAX_SERIES).map(({name}) => name);
  const names = paid.length > MAX_SERIES ? [...shown, OTHERS] : shown;
  const values = new Map(names.map((name) => [name, dates.map(() => 0)]));
  for (const row of rows) {
    const index = dates.indexOf(dateIn(unix(row.from), zone()));
    const series = values.get(shown.includes(row[by]) ? row[by] : OTHERS);
    if (index >= 0 && series) series[index] += row.cost_usd;
  }
  return {
    times: dates.map((date) => startOfDay(date, zone())),
    series: [...values].map(([name, sums], index) => ({
      label: name === OTHERS ? 'Others' : (name ?? 'none'),
      values: sums,
      colour: name === OTHERS ? 'other' : index + 1,
    })),
  };
}

function groupTable(groups, by, linkOf) {
  const most = Math.max(...groups.map((group) => group.cost_usd + group.saved_usd)) || 1;
  const label = by === 'key' ? 'Key' : 'Model';
  const nameOf = ({name}) => (name && linkOf ? html`<a href=${linkOf(name)}>${name}</a>` : (name ?? 'none'));
  return table({
    caption: `The last 30 days by ${by}`,
    rows: groups,
    columns: [
      {name: 'name', label, cell: nameOf},
      {name: 'bar', label: 'Spent and saved', sort: false, hide: true, cell: (row) => shareBar(row.cost_usd / most, row.saved_usd / most)},
      {name: 'requests', label: 'Requests', number: true, hide: true, cell: (row) => count(row.requests)},
      {name: 'images', label: 'Images', number: true, hide: true, cell: (row) => count(row.images_bought + row.images_served)},
      {name: 'cost_usd', label: 'Cost', number: true, cell: (row) => usd(row.cost_usd)},
      {name: 'saved_usd', label: 'Saved', number: true, cell: (row) => usd(row.saved_usd)},
    ],
    empty: nothing,
  });
}
