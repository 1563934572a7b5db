/**
 * Periods of reports, in days of the gateway's time zone.
 *
 *   periodOf({range: '7d'})          → {from: '2026-11-23', to: '2026-11-29'}, both included
 *   before(period, range)            → the period before: as long, or the month before
 *   asked(period)                    → {since, until} as GET /admin/usage takes them
 *   bucketsOf(period)                → Unix seconds at which each day begins, or each hour of one day
 */

import {zone} from './format.js';
import {addDays, dateIn as dateInZone, startOfDay} from './zone.js';

const DAY_MS = 86_400_000;
const HOUR = 3600;
const MAX_DAYS = 1000;

export const RANGES = [
  {value: 'today', label: 'Today'},
  {value: '7d', label: '7 days'},
  {value: '30d', label: '30 days'},
  {value: '90d', label: '90 days'},
  {value: 'month', label: 'This month'},
  {value: 'last-month', label: 'Last month'},
  {value: 'custom', label: 'From … to …'},
];

/** @param {{range: string, from?: string, to?: string}} query dates such as 2026-11-28 */
export function periodOf({range, from, to}) {
  const today = dateIn();
  if (range === 'custom') return inOrder(from || today, to || today);
  if (range === 'month') return {from: firstOf(today), to: today};
  if (range === 'last-month') return monthBefore(today);
  const days = range === 'today' ? 1 : parseInt(range, 10) || 30;
  return {from: addDays(today, 1 - days), to: today};
}

export function before(period, range) {
  const {from, to} = period;
  if (range === 'last-month') return monthBefore(from);
  if (range === 'month') {
    // The same days of the month before, as far as it has them.
    const month = monthBefore(from);
    const sameDays = addDays(month.from, Number(to.slice(8)) - 1);
    return {from: month.from, to: sameDays < month.to ? sameDays : month.to};
  }
  return {from: addDays(from, -daysOf(period)), to: addDays(from, -1)};
}

export const asked = ({from, to}) => ({since: from, until: to < dateIn() ? addDays(to, 1) : ''});

export const isOneDay = ({from, to}) => from === to;

export function bucketsOf(period) {
  const {from, to} = period;
  const end = Math.min(startOf(addDays(to, 1)), Date.now() / 1000);
  if (isOneDay(period)) {
    const hours = Math.ceil((end - startOf(from)) / HOUR);
    return Array.from({length: Math.max(hours, 0)}, (_, hour) => startOf(from) + hour * HOUR);
  }
  return Array.from({length: Math.min(daysOf(period), MAX_DAYS)}, (_, day) => startOf(addDays(from, day)));
}

/** The date of a time in the gateway's time zone; today unless given */
export const dateIn = (time = Date.now() / 1000) => dateInZone(time, zone());

/** When a date begins in the gateway's time zone. */
const startOf = (date) => startOfDay(date, zone());

const inOrder = (a, b) => (a <= b ? {from: a, to: b} : {from: b, to: a});
const firstOf = (date) => `${date.slice(0, 8)}01`;
const daysOf = ({from, to}) => (Date.parse(to) - Date.parse(from)) / DAY_MS + 1;

function monthBefore(date) {
  const to = addDays(firstOf(date), -1);
  return {from: firstOf(to), to};
}
