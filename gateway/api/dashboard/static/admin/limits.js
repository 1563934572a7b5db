/**
 * Limits on the screen, and the dialogs that change them.
 *
 *   limitBars(rows)                        a bar for each limit, budgets first
 *   limitsCell(record)                     the tightest ones, for a row of a list
 *   limitCard({title, note, limits, …})    the limits of one scope with their raises
 *   limitFields(limits)                    a fieldset of a form; lib/keys reads it
 *   openRaise, raiseDialog, raiseBanner, endRaise, limitsDialog
 *                                          what an admin does with them
 */
import {html, nothing} from '../vendor/lit-html.js';
import {clock, dayShort, fullTime, zone} from '../lib/format.js';
import {del, get, patch, post} from '../lib/http.js';
import {limitFields as readLimits, patchFields, warnText} from '../lib/keys.js';
import {LIMITS, amountLeft, inOrder, limitAmount, limitLabel, limitParts} from '../lib/limits.js';
import {dateIn} from '../lib/zone.js';
import {limitBar} from '../ui/bar.js';
import {confirm, dialog} from '../ui/dialog.js';
import {badge, banner} from '../ui/feedback.js';
import {onSubmit, selectField, textField} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {card} from '../ui/page.js';

/** Limits that a row of a list shows; the page of the key or team has all. */
const MAX_BARS = 2;

/** Periods whose limits are budgets: only these make events when they are used up. */
const BUDGETS = new Set(['day', 'week', 'month']);

// Bars

export const limitBars = (rows) => html`<div class="limits">${inOrder(rows).map(bar)}</div>`;

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
  if (resetText(row)) parts.push(resetText(row));
  const title = row.resets_at ? fullTime(row.resets_at) : nothing;
  return html`${row.mode === 'shadow' ? shadowBadge() : nothing} <span title=${title}>${parts.join(' · ')}</span>`;
}

const shadowBadge = () => html`<span title="Shadow mode: it counts and reports, and refuses nothing">${badge('Shadow', 'info')}</span>`;

/** Token buckets fill all the time: their reset is no news. */
const resetText = ({limit, resets_at: at}) =>
  at && !limit.endsWith('_per_minute') ? `resets ${dayShort(at)}, ${clock(at)}` : '';

// One scope

/**
 * @param {{title: any, note?: any, limits: {scope: string, data: any[], declared_in?: string}, view: any, edit?: any}} options
 *   `limits` is the answer of /admin/limits
 */
