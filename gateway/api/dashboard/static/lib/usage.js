/** Sums over rows of usage, as `/usage` and `/admin/usage` have them. */
import {addDays, dateIn} from './zone.js';

const SUMMED = ['requests', 'hits', 'images_bought', 'images_served', 'cost_usd', 'saved_usd'];
const MAX_SERIES = 5;

/** The sums of rows. */
export function totalOf(rows) {
  return rows.reduce(add, Object.fromEntries(SUMMED.map((name) => [name, 0])));
}

function add(total, row) {
  return Object.fromEntries(SUMMED.map((name) => [name, total[name] + (row[name] ?? 0)]));
}

/** One row for each value of a field, null among them, the most expensive first. */
export function sumsBy(rows, name) {
  return [...Map.groupBy(rows, (row) => row[name] ?? null)]
    .map(([value, found]) => ({[name]: value, ...totalOf(found)}))
    .sort((a, b) => b.cost_usd - a.cost_usd || b.requests - a.requests);
}

/**
 * Daily cost as stacked series, one for each model or key; those that cost least are "Others".
 * @param {string[]} days  the dates of the chart, oldest first, also those without a row
 * @param {string} by  the field that the rows are grouped by
 */
export function dailySeries(rows, days, by = 'model') {
  // Refused requests of no known model cost nothing.
  const names = sumsBy(rows, by).filter((sum) => sum.cost_usd).map((sum) => sum[by]);
  const named = names.length > MAX_SERIES ? names.slice(0, MAX_SERIES - 1) : names;
  const others = names.filter((name) => !named.includes(name));
  const costs = (wanted) => dailyCosts(rows.filter((row) => wanted.includes(row[by] ?? null)), days);
  const series = named.map((name, i) => ({label: name ?? 'none', colour: i + 1, values: costs([name])}));
  return others.length ? [...series, {label: 'Others', colour: 'other', values: costs(others)}] : series;
}

/** Buckets begin at a time such as `2026-11-28T00:00:00+01:00`, in the time zone of the days. */
function dailyCosts(rows, days) {
  const byDay = Object.groupBy(rows, (row) => row.from.slice(0, 10));
  return days.map((day) => totalOf(byDay[day] ?? []).cost_usd);
}

/** The dates of the last days, oldest first, in a time zone: `2026-11-28`. */
export function lastDays(count, zone, now = Date.now()) {
  const today = dateIn(now / 1000, zone);
  return Array.from({length: count}, (_, i) => addDays(today, i + 1 - count));
}
