// The modules of the admin's views without a browser. Argument: the folder with the page's files.
import assert from 'node:assert/strict';
import {pathToFileURL} from 'node:url';

const module = (name) => import(pathToFileURL(`${process.argv[2]}/lib/${name}.js`));
const {differences} = await module('diff');
const {keyFields, patchFields, warnText} = await module('key_form');
const {keyState, readOnlyReason} = await module('keys');
const {detail, eventsOf, thing} = await module('audit');
const {costRows, timeLine} = await module('requests');
const {addDays, dateIn, endOfDay} = await module('zone');

// ── days of the gateway's time zone ───────────────────────────────────────────────────────────

const iso = (seconds) => new Date(seconds * 1000).toISOString();
assert.equal(iso(endOfDay('2026-03-28', 'Europe/Berlin')), '2026-03-28T23:00:00.000Z');
// A day of 23 hours, and one of 25.
assert.equal(iso(endOfDay('2026-03-29', 'Europe/Berlin')), '2026-03-29T22:00:00.000Z');
assert.equal(iso(endOfDay('2026-10-25', 'Europe/Berlin')), '2026-10-25T23:00:00.000Z');
assert.equal(dateIn(Date.parse('2026-12-31T23:30:00Z') / 1000, 'Asia/Tokyo'), '2027-01-01');
assert.equal(addDays('2026-03-01', -1), '2026-02-28');

// ── a form, and what it sends ─────────────────────────────────────────────────────────────────

function form(values) {
  const data = new FormData();
  for (const [name, value] of Object.entries({hits_report_usage: 'on', allow_no_cache: 'on', ...values})) data.append(name, value);
  return data;
}

const fieldsOf = (values, former) => keyFields(form(values), {zone: 'Europe/Berlin', former});
const made = fieldsOf({name: ' bob ', team: '', expiry: '30d', 'limits.usd_per_month': '$1,200.50', labels: 'a=1\nurl=x=y\n'});
assert.deepEqual(made, {name: 'bob', limits: {usd_per_month: 1200.5}, labels: {a: '1', url: 'x=y'}, expires_at: '30d'});
const shadow = {'limits.images_per_day': '10', 'mode.images_per_day': 'shadow', 'warn_at.images_per_day': '90, 100%'};
assert.deepEqual(fieldsOf(shadow).limits, {images_per_day: {max: 10, mode: 'shadow', warn_at: [0.9, 1]}});
// What is no number goes to the API as it is, whose error quotes it.
assert.equal(fieldsOf({'limits.usd_per_day': 'many'}).limits.usd_per_day, 'many');
assert.equal(fieldsOf({expiry: 'date', expires_on: '2026-03-29'}).expires_at, endOfDay('2026-03-29', 'Europe/Berlin'));

const former = {
  id: 'key_1', name: 'bob', prefix: 'gk-abc', team: 'art', created_at: 1, expires_at: 9, last_used_at: 8,
  limits: {usd_per_month: 50, images_per_day: {max: 10, mode: 'shadow', warn_at: [0.5, 0.8, 1]}}, labels: {a: '1', b: '2'},
};
const same = {
  name: 'bob', team: 'art', expiry: 'keep', 'limits.usd_per_month': '50', 'limits.images_per_day': '10',
  'mode.images_per_day': 'shadow', 'warn_at.images_per_day': warnText(former.limits.images_per_day), labels: 'b=2\na=1',
};
const patchOf = (values) => patchFields(former, fieldsOf({...same, ...values}, former));
assert.deepEqual(patchOf({}), {});
assert.deepEqual(patchOf({team: '', labels: 'a=1'}), {team: null, labels: {b: null}});
// A number alone would leave the limit in shadow mode.
assert.deepEqual(patchOf({'limits.usd_per_month': '', 'mode.images_per_day': 'enforce'}), {
  limits: {usd_per_month: null, images_per_day: {max: 10, mode: null, warn_at: null}},
});

// ── states ────────────────────────────────────────────────────────────────────────────────────

const DAY = 86_400;
const states = [{}, {expires_at: 100 * DAY}, {expires_at: 3 * DAY}, {expires_at: 1}, {revoked_at: 1, expires_at: 1}];
assert.deepEqual(states.map((key) => keyState(key, DAY)), ['active', 'active', 'expiring', 'expired', 'revoked']);
assert.match(readOnlyReason({declared_in: 'access.yaml'}), /access\.yaml/);
assert.equal(readOnlyReason({}), null);

// ── the audit ─────────────────────────────────────────────────────────────────────────────────

const event = (action, object, before = null, after = null) => ({action, object, before, after});
const events = [
  event('key.rotate', 'key:new'),
  event('key.change', 'key:old', {id: 'key_1', name: 'old'}, {id: 'key_1', name: 'new'}),
  event('key.change', 'key:other', {name: 'other'}, {name: 'third'}),
  event('key.create', 'key:old', null, {id: 'key_1', name: 'old'}),
];
assert.deepEqual(eventsOf(events, 'key', 'new').map(({action}) => action), ['key.rotate', 'key.change', 'key.create']);
assert.deepEqual(thing(events[1]).query, {key: 'key_1'});
assert.deepEqual(thing(event('limits.raise', 'key:a:b', null, {id: 'raise_1'})).query, {search: 'a:b', state: 'all'});
const raise = {id: 'raise_1', limit: 'usd_per_day', amount: 20, until: '2026-12-31', reason: 'a <b>launch</b>'};
assert.match(detail(event('limits.raise', 'team:art', null, raise)), /\$20\.00 more until 2026-12-31 – “a <b>launch<\/b>”/);
assert.deepEqual(differences({limits: {a: 1}, team: 'x'}, {limits: {a: 2, b: 3}}).map(({path, kind}) => `${path} ${kind}`), [
  'limits.a changed', 'limits.b added', 'team removed',
]);

// ── one request ───────────────────────────────────────────────────────────────────────────────

const presumed = {
  id: 'p1', time: 100, n: 1, model: 'm', upstream: 'default', outcome: 'failed', flags: ['presumed'], latency_ms: 5000,
  tokens: {estimated: 1000}, costs_usd: {estimated: 0.04}, cost_usd: 0.04, saved_usd: 0, images: 0, status: 504, error: 'upstream_error',
};
const correction = {
  ...presumed, id: 'c1', corrects: 'p1', corrected_at: 300, outcome: 'bought', images: 1, cost_usd: -0.01,
  tokens: {estimated: -1000, image_out: 700}, costs_usd: {estimated: -0.04, image_out: 0.03},
};
const found = {records: [presumed, correction], open_purchases: [], followed: []};
assert.deepEqual(timeLine(found).map(({time, title}) => [time, title]), [
  [100, 'Reserved and sent'], [105, 'Failed'], [300, 'Corrected'],
]);
const rows = Object.fromEntries(costRows(found.records).map(({kind, usd}) => [kind, Number(usd.toFixed(6))]));
assert.deepEqual(rows, {estimated: 0, image_out: 0.03});
