// Formats, addresses, periods and reports without a browser. Argument: the folder with the page's files.
import assert from 'node:assert/strict';
import {pathToFileURL} from 'node:url';

const module = (name) => import(pathToFileURL(`${process.argv[2]}/lib/${name}.js`));
const format = await module('format');
const {readQuery, writeQuery} = await module('query');
const {ApiError, href} = await module('http');
const {asked, before, bucketsOf, periodOf} = await module('period');
const {getPage} = await module('pages');
const {filtersOf, loadReport, tableParams} = await module('report');

const at = (text) => Date.parse(text) / 1000;
const now = (text) => (Date.now = () => Date.parse(text));

// ── amounts ───────────────────────────────────────────────────────────────────────────────────

const AMOUNTS = [
  [0, '$0.00'],
  [1234.5, '$1,234.50'],
  [1, '$1.00'],
  [0.4, '$0.40'],
  [0.3995, '$0.3995'],
  [0.026254, '$0.02625'],
  [0.000001, '$0.000001'],
  [-12, '−$12.00'],
  [null, '–'],
];
for (const [amount, text] of AMOUNTS) assert.equal(format.usd(amount), text);
assert.deepEqual([0, 12, 1500].map((value) => format.usdShort(value)), ['$0', '$12', '$1.5K']);
assert.equal(format.usdShort(0, true), '$0.00');
assert.deepEqual([format.percent(0.423), format.percent(0.042), format.percent(null)], ['42%', '4.2%', '–']);
const CHANGES = [[2, 1], [1, 2], [1, 0], [0, 0], [1, 1]].map(([a, b]) => format.change(a, b));
assert.deepEqual(CHANGES, ['+100%', '−50%', 'new', '–', '±0%']);
assert.deepEqual([0, 1023, 10 * 1024 ** 3].map(format.bytes), ['0 B', '1,023 B', '10 GiB']);
assert.deepEqual([38, 300, 7500, 260_000].map(format.duration), ['38 s', '5 min', '2 h 5 min', '3 d']);

// ── addresses ─────────────────────────────────────────────────────────────────────────────────

const DEFAULTS = {range: '30d', by: 'team'};
assert.deepEqual(readQuery('?by=key&user=a%26b', DEFAULTS), {range: '30d', by: 'key', user: 'a&b'});
assert.equal(writeQuery({range: '30d', by: 'key', user: 'a&b', team: ''}, DEFAULTS), '?by=key&user=a%26b');
assert.equal(writeQuery(DEFAULTS, DEFAULTS), '');
assert.equal(href('/admin/usage', {team: ['', 'a b'], user: '', since: null}), '/dashboard/api/admin/usage?team=&team=a+b');

// ── periods, also where clocks are changed ────────────────────────────────────────────────────

format.setTimeZone('Europe/Berlin');
now('2026-03-31T22:30:00Z'); // 1 April, half past midnight
assert.deepEqual(periodOf({range: '7d'}), {from: '2026-03-26', to: '2026-04-01'});
assert.deepEqual(before(periodOf({range: '7d'}), '7d'), {from: '2026-03-19', to: '2026-03-25'});
assert.deepEqual(periodOf({range: 'month'}), {from: '2026-04-01', to: '2026-04-01'});
assert.deepEqual(before(periodOf({range: 'month'}), 'month'), {from: '2026-03-01', to: '2026-03-01'});
assert.deepEqual(periodOf({range: 'last-month'}), {from: '2026-03-01', to: '2026-03-31'});
assert.deepEqual(before(periodOf({range: 'last-month'}), 'last-month'), {from: '2026-02-01', to: '2026-02-28'});
const swapped = {range: 'custom', from: '2026-03-02', to: '2026-03-01'};
assert.deepEqual(periodOf(swapped), {from: '2026-03-01', to: '2026-03-02'});
assert.deepEqual(asked(periodOf(swapped)), {since: '2026-03-01', until: '2026-03-03'});
assert.deepEqual(asked(periodOf({range: 'today'})), {since: '2026-04-01', until: ''});

now('2026-03-31T10:00:00Z'); // not all days of a month are in the one before
const month = periodOf({range: 'month'});
assert.deepEqual(before(month, 'month'), {from: '2026-02-01', to: '2026-02-28'});

const days = bucketsOf({from: '2026-03-28', to: '2026-03-30'});
assert.deepEqual(days, ['2026-03-27T23:00Z', '2026-03-28T23:00Z', '2026-03-29T22:00Z'].map(at));
const short = {from: '2026-03-29', to: '2026-03-29'};
assert.equal(bucketsOf(short).length, 23);
assert.equal(bucketsOf({from: '2025-10-26', to: '2025-10-26'}).length, 25);
assert.equal(bucketsOf({from: '2026-03-31', to: '2026-03-31'}).length, 12); // none is later than now

