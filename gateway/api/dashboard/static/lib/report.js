/** The reports behind the Spend view: GET /admin/usage, asked and put together. */

import {unix} from './format.js';
import {get} from './http.js';
import {asked, before, bucketsOf, isOneDay, periodOf} from './period.js';

export const PATH = '/admin/usage';
const MAX_SERIES = 7;

/** What a report can be filtered by. `next` is what a click on a row groups by. */
const DIMENSIONS = [
  {value: 'team', label: 'Team', next: 'key'},
  {value: 'key', label: 'Key', next: 'model'},
  {value: 'user', label: 'User', next: 'model'},
  {value: 'model', label: 'Model', next: 'quality'},
  {value: 'size', label: 'Size', next: 'model'},
  {value: 'quality', label: 'Quality', next: 'model'},
];

export const GROUPS = [
  ...DIMENSIONS,
  {value: 'label', label: 'Label', next: 'key'},
  {value: 'day', label: 'Day', next: 'key'},
];

/** The parameter of a group: a label has its name in it, such as `label:cost_center`. */
export const dimensionOf = ({by, label}) => (by === 'label' ? `label:${label}` : by);

/** The filters in a query: a dimension and its value; "" are the records without one. */
export function filtersOf(query) {
  const given = Object.entries(query).filter(([name, value]) => isDimension(name) && value);
  const without = (query.without ?? '').split(',').filter(Boolean).map((name) => [name, '']);
  return Object.fromEntries([...given, ...without].map(([name, value]) => [name, [value]]));
}

const isDimension = (name) =>
  name.startsWith('label:') || DIMENSIONS.some(({value}) => value === name);

/** The parameters of the table: those of the links "JSON" and "CSV" too. */
export function tableParams(query) {
  const group = query.by === 'day' ? {bucket_width: '1d'} : {group_by: dimensionOf(query)};
  return {...asked(periodOf(query)), ...filtersOf(query), ...group, what_if: query.what_if};
}

export async function loadReport(query, {signal}) {
  const period = periodOf(query);
  const filters = filtersOf(query);
  const width = isOneDay(period) ? '1h' : '1d';
  const usage = (params) => get(PATH, params, {signal});
  const earlier = before(period, query.range);
  const overTime = (params, of = period) => usage({...asked(of), ...filters, ...params, bucket_width: width});
  const [table, times, previous, previousTimes] = await Promise.all([
    usage(tableParams(query)),
    overTime({}),
    query.compare ? usage({...tableParams(query), ...asked(earlier), what_if: ''}) : null,
    query.compare ? overTime({}, earlier) : null,
  ]);
  const rows = withPrevious(table.usage, previous?.usage, query);
  const names = query.by === 'day' ? [] : mostSpent(rows);
  const dimension = dimensionOf(query);
  const parts = names.length ? await overTime({[dimension]: names.map((name) => name ?? ''), group_by: dimension}) : null;
  return {
    query,
    rows,
    whatIf: table.what_if ?? null,
    total: sumOf(table.usage),
    previousTotal: previous && sumOf(previous.usage),
    chart: {
      ...chartOf(bucketsOf(period), times.usage, parts?.usage, names, query),
      before: previousTimes && valuesOf(bucketsOf(earlier), previousTimes.usage, 'cost_usd'),
    },
  };
}

/** Rows get their name, and with a comparison the cost of the period before; missing ones are added. */
function withPrevious(usage, previous, query) {
  const named = usage.map((row) => ({...row, name: nameOf(row, query)}));
  if (!previous || query.by === 'day') return named;
  const costs = new Map(previous.map((row) => [nameOf(row, query), row.cost_usd]));
  const gone = [...costs.keys()].filter((name) => !named.some((row) => row.name === name));
  const ended = gone.map((name) => ({...sumOf([]), name}));
  return [...named, ...ended].map((row) => ({...row, previous_usd: costs.get(row.name) ?? 0}));
}

function nameOf(row, {by, label}) {
  if (by === 'day') return unix(row.from);
  return (by === 'label' ? row.labels?.[label] : row[by]) ?? null;
}

const mostSpent = (rows) =>
  [...rows]
    .sort((a, b) => b.cost_usd - a.cost_usd)
    .slice(0, MAX_SERIES)
    .filter((row) => row.cost_usd)
    .map((row) => row.name);

const SUMS = ['requests', 'hits', 'images_bought', 'images_served', 'cost_usd', 'saved_usd', 'presumed_usd', 'what_if_usd'];

const sumOf = (rows) =>
  Object.fromEntries(SUMS.map((name) => [name, rows.reduce((sum, row) => sum + (row[name] ?? 0), 0)]));

/** Values for each bucket: all that was spent and saved, and what each of the largest groups spent */
function chartOf(times, totals, parts = [], names = [], query = {}) {
  const spent = valuesOf(times, totals, 'cost_usd');
  const groups = names.map((name) => ({
    name,
    values: valuesOf(times, parts.filter((row) => nameOf(row, query) === name), 'cost_usd'),
  }));
  const other = spent.map((total, index) => groups.reduce((rest, {values}) => rest - values[index], total));
  return {times, spent, saved: valuesOf(times, totals, 'saved_usd'), groups, other: other.map(positive)};
}

/** A bucket without a row is zero. */
function valuesOf(times, rows, field) {
  const found = new Map(rows.map((row) => [unix(row.from), row[field]]));
  return times.map((time) => found.get(time) ?? 0);
}

/** Differences of floats that are no amount of micro-dollars are none. */
const positive = (value) => (value < 5e-7 ? 0 : value);
