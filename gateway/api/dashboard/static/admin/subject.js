/** What the pages of one key and of one team have in common. */

import {html} from '../vendor/lit-html.js';
import {eventsOf} from '../lib/audit.js';
import {get} from '../lib/http.js';
import {link} from '../lib/router.js';
import {card} from '../ui/page.js';
import {auditList} from './audit.js';

/** Events of the audit that are searched for those of one key or team. */
const MAX_EVENTS = 1000;
const SHOWN_EVENTS = 20;

/** The last events of a key or a team. */
export async function loadAudit(kind, name, since, signal) {
  const {data} = await get('/admin/audit', {limit: MAX_EVENTS, since: since ? String(since) : null}, {signal});
  return eventsOf(data, kind, name).slice(0, SHOWN_EVENTS);
}

export const auditCard = (audit) =>
  card({
    title: 'Changes',
    actions: html`<a class="button small" href=${link('events', {tab: 'audit'})}>The whole audit</a>`,
    body: audit.error
      ? html`<p class="note">${audit.error.message}</p>`
      : audit.length ? auditList(audit) : html`<p class="note">No change is recorded.</p>`,
  });

/** A part of the page that could not be loaded says so; the others are there. */
export const orError = (part, title, content) =>
  part.error ? card({title, body: html`<p class="note">${part.error.message}</p>`}) : content();

export function labels(given) {
  const pairs = Object.entries(given ?? {});
  return pairs.length ? pairs.map(([name, value]) => html`<span class="badge neutral">${name}=${value}</span> `) : 'none';
}
