/**
 * What a view shows instead of data, or about them.
 *
 *   empty({icon, title, text, action})      nothing is there; what to do. action: a template
 *   failure(error, retry)                   the first load failed; retry: a function
 *   banner({level, title, text, action})    a line across the view; level: info|warning|fault
 *   storeBanner(error, action)              the banner for a store that is down, else nothing
 *   skeleton('lines'|'table'|'tiles'|'chart'|'cards', n)   a first load, in the final size
 *   badge(text, level)                      level: neutral|info|ok|warning|fault
 *   state(level, text)                      a dot and its text; level: ok|warning|fault
 *   toasts(list, close)                     used by the app: views call app.toast(text, level)
 */

import {html, nothing} from '../vendor/lit-html.js';
import {icon} from './icons.js';

export const empty = ({icon: name = 'search', title, text, action = nothing}) => html`
  <div class="empty">
    <span class="empty-icon">${icon(name)}</span>
    <h2>${title}</h2>
    <p>${text}</p>
    ${action === nothing ? nothing : html`<div class="row center">${action}</div>`}
  </div>
`;

export const failure = (error, retry) => html`
  <div class="empty" role="alert">
    <span class="empty-icon fault">${icon('alert')}</span>
    <h2>This could not be loaded</h2>
    <p>${error.message}</p>
    <div class="row center">
      <button class="button" @click=${retry}>${icon('refresh')} Try again</button>
    </div>
  </div>
`;

export const banner = ({level = 'info', title, text = '', action = nothing}) => html`
  <div class="banner ${level}" role=${level === 'fault' ? 'alert' : 'status'}>
    ${icon(level === 'info' ? 'bolt' : 'alert')}
    <div class="banner-text"><strong>${title}</strong> ${text}</div>
    ${action}
  </div>
`;

const STILL_WORKS =
  'Keys without limits that were used within the last hour go on making images. Other requests, ' +
  'reports and changes wait for the store. This page comes back by itself.';

export const storeBanner = (error, action = nothing) =>
  error?.storeDown
    ? banner({level: 'fault', title: 'The store is unavailable.', text: STILL_WORKS, action})
    : nothing;

const SHAPES = {
  lines: () => html`<span class="bone line"></span>`,
  table: () => html`<span class="bone table-row"></span>`,
  tiles: () => html`<span class="bone tile"></span>`,
  chart: () => html`<span class="bone chart-box"></span>`,
  cards: () => html`<span class="bone card-box"></span>`,
};

export const skeleton = (shape, n = 1) => html`
  <div class="skeleton ${shape}" aria-hidden="true">
    ${Array.from({length: n}, SHAPES[shape])}
  </div>
`;

export const badge = (text, level = 'neutral') => html`<span class="badge ${level}">${text}</span>`;

const SAID = {ok: 'OK', warning: 'Warning', fault: 'Fault'};

export const state = (level, text) => html`
  <span class="state ${level}"><span class="dot" role="img" aria-label=${SAID[level] ?? level}></span>${text}</span>
`;

export const toasts = (list, close) => html`
  <div class="toasts" role="status" aria-live="polite">
    ${list.map(
      (toast) => html`
        <div class="toast ${toast.level}">
          ${icon(toast.level === 'ok' ? 'check' : 'alert')}
          <span>${toast.text}</span>
          <button class="icon-button" aria-label="Dismiss" @click=${() => close(toast)}>
            ${icon('close')}
          </button>
        </div>
      `,
    )}
  </div>
`;
