/**
 * Fields have a label, a hint and a place for their error.
 *
 *   field({label, hint, name, control})        any control; its id is `field-NAME`
 *   textField({label, name, value, hint, type, placeholder, required, autocomplete, list})
 *   selectField({label, name, value, options, hint, onChange})   options: ['a'] or [{value, label}]
 *   checkField({label, name, checked, hint})
 *   choice({label, name, value, options, onChange})              one of few, as a row of buttons
 *   formError()                                 where a form says what went wrong
 *   onSubmit(async (values, form) => {…})       for <form @submit=${…}>: disables the form while it
 *                                               runs; an ApiError marks the field of its `param`
 *   filter({label, name, value, options, onChange, set})         a small select for filter rows;
 *                                               coloured if `set`, else if it has a value
 */

import {html, nothing} from '../vendor/lit-html.js';

export const field = ({label, hint = nothing, name, control}) => html`
  <div class="field">
    <label for="field-${name}">${label}</label>
    ${control}
    ${hint === nothing ? nothing : html`<p class="hint" id="hint-${name}">${hint}</p>`}
    <p class="field-error" id="error-${name}"></p>
  </div>
`;

export const textField = ({label, name, value = '', hint = nothing, type = 'text', placeholder = '', required = false, autocomplete = 'off', list = nothing}) =>
  field({
    label,
    hint,
    name,
    control: html`<input
      id="field-${name}"
      name=${name}
      type=${type}
      .value=${value}
      placeholder=${placeholder}
      ?required=${required}
      autocomplete=${autocomplete}
      list=${list}
      spellcheck="false"
      aria-describedby="hint-${name} error-${name}"
    />`,
  });

export const selectField = ({label, name, value, options, hint = nothing, onChange}) =>
  field({label, hint, name, control: select({id: `field-${name}`, name, value, options, onChange})});

export const checkField = ({label, name, checked = false, hint = nothing}) => html`
  <div class="field check">
    <input id="field-${name}" name=${name} type="checkbox" .checked=${checked} />
    <label for="field-${name}">${label}</label>
    ${hint === nothing ? nothing : html`<p class="hint">${hint}</p>`}
  </div>
`;

const optionOf = (option) => (typeof option === 'string' ? {value: option, label: option} : option);

const select = ({id, name, value, options, onChange}) => html`
  <select id=${id} name=${name} @change=${(event) => onChange?.(event.target.value)}>
    ${options.map(optionOf).map(
      (option) => html`<option value=${option.value} .selected=${option.value === value}>${option.label}</option>`,
    )}
  </select>
`;

export const filter = ({label, name, value, options, onChange, set = Boolean(value)}) => html`
  <div class="filter ${set ? 'set' : ''}">
    <label for="filter-${name}">${label}</label>
    ${select({id: `filter-${name}`, name, value, options, onChange})}
  </div>
`;

export const choice = ({label, name, value, options, onChange}) => html`
  <fieldset class="choice">
    <legend class="hidden">${label}</legend>
    ${options.map(optionOf).map(
      (option) => html`
        <label>
          <input
            type="radio"
            name=${name}
            value=${option.value}
            .checked=${option.value === value}
            @change=${() => onChange(option.value)}
          /><span>${option.label}</span>
        </label>
      `,
    )}
  </fieldset>
`;

export const formError = () => html`<p class="form-error" role="alert"></p>`;

export const onSubmit = (run) => async (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  const values = Object.fromEntries(new FormData(form));
  const buttons = form.querySelectorAll('button');
  clearErrors(form);
  setBusy(form, buttons, true);
  try {
    await run(values, form);
  } catch (error) {
    if (error.name === 'AbortError') return;
    showError(form, error);
  } finally {
    setBusy(form, buttons, false);
  }
};

function setBusy(form, buttons, busy) {
  form.toggleAttribute('aria-busy', busy);
  for (const button of buttons) button.disabled = busy;
}

function clearErrors(form) {
  for (const each of form.querySelectorAll('.field-error, .form-error')) each.textContent = '';
  for (const each of form.querySelectorAll('[aria-invalid]')) each.removeAttribute('aria-invalid');
}

/** At the field that the error names, such as `limits.usd_per_month`, else at the form's end. */
function showError(form, error) {
  const name = error.param;
  const found = name ? form.elements[name] : null;
  const control = found instanceof RadioNodeList ? found[0] : found; // of several, the first
  const place = control ? form.querySelector(`#error-${CSS.escape(name)}`) : null;
  (place ?? form.querySelector('.form-error')).textContent = error.message;
  if (!place) return;
  control.closest('details')?.setAttribute('open', '');
  control.setAttribute('aria-invalid', 'true');
  control.focus();
}
