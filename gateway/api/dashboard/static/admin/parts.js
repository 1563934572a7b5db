/**
 * Small parts that several of the admin's views have.
 *
 *   searchBox({label, placeholder, value, setQuery, name})   writes `search` into the URL
 *   pager({view, shown, next, name})                         pages of a list with a cursor
 *   menu(label, items)                                       a button with a menu of actions
 *   stateBadge(key)                                          active, expiring, expired, revoked, declared
 *   attempt(promise)                                         its value, or {error}: for parts of a page
 */
import {html, nothing} from '../vendor/lit-html.js';
import {ago, count, day, fullTime} from '../lib/format.js';
import {keyState} from '../lib/keys.js';
import {badge} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';

const TYPING_MS = 250;

let typing = 0;

export const searchBox = ({label, placeholder, value, setQuery, name = 'search'}) => html`
  <search class="search">
    ${icon('search')}
    <input type="search" aria-label=${label} placeholder=${placeholder} .value=${value} autocomplete="off" spellcheck="false"
      @input=${(event) => later(() => setQuery({[name]: event.target.value.trim(), after: ''}, {replace: true}))} />
  </search>
`;

function later(run) {
  clearTimeout(typing);
  typing = setTimeout(run, TYPING_MS);
}

/** The cursors of pages that were left with "Next": each leads back to the one before. */
const former = new Map();

/** @param {{view: any, shown: number, next: string|null, noun?: string}} options */
export function pager({view, shown, next, noun = 'shown'}) {
  const {query, setQuery} = view;
  if (!query.after && !next) return nothing;
  const forward = () => {
    former.set(next, query.after);
    turn(setQuery, next);
  };
  const back = former.has(query.after) ? 'Previous' : 'First page';
  return html`
    <nav class="pager" aria-label="Pages">
      <span class="note">${count(shown)} ${noun}</span>
      <button class="button" ?disabled=${!query.after} @click=${() => turn(setQuery, former.get(query.after) ?? '')}>${back}</button>
      <button class="button" ?disabled=${!next} @click=${forward}>Next</button>
    </nav>
  `;
}

function turn(setQuery, after) {
  setQuery({after});
  scrollTo(0, 0);
}

/** @param {{label: string, icon: string, run?: () => void, href?: string, danger?: boolean, hidden?: boolean}[]} items */
export const menu = (label, items) => html`
  <details class="menu" @toggle=${place} @focusout=${closeOnLeave} @keydown=${closeOnEscape}>
    <summary class="icon-button" aria-label=${label} title="Actions">${icon('more')}</summary>
    <ul>${items.filter((item) => !item.hidden).map(menuItem)}</ul>
  </details>
`;

const menuItem = ({label, icon: name, run, href, danger}) => html`
  <li>
    ${href
      ? html`<a href=${href}>${icon(name)} ${label}</a>`
      : html`<button class=${danger ? 'danger' : ''} @click=${(event) => runFrom(event, run)}>${icon(name)} ${label}</button>`}
  </li>
`;

/** The focus returns to the menu's button when a dialog that was opened here closes. */
function runFrom(event, run) {
  const details = event.currentTarget.closest('details');
  details.querySelector('summary').focus();
  details.open = false;
  run();
}

/** Upwards where there is no room below. */
function place({currentTarget: details}) {
  if (!details.open) return;
  const list = details.querySelector('ul');
  details.classList.remove('up');
  details.classList.toggle('up', list.getBoundingClientRect().bottom > innerHeight);
}

function closeOnLeave(event) {
  if (!event.currentTarget.contains(event.relatedTarget)) event.currentTarget.open = false;
}

function closeOnEscape(event) {
  if (event.key !== 'Escape' || !event.currentTarget.open) return;
  event.stopPropagation();
  event.currentTarget.querySelector('summary').focus();
  event.currentTarget.open = false;
}

const STATES = {
  active: () => badge('Active', 'ok'),
  expiring: ({expires_at: at}) => html`<span title=${fullTime(at)}>${badge(`Expires ${ago(at)}`, 'warning')}</span>`,
  expired: ({expires_at: at}) => html`<span title=${fullTime(at)}>${badge(`Expired ${day(at)}`, 'fault')}</span>`,
  revoked: ({revoked_at: at}) => html`<span title=${fullTime(at)}>${badge(`Revoked ${day(at)}`, 'neutral')}</span>`,
};

export const stateBadge = (key) => html`<span class="row badges">${STATES[keyState(key)](key)}${declaredBadge(key)}</span>`;

export const declaredBadge = ({declared_in: file}) =>
  file ? html`<span title="${file} declares it: change it there">${badge('In file', 'info')}</span>` : nothing;

export async function attempt(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === 'AbortError' || error.status === 401) throw error;
    return {error};
  }
}