// ── reports ───────────────────────────────────────────────────────────────────────────────────

format.setTimeZone('UTC');
now('2026-11-02T12:00:00Z');
const QUERY = {range: 'custom', from: '2026-11-01', to: '2026-11-02', by: 'team', label: 'cost_center', user: 'u', without: 'key'};
assert.deepEqual(filtersOf(QUERY), {user: ['u'], key: ['']});
assert.deepEqual(tableParams({...QUERY, by: 'label'}).group_by, 'label:cost_center');
assert.deepEqual(tableParams({...QUERY, by: 'day'}).bucket_width, '1d');

const row = (from, team, cost) => ({from, team, cost_usd: cost, saved_usd: 1, requests: 2, hits: 1});
const ANSWERS = (params) => {
  const isBefore = params.get('since') === '2026-10-30';
  if (!params.has('bucket_width')) return isBefore ? [row('', 'gone', 5)] : [row('', 'art', 3), row('', null, 1)];
  if (isBefore) return [row('2026-10-31T00:00:00+00:00', null, 5)];
  const teams = params.getAll('team');
  return teams.length
    ? [row('2026-11-02T00:00:00+00:00', 'art', 3)]
    : [row('2026-11-01T00:00:00+00:00', null, 1), row('2026-11-02T00:00:00+00:00', null, 3)];
};
globalThis.fetch = async (address) => Response.json({usage: ANSWERS(new URLSearchParams(address.split('?')[1]))});
const report = await loadReport({...QUERY, compare: '1'}, {});
assert.deepEqual(report.rows.map((each) => [each.name, each.cost_usd, each.previous_usd]), [['art', 3, 0], [null, 1, 0], ['gone', 0, 5]]);
assert.deepEqual([report.total.cost_usd, report.previousTotal.cost_usd], [4, 5]);
assert.deepEqual([report.chart.spent, report.chart.before], [[1, 3], [0, 5]]);
assert.deepEqual(report.chart.groups.map(({name, values}) => [name, values]), [['art', [0, 3]], [null, [0, 0]]]);
assert.deepEqual(report.chart.other, [1, 0]);

// ── pages that the gateway leaves short ───────────────────────────────────────────────────────

const PAGES = {'': [[], 'b'], b: [[1, 2], 'c'], c: [[3], null]};
const limits = [];
globalThis.fetch = async (address) => {
  const params = new URLSearchParams(address.split('?')[1]);
  limits.push(params.get('limit'));
  const [data, after] = PAGES[params.get('after') ?? ''];
  return Response.json({data, after});
};
assert.deepEqual(await getPage('/images', {limit: 60}), {data: [1, 2, 3], after: null});
assert.deepEqual(limits, ['60', '60', '58']);
PAGES.c = [[], 'c']; // never ends: it stops by itself, and says where to go on
assert.deepEqual(await getPage('/images', {limit: 60}), {data: [1, 2], after: 'c'});
assert.equal(limits.length, 7);

// ── times ─────────────────────────────────────────────────────────────────────────────────────

now('2026-11-29T12:00:00Z');
assert.deepEqual(
  ['11:59:20', '11:13:20', '10:47:00', '00:01:00', '12:30:00', '23:59:00'].map((clock) => format.ago(at(`2026-11-29T${clock}Z`))),
  ['40 s ago', '47 min ago', '1 h ago', '11 h ago', 'in 30 min', 'in 11 h'],
);

// ── errors ────────────────────────────────────────────────────────────────────────────────────

const failed = async (answer) => {
  globalThis.fetch = async () => answer();
  return loadReport(QUERY, {}).then(assert.fail, (error) => error);
};
const errorBody = (code) => () => Response.json({error: {code, message: 'm', param: 'p'}}, {status: 503});
const down = await failed(errorBody('store_unavailable'));
assert.ok(down instanceof ApiError && down.storeDown && down.passes);
assert.deepEqual([down.status, down.message, down.param], [503, 'm', 'p']);
assert.equal((await failed(errorBody('overloaded'))).passes, false);
const silent = await failed(() => {
  throw new TypeError('Failed to fetch');
});
assert.deepEqual([silent.status, silent.passes], [0, true]);
assert.equal((await failed(() => new Response('<html>', {status: 502}))).message, 'The gateway answered 502.');
