/**
 * What a key or a team used in the last 30 days: a chart by day and a table by model.
 */
import {html, nothing} from '../vendor/lit-html.js';
import {count, usd, zone} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {dailySeries, lastDays, sumsBy} from '../lib/usage.js';
import {startOfDay} from '../lib/zone.js';
import {shareBar} from '../ui/bar.js';
import {chart} from '../ui/chart.js';
import {empty} from '../ui/feedback.js';
import {card} from '../ui/page.js';
import {table} from '../ui/table.js';

const DAYS = 30;

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
      ${chart({title: 'Spend of the last 30 days', ...seriesOf(rows, by), stacked: true, format: usd, csv})}
      ${groupTable(groups, by, linkOf)}
    </section>
  `;
}

function seriesOf(rows, by) {
  const days = lastDays(DAYS, zone());
  return {times: days.map((date) => startOfDay(date, zone())), series: dailySeries(rows, days, by)};
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
