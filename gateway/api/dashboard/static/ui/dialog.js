/**
 * The contents of the page's one <dialog>: app.dialog(template) opens it, app.closeDialog() closes
 * it, and so do Escape and a click beside it. Give a function instead of a template if the
 * contents change while it is open; app.update() renders it again.
 *
 *   dialog({title, lead, body, onSubmit, submit, danger, close, actions})
 *       a titled box. With onSubmit (see ui/form.js) the body is a form, and `submit` is the text
 *       of its button; close: app.closeDialog
 *   confirm(app, {title, text, action, danger, run})
 *       asks first, then calls run() and closes; an error is shown and can be tried again
 */

import {html, nothing} from '../vendor/lit-html.js';
import {formError, onSubmit as submitting} from './form.js';
import {icon} from './icons.js';

export function dialog({title, lead = nothing, body, onSubmit, submit = 'Save', danger = false, close, actions = nothing}) {
  const inside = html`
    <header class="dialog-head">
      <h2 id="dialog-title">${title}</h2>
      <button type="button" class="icon-button" aria-label="Close" @click=${close}>${icon('close')}</button>
    </header>
    <div class="dialog-body">
      ${lead === nothing ? nothing : html`<p class="lead">${lead}</p>`} ${body}
      ${onSubmit ? formError() : nothing}
    </div>
    <footer class="dialog-foot">
      ${actions}
      ${onSubmit
        ? html`<button type="button" class="button" @click=${close}>Cancel</button>
            <button class="button ${danger ? 'danger' : 'primary'}">${submit}</button>`
        : nothing}
    </footer>
  `;
  return onSubmit
    ? html`<form @submit=${onSubmit}>${inside}</form>`
    : html`<div>${inside}</div>`;
}

export function confirm(app, {title, text, action, danger = true, run}) {
  const confirmed = submitting(async () => {
    await run();
    app.closeDialog();
  });
  const close = app.closeDialog;
  app.dialog(dialog({title, body: html`<p>${text}</p>`, onSubmit: confirmed, submit: action, danger, close}));
}
