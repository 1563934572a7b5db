/** Events as a list: what happened, to whom, and what can be done about it. */

import {html, nothing} from '../vendor/lit-html.js';
import {ago, fullTime} from '../lib/format.js';
import {amountLeft} from '../lib/limits.js';
import {link} from '../lib/router.js';
import {badge} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';
import {openRaise} from './dialogs.js';

export const KINDS = {
  asked_for_more: {label: 'Asked for more', icon: 'plus', level: 'info'},
  limit_exhausted: {label: 'Budget used up', icon: 'alert', level: 'fault'},
  limit_crossed: {label: 'Budget warning', icon: 'spend', level: 'warning'},
  projected_over: {label: 'Budget will not last', icon: 'clock', level: 'warning'},
  spike: {label: 'Unusual spending', icon: 'bolt', level: 'warning'},
  revoked_key_in_use: {label: 'Revoked key in use', icon: 'key', level: 'fault'},
  model_retires: {label: 'Model retires', icon: 'images', level: 'warning'},
  weekly_digest: {label: 'Weekly digest', icon: 'table', level: ''},
};

const UNKNOWN = {icon: 'events', level: ''};

/** Kinds that a raise can answer. */
const RAISABLE = new Set(['asked_for_more', 'limit_exhausted', 'limit_crossed', 'projected_over']);

export const eventList = (view, events) => html`<ol class="timeline">${events.map((event) => item(view, event))}</ol>`;

function item(view, event) {
  const {label = event.kind, icon: name, level} = KINDS[event.kind] ?? UNKNOWN;
  // The lines after the first list who spent most; the details have them.
  const [sentence, ...more] = event.text.split('\n');
  return html`
    <li class="timeline-item">
      <span class="timeline-icon ${level}">${icon(name)}</span>
      <div class="timeline-text">
        <p>${badge(label, level || 'neutral')} ${sentenceOf(sentence, event.data)}</p>
        ${more.map((line) => html`<p class="note">${line}</p>`)}
        <div class="row timeline-actions">${actions(view, event)} ${details(event.data)}</div>
      </div>
      <time class="note" title=${fullTime(event.time)}>${ago(event.time)}</time>
    </li>
  `;
}

const details = (data) => html`
  <details class="changes">
    <summary>Details</summary>
    <pre class="json" tabindex="0" aria-label="The event as JSON">${JSON.stringify(data, null, 2)}</pre>
  </details>
`;

function actions(view, {kind, data}) {
  if (!RAISABLE.has(kind) || !data.limit) return nothing;
  const style = kind === 'asked_for_more' ? 'primary' : '';
  return html`<button class="button small ${style}" @click=${() => raise(view, data)}>${icon('bolt')} Raise</button>`;
}

/** The gateway's sentence, whose first words are a link to what it is about. */
function sentenceOf(sentence, {scope = ''}) {
  const [kind, ...rest] = scope.split(':');
  const [words, href] = SUBJECTS[kind]?.(rest.join(':')) ?? [];
  if (!words || !sentence.startsWith(words)) return sentence;
  return html`<a href=${href}>${words}</a>${sentence.slice(words.length)}`;
}

/** The first words of a sentence by the kind of its scope, as `gateway/billing/alerts.py` writes them. */
const SUBJECTS = {
  key: (name) => [`Key ${name}`, link('keys', {search: name, state: 'all'})],
  team: (name) => [`Team ${name}`, link('teams', {team: name})],
  everyone: () => ['Everyone', link('teams')],
  model: (name) => [name, link('spend', {model: name})],
};

/** The limit that keeps the key from buying may be its team's, or that of everyone. */
const raise = (view, data) =>
  openRaise(view, scopeToRaise(data), {limit: data.limit, amount: data.amount, reason: data.reason ?? ''});

function scopeToRaise({scope, team, limits = []}) {
  if (!limits.length) return scope;
  const [first] = [...limits].sort((a, b) => amountLeft(a) - amountLeft(b));
  return {team: `team:${team}`, everyone: 'everyone'}[first.scope] ?? scope;
}
