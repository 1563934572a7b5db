/** "Ask for more": tells the operators that a limit is too low. It works with the budget used up. */
import {html} from '../vendor/lit-html.js';
import {get, post} from '../lib/http.js';
import {inOrder, limitLabel} from '../lib/limits.js';
import {dialog} from '../ui/dialog.js';
import {field, onSubmit, selectField, textField} from '../ui/form.js';

const MAX_REASON = 500;

const SAID = {
  sent: ['Your request was sent to the operators.', 'ok'],
  already_sent: ['You have asked already; the operators have it.', 'ok'],
  kept: [
    'The operators see it under Events. No webhook tells them at once, so write to them too.',
    'warning',
  ],
};

/** Opens the dialog. Without `limits` it reads those of the key. */
export async function askForMore(app, {limits, limit} = {}) {
  const found = limits ?? (await get('/usage', {since: '0d'})).limits;
  const names = [...new Set(inOrder(found).map((each) => each.limit))];
  if (!names.length) return app.toast('This key has no limit.', 'warning');
  app.dialog(form(app, names, limit ?? names[0]));
}

function form(app, names, limit) {
  return dialog({
    title: 'Ask for more',
    lead: 'The operators of this gateway get your request, and decide.',
    submit: 'Send',
    close: app.closeDialog,
    onSubmit: onSubmit((values) => send(app, values)),
    body: html`
      ${selectField({
        label: 'Limit',
        name: 'limit',
        value: limit,
        options: names.map((name) => ({value: name, label: limitLabel(name)})),
      })}
      ${textField({
        label: 'How much more',
        name: 'amount',
        type: 'number',
        hint: 'Optional. US dollars, images or requests, as the limit counts.',
      })}
      ${field({
        label: 'Why',
        name: 'reason',
        hint: 'Optional. What you are working on, and until when.',
        control: html`<textarea id="field-reason" name="reason" rows="3" maxlength=${MAX_REASON}></textarea>`,
      })}
    `,
  });
}

async function send(app, {limit, amount, reason}) {
  const {status} = await post('/usage/ask-for-more', {
    limit,
    ...(amount ? {amount: Number(amount)} : {}),
    ...(reason ? {reason} : {}),
  });
  app.closeDialog();
  app.toast(...(SAID[status] ?? SAID.sent));
}
