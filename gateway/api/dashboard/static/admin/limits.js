/**
 * Limits on the screen.
 *
 *   limitBars(rows)                        a bar for each limit, budgets first
 *   limitsCell(record)                     the tightest ones, for a row of a list
 *   limitCard({title, note, limits, …})    the limits of one scope with their raises
 *   raiseBanner(view, scope, limit)        a limit that needs attention, and what to do
 */
import {html, nothing} from '../vendor/lit-html.js';
import {fullTime} from '../lib/format.js';
import {get} from '../lib/http.js';
import {amountLeft, inOrder, limitAmount, limitLabel, resetText, scopeText} from '../lib/limits.js';
import {limitBar} from '../ui/bar.js';
import {badge, banner} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';
import {card} from '../ui/page.js';
import {endRaise, openRaise} from './dialogs.js';

/** Limits that a row of a list shows; the page of the key or team has all. */
const MAX_BARS = 2;

// Bars

const limitBars = (rows) => html`<div class="limits">${inOrder(rows).map(bar)}</div>`;

function tightest(rows, most) {
  return [...rows].sort((a, b) => share(b) - share(a)).slice(0, most);
}

const share = ({max, used, reserved}) => (max ? (used + reserved) / max : 1);

/** Lists also have what was spent this month without a limit. */
export const isLimit = ({max}) => max !== null && max !== undefined;

/** For a row of a list: the tightest limits, and how many there are besides. */
export function limitsCell({used = []}) {
  const limits = used.filter(isLimit);
  const more = limits.length - MAX_BARS;
  if (!limits.length) return used.length ? limitBars(used) : html`<span class="note">No limits of its own</span>`;
  return html`
    ${limitBars(tightest(limits, MAX_BARS))}
    ${more > 0 ? html`<span class="note">and ${more} more</span>` : nothing}
  `;
}

const bar = (row) =>
  limitBar({
    label: limitLabel(row.limit).replace('Dollars', '$'),
    used: row.used,
    reserved: row.reserved,
    max: row.max,
    format: (amount) => limitAmount(row.limit, amount),
    note: noteOf(row),
    warnAt: Math.min(...(row.warn_at?.filter((part) => part > 0.5) ?? []), 0.8),
  });

function noteOf(row) {
  const amount = (value) => limitAmount(row.limit, value);
  const parts = isLimit(row) ? [`${amount(amountLeft(row))} left`] : [];
  if (row.reserved) parts.push(`${amount(row.reserved)} reserved`);
  if (row.raised) parts.push(`${amount(row.raised)} of it raised`);
  const reset = isLimit(row) && resetText(row);
  if (reset) parts.push(reset);
  const title = row.resets_at ? fullTime(row.resets_at) : nothing;
  return html`${row.mode === 'shadow' ? shadowBadge() : nothing} <span title=${title}>${parts.join(' · ')}</span>`;
}

const shadowBadge = () => html`<span title="Shadow mode: it counts and reports, and refuses nothing">${badge('Shadow', 'info')}</span>`;

// One scope

/**
 * @param {{title: any, note?: any, limits: {scope: string, data: any[], declared_in?: string}, view: any, edit?: any}} options
 *   `limits` is the answer of /admin/limits
 */
export function limitCard({title, note = nothing, limits, view, edit = nothing}) {
  const {data, scope} = limits;
  const raise = html`<button class="button small" @click=${() => openRaise(view, scope)}>${icon('plus')} Raise</button>`;
  return card({
    title,
    note,
    actions: html`${edit}${data.length ? raise : nothing}`,
    body: data.length
      ? html`${limitBars(data)} ${raisesOf(data, scope, view)}`
      : html`<p class="note">No limits are set here.</p>`,
  });
}

function raisesOf(rows, scope, view) {
  const raises = rows.flatMap((row) => row.raises ?? []);
  if (!raises.length) return nothing;
  return html`
    <h3>Raises</h3>
    <ul class="plain-list">${raises.map((raise) => raiseItem(raise, scope, view))}</ul>
  `;
}

const raiseItem = (raise, scope, view) => html`
  <li class="list-row">
    <div>
      <strong>+${limitAmount(raise.limit, raise.amount)}</strong> ${limitLabel(raise.limit).toLowerCase()}
      <span class="note">until the end of ${raise.until}, by ${raise.by}: ${raise.reason}</span>
    </div>
    <button class="button small" aria-label="End the raise of ${limitLabel(raise.limit)}" @click=${() => endRaise(view, raise, scope)}>End</button>
  </li>
`;

export const loadLimits = (scope, signal) => get('/admin/limits', {scope}, {signal});

/** Where a link such as the overview's leads to: a limit that needs attention, and what to do. */
export const raiseBanner = (view, scope, limit) =>
  banner({
    level: 'warning',
    title: `${limitLabel(limit)} of ${scopeText(scope)}.`,
    text: 'Raise the limit until the end of a day, or change it for good.',
    action: html`<button class="button small" @click=${() => openRaise(view, scope, {limit})}>${icon('plus')} Raise</button>`,
  });
