/** The dialogs that raise and change limits, and the limits in forms, which lib/key_form reads. */

import {html, nothing} from '../vendor/lit-html.js';
import {zone} from '../lib/format.js';
import {del, patch, post} from '../lib/http.js';
import {limitFields as readLimits, patchFields, warnText} from '../lib/key_form.js';
import {LIMITS, inOrder, limitAmount, limitLabel, limitParts, limitValue, scopeText} from '../lib/limits.js';
import {dateIn} from '../lib/zone.js';
import {confirm, dialog} from '../ui/dialog.js';
import {onSubmit, selectField, textField} from '../ui/form.js';
import {loadLimits} from './limits.js';

/** Periods whose limits are budgets: only these make events when they are used up. */
const BUDGETS = new Set(['day', 'week', 'month']);

/** Opens the form for a raise. `preset`: the limit, amount and reason that were asked for. */
export async function openRaise({app, refresh}, scope, preset = {}) {
  const {data} = await loadLimits(scope);
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
    body: raiseFields(inOrder(data), preset),
    onSubmit: submit,
    submit: 'Raise',
    close: app.closeDialog,
  }));
}

const raiseFields = (rows, preset) => html`
  ${selectField({label: 'Limit', name: 'limit', value: preset.limit ?? rows[0]?.limit, options: rows.map(raiseOption)})}
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
    text: `${limitLabel(raise.limit)} loses ${limitAmount(raise.limit, raise.amount)} at once. It would have lasted until the end of ${raise.until}.`,
    action: 'End the raise',
    run: async () => {
      await del(`/admin/limits/raise/${encodeURIComponent(raise.id)}`);
      app.toast('The raise has ended.');
      refresh();
    },
  });
}

/** Opens the form for the limits of everyone. `limits` is the answer of /admin/limits. */
export function changeLimits({app, refresh}, {scope, data}) {
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
    lead: 'They count all keys together. A change applies from the next request on.',
    body: limitFields(former),
    onSubmit: submit,
    close: app.closeDialog,
  }));
}

/** The limit as it is set, without its raises. */
function limitOf({max, raised, mode, warn_at: warnAt}) {
  const set = Number((max - (raised ?? 0)).toFixed(6));
  return limitValue({max: set, mode, warn_at: warnAt});
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

const textOf = (value) => (value === undefined || value === null ? '' : String(value));

function numberOr(text) {
  const number = Number(text.replace(/^[$+]+|,(?=\d{3})/g, ''));
  return text.trim() && Number.isFinite(number) ? number : text;
}
