/**
 * The frame of a view: its heading, its links and buttons, and its states.
 *
 *   page({
 *     title: 'Spend', lead: 'one sentence' | template,
 *     json: href, csv: href,            links to the same data; optional
 *     rows: [name, (data) => rows],     for lists, instead of csv: the file's name, and the rows to save
 *     actions: template,                buttons before those; optional, and may come with the data
 *     filters: template,                a row below the heading; optional
 *     view,                             the argument of render(): data, error, refresh, …
 *     skeleton: template,               shown until the first data arrive
 *     content: (data) => template,
 *   })
 *
 * Until data arrive it shows `skeleton`; if the first load fails, the error with a retry; if a
 * refresh fails, the old data with a banner above them.
 *
 *   card({title, note, actions, body, wide})   a titled box
 *   tile({label, value, note, level})          one figure
 */

import {html, nothing} from '../vendor/lit-html.js';
import {banner, failure, storeBanner} from './feedback.js';
import {icon} from './icons.js';

export const page = ({title, lead = nothing, json, csv, rows, actions = nothing, filters = nothing, view, skeleton, content}) => html`
  <header class="page-head">
    <div class="page-title">
      <h1 tabindex="-1">${title}</h1>
      ${lead === nothing ? nothing : html`<p class="lead">${lead}</p>`}
    </div>
    ${actions === nothing ? nothing : html`<div class="row page-actions">${actions}</div>`}
    <div class="row nowrap page-tools">
      ${json ? dataLink('JSON', json) : nothing} ${csv ? dataLink('CSV', csv) : nothing} ${rows ? saveButton(rows, view) : nothing}
      <button class="icon-button" aria-label="Refresh" title="Refresh" @click=${view.refresh}>
        ${icon('refresh')}
      </button>
    </div>
  </header>
  ${filters === nothing ? nothing : html`<div class="filters">${filters}</div>`}
  ${body(view, skeleton, content)}
`;

const dataLink = (label, href) =>
  html`<a class="button quiet" href=${href} target="_blank" rel="noopener">${label}</a>`;

const saveButton = (rows, {data, app}) =>
  html`<button class="button quiet" title="Save these rows" ?disabled=${!data || !rows[1](data).length} @click=${() => saveCsv(rows, data, app)}>CSV</button>`;

async function saveCsv([name, rowsOf], data, app) {
  try {
    const {saveRows} = await import('../lib/csv.js');
    saveRows(name, rowsOf(data));
  } catch {
    app.toast('The gateway does not answer, so nothing was saved.', 'fault');
  }
}

function body(view, skeleton, content) {
  const {data, error, refresh} = view;
  if (data === undefined) {
    if (error?.storeDown) return storeBanner(error, again(refresh));
    return error ? failure(error, refresh) : skeleton;
  }
  return html`${error ? staleBanner(error, refresh) : nothing} ${content(data)}`;
}

const staleBanner = (error, refresh) =>
  error.storeDown
    ? storeBanner(error, again(refresh))
    : banner({
        level: 'warning',
        title: 'These data are not the newest.',
        text: error.message,
        action: again(refresh),
      });

const again = (refresh) => html`<button class="button small" @click=${refresh}>Try again</button>`;

export const card = ({title, note = nothing, actions = nothing, body, wide = false}) => html`
  <section class="card ${wide ? 'wide' : ''}">
    ${title
      ? html`<header class="card-head">
          <h2>${title}</h2>
          ${note === nothing ? nothing : html`<span class="note">${note}</span>`}
          <div class="row end">${actions}</div>
        </header>`
      : nothing}
    ${body}
  </section>
`;

export const tile = ({label, value, note = nothing, level = ''}) => html`
  <div class="tile ${level}">
    <span class="tile-label">${label}</span>
    <strong class="tile-value">${value}</strong>
    <span class="tile-note">${note}</span>
  </div>
`;
