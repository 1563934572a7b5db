/**
 * Keys and teams between the API's JSON and a form: fields, bodies, patches.
 */
import {patchOf} from './diff.js';
import {LIMITS, limitParts, limitValue} from './limits.js';
import {dateIn, endOfDay} from './zone.js';

/** Fields with a text or nothing. */
const TEXTS = ['name', 'team', 'validation', 'scope', 'reuse', 'parallel', 'user_header'];

/** Fields that are true unless they are set to false. */
const SWITCHES = ['hits_report_usage', 'allow_no_cache'];

/** Objects of which a PATCH has only the members that change. */
const NESTED = ['limits', 'labels'];

/** The fields of a key as a form has them, as the API takes them. @param {FormData} form */
export function keyFields(form, {zone, former = {}}) {
  const fields = {...teamFields(form)};
  for (const name of TEXTS) fields[name] = text(form, name);
  for (const name of SWITCHES) fields[name] = form.has(name) ? null : false;
  fields.expires_at = expiry(form, zone, former);
  return withoutNulls(fields);
}

/** The fields that a team shares with a key. @param {FormData} form */
export function teamFields(form) {
  const models = form.getAll('models');
  return withoutNulls({
    name: text(form, 'name'),
    models: models.length ? models : null,
    limits: limitFields(form),
    labels: labelFields(text(form, 'labels') ?? ''),
    scope: text(form, 'scope'),
  });
}

/** The limits of a form, by name. @param {FormData} form */
export function limitFields(form) {
  const limits = {};
  for (const {name} of LIMITS) {
    const max = text(form, `limits.${name}`);
    if (max === null) continue;
    limits[name] = limitValue({max: asNumber(max), mode: form.get(`mode.${name}`), warn_at: warnParts(text(form, `warn_at.${name}`))});
  }
  return limits;
}

/** What changes: only these fields are sent, and null lifts one. */
export function patchFields(former, fields) {
  const known = Object.fromEntries([...new Set([...TEXTS, ...SWITCHES, ...NESTED, 'models', 'expires_at'])]
    .filter((name) => name in former).map((name) => [name, former[name]]));
  for (const name of SWITCHES) if (known[name] === true) delete known[name];
  const patch = patchOf(known, fields, NESTED);
  return patch.limits ? {...patch, limits: wholeLimits(patch.limits)} : patch;
}

/** Changed limits for a PATCH, in which a number alone would leave the mode as it was. */
function wholeLimits(limits) {
  const whole = (value) => (typeof value === 'number' ? {max: value, mode: null, warn_at: null} : value);
  return Object.fromEntries(Object.entries(limits).map(([name, value]) => [name, whole(value)]));
}

/** Parts such as `0.5, 0.8`, as a field shows them in percent. */
export function warnText(value) {
  const parts = limitParts(value ?? 0).warn_at;
  return parts ? parts.map((part) => Number((part * 100).toFixed(4))).join(', ') : '';
}

/** Labels as lines of `name=value`. */
export function labelLines(labels) {
  return Object.entries(labels ?? {}).map(([name, value]) => `${name}=${value}`).join('\n');
}

/** The last day on which a key works, for a date field. */
export function lastDay(expiresAt, zone) {
  return expiresAt ? dateIn(expiresAt - 1, zone) : '';
}

/** Parts such as `50, 80, 100%`. */
const warnParts = (percents) =>
  percents?.split(/[,;\s]+/).filter(Boolean).map((part) => asNumber(part.replace('%', '')) / 100);

/** A number, or the text itself, so that the API's error quotes it. */
function asNumber(value) {
  const number = Number(value.replace(/^\$|,(?=\d{3})/g, ''));
  return Number.isFinite(number) ? number : value;
}

function labelFields(lines) {
  const labels = {};
  for (const line of lines.split('\n').map((one) => one.trim()).filter(Boolean)) {
    const [name, ...value] = line.split('=');
    labels[name.trim()] = value.join('=').trim();
  }
  return labels;
}

function expiry(form, zone, former) {
  const choice = form.get('expiry') ?? 'never';
  if (choice === 'never') return null;
  if (choice === 'keep') return former.expires_at ?? null;
  if (choice !== 'date') return choice;
  const date = text(form, 'expires_on');
  return date ? endOfDay(date, zone) : '';
}

function text(form, name) {
  const value = form.get(name);
  return typeof value === 'string' && value.trim() ? value.trim() : null;
}

function withoutNulls(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
}
