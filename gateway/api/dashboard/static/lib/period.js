/**
 * Periods of reports, in days of the gateway's time zone, and the period before each.
 *
 *   periodOf({range: '30d'}) → {since, until, before: {since, until}, hourly}
 *
 * since and until are what GET /admin/usage takes; without `until` a period ends now. The period
 * before is as long; that of a month begins on the first of the month before.
 */

import {zone} from './format.js';

const DAY_MS = 86_400_000;

export const RANGES = [
  {value: 'today', label: 'Today'},
  {value: '7d', label: '7 days'},
  {value: '30d', label: '30 days'},
  {value: '90d', label: '90 days'},
  {value: 'month', label: 'This month'},
  {value: 'last-month', label: 'Last month'},
  {value: 'custom', label: 'From … to'},
];

/** @param {{range: string, from?: string, to?: string}} query dates such as 2026-11-28 */
export function periodOf({range, from, to}) {
  if (range === 'custom') return datesPeriod(from || dateIn(), to || dateIn());
  if (range === 'month') return monthPeriod(dateIn());
  if (range === 'last-month') return lastMonth(dateIn());
  const days = range === 'today' ? 1 : parseInt(range, 10) || 30;
  // "6d" are the six days before today, and today.
  return {
    since: `${days - 1}d`,
    before: {since: `${2 * days - 1}d`, until: `${days - 1}d`},
    hourly: days === 1,
  };
}

/** Today's date in the gateway's time zone, or that of another time */
export function dateIn(time = Date.now() / 1000) {
  // The Swedish way to write a date is ISO 8601.
  return new Intl.DateTimeFormat('sv-SE', {timeZone: zone()}).format(time * 1000);
}

function datesPeriod(from, to) {
  const until = addDays(to, 1);
  const days = (Date.parse(until) - Date.parse(from)) / DAY_MS;
  return {since: from, until, before: {since: addDays(from, -days), until: from}, hourly: days === 1};
}

function monthPeriod(today) {
  const first = firstOf(today);
  const before = firstOf(addDays(first, -1));
  const days = Number(today.slice(8));
  const sameDays = addDays(before, days);
  return {since: first, before: {since: before, until: sameDays < first ? sameDays : first}};
}

function lastMonth(today) {
  const until = firstOf(today);
  const since = firstOf(addDays(until, -1));
  return {since, until, before: {since: firstOf(addDays(since, -1)), until: since}};
}

const firstOf = (date) => `${date.slice(0, 8)}01`;

// Dates without a time are UTC to Date, so that no clock change disturbs the arithmetic.
const addDays = (date, days) =>
  new Date(Date.parse(date) + days * DAY_MS).toISOString().slice(0, 10);
