/**
 * The table of limits, as people read and write them. It mirrors `gateway/limits.py`.
 * Money is in dollars.
 */
import {clock, count, dayShort, usd} from './format.js';

/** @typedef {{name: string, label: string, unit: 'requests'|'images'|'tokens'|'usd'|'purchases', period: string}} Limit */

/** @type {readonly Limit[]} Budgets first: most people come for those. */
export const LIMITS = Object.freeze([
  {name: 'usd_per_month', label: 'Dollars per month', unit: 'usd', period: 'month'},
  {name: 'usd_per_week', label: 'Dollars per week', unit: 'usd', period: 'week'},
  {name: 'usd_per_day', label: 'Dollars per day', unit: 'usd', period: 'day'},
  {name: 'images_per_day', label: 'Images per day', unit: 'images', period: 'day'},
  {name: 'tokens_per_day', label: 'Tokens per day', unit: 'tokens', period: 'day'},
  {name: 'images_per_minute', label: 'Images per minute', unit: 'images', period: 'minute'},
  {name: 'requests_per_minute', label: 'Requests per minute', unit: 'requests', period: 'minute'},
  {name: 'concurrent_requests', label: 'Concurrent requests', unit: 'purchases', period: 'now'},
]);

const BY_NAME = new Map(LIMITS.map((limit, position) => [limit.name, {...limit, position}]));

/** A limit that only a newer gateway knows keeps its own name. */
function limitNamed(name) {
  return BY_NAME.get(name) ?? {name, label: name, unit: 'requests', period: '', position: 99};
}

export function limitLabel(name) {
  return limitNamed(name).label;
}

/** An amount of a limit: `$4.20`, `1,200`. */
export function limitAmount(name, amount) {
  if (amount === null || amount === undefined) return '–';
  return limitNamed(name).unit === 'usd' ? usd(amount) : count(amount);
}

/** Rows of use in the order of the table. */
export function inOrder(rows) {
  return [...rows].sort((a, b) => limitNamed(a.limit).position - limitNamed(b.limit).position);
}

/** The number and the mode of a limit, which the API shows as a number if the rest is the default. */
export function limitParts(value) {
  return typeof value === 'number' ? {max: value, mode: 'enforce'} : value;
}

const DEFAULT_WARN_AT = [0.5, 0.8, 1];

/** A limit as the API shows it: a number if mode and warnings are the default. */
export function limitValue({max, mode, warn_at: warnAt}) {
  const parts = warnAt ?? DEFAULT_WARN_AT;
  const isDefault = mode !== 'shadow' && JSON.stringify(parts) === JSON.stringify(DEFAULT_WARN_AT);
  return isDefault ? max : {max, mode: mode ?? 'enforce', warn_at: parts};
}

/** What is left of a limit, never below zero; null without a maximum. */
export function amountLeft({max, used, reserved}) {
  return max === null || max === undefined ? null : Math.max(0, max - used - reserved);
}

/** When a limit begins anew, in one piece. Token buckets fill all the time: their reset is no news. */
export const resetText = ({limit, resets_at: at}) =>
  at && !limit.endsWith('_per_minute') ? `resets ${dayShort(at)}, ${clock(at)}`.replaceAll(' ', '\u00a0') : '';

/** `key:alice` → `alice`, `team:art` → `team art` */
export function scopeText(scope) {
  const [kind, ...name] = scope.split(':');
  return kind === 'key' ? name.join(':') : [kind, name.join(':')].filter(Boolean).join(' ');
}