export function limitCard({title, note = nothing, limits, view, edit = nothing}) {
  const {data, scope} = limits;
  const raise = html`<button class="button small" @click=${() => raiseDialog(view, limits)}>${icon('plus')} Raise</button>`;
  return card({
    title,
    note,
    actions: html`${edit}${data.length ? raise : nothing}`,
    body: data.length
      ? html`${limitBars(data)} ${raisesOf(data, scope, view)}`
      : html`<p class="note">No limits: every request is allowed that the other limits allow.</p>`,
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

// Dialogs

/** Opens the form for a raise of a scope whose limits are not loaded yet. */
export async function openRaise(view, scope, preset) {
  try {
    raiseDialog(view, await loadLimits(scope), preset);
  } catch (error) {
    view.app.toast(error.message, 'fault');
  }
}

/** Where a link such as the overview's leads to: a limit that needs attention, and what to do. */
export const raiseBanner = (view, scope, limit) =>
  banner({
    level: 'warning',
    title: `${limitLabel(limit)} of ${scopeText(scope)}:`,
    text: 'raise it until a day, or change the limit.',
    action: html`<button class="button small" @click=${() => openRaise(view, scope, {limit})}>${icon('plus')} Raise</button>`,
  });

/** Opens the form for a raise. `preset`: the limit, amount and reason that were asked for. */
export function raiseDialog(view, {scope, data}, preset = {}) {
  const {app, refresh} = view;
  const submit = onSubmit(async (values) => {
    const amount = numberOr(values.amount);
    const raised = await post('/admin/limits/raise', {scope, ...values, amount});
    app.closeDialog();
    app.toast(`${limitLabel(raised.limit)} of ${scopeText(scope)}: ${limitAmount(raised.limit, raised.amount)} more until ${raised.until}.`);
    refresh();
  });
  app.dialog(dialog({
    title: `Raise a limit of ${scopeText(scope)}`,
    lead: 'A raise adds to the limit until the end of a day, and ends by itself.',
    body: raiseFields(data, preset),
    onSubmit: submit,
    submit: 'Raise',
    close: app.closeDialog,
  }));
}

const raiseFields = (rows, preset) => html`
  ${selectField({label: 'Limit', name: 'limit', value: preset.limit ?? rows[0]?.limit, options: inOrder(rows).map(raiseOption)})}
  <div class="fields two">
    ${textField({label: 'Add', name: 'amount', value: textOf(preset.amount), required: true, placeholder: '20', hint: 'On top of the maximum, in the unit of the limit.'})}
    ${textField({label: 'Until the end of', name: 'until', type: 'date', value: dateIn(Date.now() / 1000, zone()), required: true, hint: `Days are those of ${zone()}.`})}
  </div>
  ${textField({label: 'Reason', name: 'reason', value: preset.reason ?? '', required: true, hint: 'It stays in the audit.'})}
`;

const raiseOption = ({limit, max}) => ({value: limit, label: `${limitLabel(limit)}: ${limitAmount(limit, max)} now`});

export function endRaise({app, refresh}, raise, scope) {
  confirm(app, {
    title: `End this raise of ${scopeText(scope)}?`,
    text: `${limitLabel(raise.limit)} loses ${limitAmount(raise.limit, raise.amount)} at once. It would have held until the end of ${raise.until}.`,
    action: 'End the raise',
    run: async () => {
      await del(`/admin/limits/raise/${encodeURIComponent(raise.id)}`);
      app.toast('The raise has ended.');
      refresh();
    },
  });
}

/** Opens the form for the limits of everyone. `limits` is the answer of /admin/limits. */
export function limitsDialog({app, refresh}, {scope, data}) {
  const former = Object.fromEntries(data.map((row) => [row.limit, limitOf(row)]));
  const submit = onSubmit(async (_, form) => {
    const changes = patchFields({limits: former}, {limits: readLimits(new FormData(form))});
    if (changes.limits) await atLimit(() => patch('/admin/limits', {scope, ...changes}));
    app.closeDialog();
    app.toast(changes.limits ? `The limits of ${scopeText(scope)} have changed.` : 'Nothing has changed.');
    if (changes.limits) refresh();
  });
  app.dialog(dialog({
    title: `Limits of ${scopeText(scope)}`,
    lead: 'They count all keys together. A change holds for the next request.',
    body: limitFields(former),
    onSubmit: submit,
    close: app.closeDialog,
  }));
}

/** The limit as it is set, without its raises. */
function limitOf({max, raised, mode, warn_at: warnAt}) {
  const set = Number((max - (raised ?? 0)).toFixed(6));
  const isDefault = mode === 'enforce' && JSON.stringify(warnAt) === '[0.5,0.8,1]';
  return isDefault ? set : {max: set, mode, warn_at: warnAt};
}

// Fields

export const limitFields = (limits = {}) => html`
  <fieldset class="group limit-fields">
    <legend>Limits</legend>
    <p class="hint">Empty: no limit. 0 allows nothing. A limit in shadow mode counts and reports, and refuses nothing.</p>
    ${LIMITS.map((limit) => limitField(limit, limits[limit.name]))}
    <p class="field-error" id="error-limits"></p>
  </fieldset>
`;

function limitField({name, label, unit, period}, value) {
  const {max, mode} = limitParts(value ?? {});
  const id = `limits.${name}`;
  return html`
    <div class="limit-field">
      <label for="field-${id}">${label}</label>
      <div class="limit-input">
        ${unit === 'usd' ? html`<span aria-hidden="true">$</span>` : nothing}
        <input id="field-${id}" name=${id} inputmode="decimal" autocomplete="off" placeholder="no limit" .value=${textOf(max)} aria-describedby="error-${id}" />
      </div>
      <div class="limit-more">
        <select name="mode.${name}" aria-label="Mode: ${label}">
          <option value="enforce" .selected=${mode !== 'shadow'}>Enforce</option>
          <option value="shadow" .selected=${mode === 'shadow'}>Shadow</option>
        </select>
        ${warnField(name, label, period, warnText(value))}
      </div>
      <p class="field-error" id="error-${id}"></p>
    </div>
  `;
}

const warnField = (name, label, period, value) =>
  BUDGETS.has(period)
    ? html`<input name="warn_at.${name}" aria-label="Warn at, in percent: ${label}" title="Percentages of the limit at which there is an event" placeholder="warn at 50, 80, 100%" .value=${value} />`
    : html`<input type="hidden" name="warn_at.${name}" .value=${value} />`;

/** Runs a change; an error about one limit is shown at that limit. */
export async function atLimit(change) {
  try {
    return await change();
  } catch (error) {
    const [, name] = /^(?:Limit|Invalid limit|Unknown limit) '(\w+)'/.exec(error.message) ?? [];
    if (name && error.param === 'limits') error.param = `limits.${name}`;
    throw error;
  }
}

/** `key:alice` → `alice`, `team:art` → `team art` */
export function scopeText(scope) {
  const [kind, ...name] = scope.split(':');
  return kind === 'key' ? name.join(':') : [kind, name.join(':')].filter(Boolean).join(' ');
}

const textOf = (value) => (value === undefined || value === null ? '' : String(value));

function numberOr(text) {
  const number = Number(text.replace(/^[$+]+|,(?=\d{3})/g, ''));
  return text.trim() && Number.isFinite(number) ? number : text;
}
