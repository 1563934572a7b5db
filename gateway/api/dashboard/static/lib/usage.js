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
 * Daily cost as stacked series, one for each model; those that cost least are "Others".
 * @param {string[]} days  the dates of the chart, oldest first, also those without a row
 */
export function dailySeries(rows, days) {
  // Refused requests of no known model cost nothing.
  const models = sumsBy(rows, 'model').filter((sum) => sum.cost_usd).map(({model}) => model);
  const named = models.length > MAX_SERIES ? models.slice(0, MAX_SERIES - 1) : models;
  const others = models.filter((model) => !named.includes(model));
  const series = named.map((model, i) => ({label: model ?? 'none', colour: i + 1, values: costs(rows, days, [model])}));
  return others.length
    ? [...series, {label: 'Others', colour: 'other', values: costs(rows, days, others)}]
    : series;
}

function costs(rows, days, models) {
  const byDay = Object.groupBy(
    rows.filter((row) => models.includes(row.model ?? null)),
    (row) => row.from.slice(0, 10),
  );
  return days.map((day) => totalOf(byDay[day] ?? []).cost_usd);
}

/** The dates of the last days, oldest first, in a time zone: `2026-11-28`. */
export function lastDays(count, zone, now = Date.now()) {
  const today = dateIn(now / 1000, zone);
  return Array.from({length: count}, (_, i) => addDays(today, i + 1 - count));
}
