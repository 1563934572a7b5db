/**
 * The audit as a list of sentences, with before and after behind each.
 */
import {html, nothing} from '../vendor/lit-html.js';
import {actorText, detail, hasChanges, thing, verb, visible} from '../lib/audit.js';
import {differences} from '../lib/diff.js';
import {ago, day, fullTime} from '../lib/format.js';
import {link} from '../lib/router.js';
import {icon} from '../ui/icons.js';
import {card} from '../ui/page.js';

const ICONS = {
  create: 'plus',
  change: 'edit',
  rotate: 'refresh',
  revoke: 'trash',
  remove: 'trash',
  raise: 'bolt',
  raise_end: 'clock',
  purge: 'trash',
  takedown: 'trash',
  restore: 'download',
};

/** Actions that take something away. */
const REMOVALS = new Set(['revoke', 'remove', 'purge', 'takedown']);

export const auditList = (events) => html`<ol class="timeline">${events.map(item)}</ol>`;

/**
 * A list for each day, newest first, below the day's name.
 * @param {{time: number}[]} events @param {(events: any[]) => any} listOf
 */
export function byDay(events, listOf) {
  const days = Map.groupBy(events, (event) => day(event.time));
  return [...days].map(([name, of]) => card({title: name === day(Date.now() / 1000) ? 'Today' : name, body: listOf(of)}));
}

function item(event) {
  const action = event.action.split('.').at(-1);
  return html`
    <li class="timeline-item">
      <span class="timeline-icon ${REMOVALS.has(action) ? 'warning' : ''}">${icon(ICONS[action] ?? 'edit')}</span>
      <div class="timeline-text">
        <p>
          <span class="who">${actorText(event)}</span> ${verb(event)} ${thingLink(event)}${detailOf(event)}
        </p>
        ${hasChanges(event) ? changes(event) : nothing}
      </div>
      <time class="note" title=${fullTime(event.time)}>${ago(event.time)}</time>
    </li>
  `;
}

function thingLink(event) {
  const {kind, label, view, query} = thing(event);
  const name = view ? html`<a href=${link(view, query)}>${label}</a>` : html`<strong>${label}</strong>`;
  return html`${kind ? `${kind} ` : ''}${name}`;
}

const detailOf = (event) => (detail(event) ? html`<span class="detail">: ${detail(event)}</span>` : nothing);

const changes = (event) => html`
  <details class="changes">
    <summary>Details</summary>
    ${diffTable(visible(event.before), visible(event.after))}
  </details>
`;

/** Fields that differ: what was there is red, what is there now is green, and signs say so too. */
const diffTable = (before, after) => html`
  <dl class="diff">
    ${differences(before, after).map(
      (each) => html`<dt>${each.path}</dt>
        <dd>
          ${each.kind === 'added' ? nothing : html`<del>${valueText(each.path, each.before)}</del>`}
          ${each.kind === 'removed' ? nothing : html`<ins>${valueText(each.path, each.after)}</ins>`}
        </dd>`,
    )}
  </dl>
`;

function valueText(path, value) {
  const isTime = /_at$/.test(path) && typeof value === 'number';
  if (isTime) return `${day(value)} (${value})`;
  return typeof value === 'string' ? value : JSON.stringify(value);
}
