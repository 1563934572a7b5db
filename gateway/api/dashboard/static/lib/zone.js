/** Calendar days in a time zone. */

const DAY_SECONDS = 86_400;

/** The date of a moment: `2026-11-30`. @param {number} seconds Unix seconds */
export function dateIn(seconds, zone) {
  return partsIn(seconds, zone).slice(0, 10);
}

/** Unix seconds of the first instant of the day after `date` (`2026-11-30`). */
export function endOfDay(date, zone) {
  return startOfDay(addDays(date, 1), zone);
}

/** `date` and a number of days later, which may be below zero. */
export function addDays(date, days) {
  // In UTC, so that no clock change disturbs the arithmetic.
  return new Date(Date.parse(`${date}T00:00:00Z`) + days * DAY_SECONDS * 1000).toISOString().slice(0, 10);
}

/** Unix seconds of the first instant of `date`. */
export function startOfDay(date, zone) {
  const asUtc = Date.parse(`${date}T00:00:00Z`) / 1000;
  let found = asUtc;
  // Twice: the offset may be another one at the first guess.
  for (let round = 0; round < 2; round += 1) found = asUtc - offsetAt(found, zone);
  return found;
}

function offsetAt(seconds, zone) {
  return Date.parse(`${partsIn(seconds, zone)}Z`) / 1000 - seconds;
}

function partsIn(seconds, zone) {
  // The Swedish way to write a time is nearly ISO 8601: 2026-11-28 10:02:33.
  const text = new Intl.DateTimeFormat('sv-SE', {
    timeZone: zone, dateStyle: 'short', timeStyle: 'medium',
  }).format(new Date(seconds * 1000));
  return text.replace(' ', 'T');
}
