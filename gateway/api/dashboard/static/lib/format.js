/**
 * Numbers and times as people read them. Missing values (null, undefined) are "–".
 * Times are Unix seconds, shown in the gateway's time zone.
 */

const MISSING = '–';
const LOCALE = 'en-US';
const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

let timeZone = 'UTC';

/** The app sets it when a session begins. */
export function setTimeZone(name) {
  timeZone = name;
}

export const zone = () => timeZone;

const isMissing = (value) => value === null || value === undefined || Number.isNaN(value);
const formatter = (format) => (value) => (isMissing(value) ? MISSING : format(value));

const cents = new Intl.NumberFormat(LOCALE, {minimumFractionDigits: 2, maximumFractionDigits: 2});
const whole = new Intl.NumberFormat(LOCALE, {maximumFractionDigits: 0});
const tenths = new Intl.NumberFormat(LOCALE, {maximumFractionDigits: 1});
const compact = new Intl.NumberFormat(LOCALE, {notation: 'compact', maximumFractionDigits: 1});

/** "$1,234.50"; below $1 up to four digits that count, but two decimals: "$0.0411", "$0.40" */
export const usd = formatter((value) => {
  const amount = Math.abs(value);
  const text = amount >= 1 || amount === 0 ? cents.format(amount) : smallAmount(amount);
  return `${value < 0 ? '−' : ''}$${text}`;
});

function smallAmount(amount) {
  const decimals = Math.min(3 - Math.floor(Math.log10(amount)), 6);
  return amount.toFixed(decimals).replace(/(\.\d\d\d*?)0+$/, '$1');
}

/** For axes: "$0", "$12", "$1.2K"; with cents where a step has some: "$0.00", "$0.05" */
export const usdShort = (value, cents = false) => (cents ? usd(value) : `$${compact.format(value)}`);

/** "1,234" */
export const count = formatter((value) => whole.format(value));

/** "1 image", "1,234 images" */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? '' : 's'}`;

/** 0.423 → "42%", 0.042 → "4.2%" */
export const percent = formatter((ratio) =>
  `${(Math.abs(ratio) < 0.1 ? tenths : whole).format(ratio * 100)}%`,
);

/** A change against an earlier amount: "+12%", "−8%", "new", "–" if both are zero */
export function change(now, before) {
  if (isMissing(now) || isMissing(before) || (!now && !before)) return MISSING;
  if (!before) return 'new';
  const ratio = now / before - 1;
  if (Math.abs(ratio) < 0.0005) return '±0%';
  return `${ratio < 0 ? '−' : '+'}${percent(Math.abs(ratio))}`;
}

/** "1.2 GiB" */
export const bytes = formatter((value) => {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${tenths.format(value / 1024 ** power)} ${units[power]}`;
});

/** "38 s", "5 min", "2 h 5 min", "3 d" */
export const duration = formatter((seconds) => {
  if (seconds < MINUTE) return `${Math.round(seconds)} s`;
  if (seconds < HOUR) return `${Math.round(seconds / MINUTE)} min`;
  if (seconds >= 2 * DAY) return `${Math.round(seconds / DAY)} d`;
  const minutes = Math.round((seconds % HOUR) / MINUTE);
  return `${Math.floor(seconds / HOUR)} h${minutes ? ` ${minutes} min` : ''}`;
});

/** "412 ms", "3.2 s" */
export const latency = formatter((milliseconds) =>
  milliseconds < 1000 ? `${whole.format(milliseconds)} ms` : `${tenths.format(milliseconds / 1000)} s`,
);

/** "now", "5 min ago", "in 3 h": the largest unit alone, rounded down from an hour on */
export const ago = formatter((time) => {
  const seconds = Date.now() / 1000 - time;
  if (Math.abs(seconds) < 5) return 'now';
  const text = duration(wholeHours(Math.abs(seconds)));
  return seconds > 0 ? `${text} ago` : `in ${text}`;
});

const wholeHours = (seconds) => (seconds < HOUR ? seconds : seconds - (seconds % HOUR));

const dated = (options) =>
  formatter((time) => new Intl.DateTimeFormat(LOCALE, {timeZone, ...options}).format(time * 1000));

/** "Nov 28, 2026" */
export const day = dated({year: 'numeric', month: 'short', day: 'numeric'});

/** "Nov 28" */
export const dayShort = dated({month: 'short', day: 'numeric'});

/** "10:02" */
export const clock = dated({hour: '2-digit', minute: '2-digit', hourCycle: 'h23'});

/** "Nov 28, 10:02:33" */
export const time = dated({
  month: 'short',
  day: 'numeric',
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
  hourCycle: 'h23',
});

/** "Nov 28, 2026, 10:02:33 UTC": for titles, and wherever one time stands alone */
export const fullTime = dated({
  year: 'numeric',
  month: 'short',
  day: 'numeric',
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
  hourCycle: 'h23',
  timeZoneName: 'short',
});

/** "November" */
export const month = dated({month: 'long'});

/** Unix seconds of a time that is Unix seconds already, or ISO 8601 as in rows of usage. */
export const unix = (time) => (typeof time === 'string' ? Date.parse(time) / 1000 : time);
