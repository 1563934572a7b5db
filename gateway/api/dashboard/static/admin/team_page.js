/** The page of one team: its limits, its use by key, its settings and its audit. */

import {html, nothing} from '../vendor/lit-html.js';
import {count, fullTime} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {readOnlyReason} from '../lib/keys.js';
import {link} from '../lib/router.js';
import {banner, skeleton} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';
import {card, page} from '../ui/page.js';
import {editTeam, removeTeam} from './dialogs.js';
import {limitCard, loadLimits} from './limits.js';
import {attempt, declaredBadge} from './parts.js';
import {auditCard, labels, loadAudit, orError} from './subject.js';
import {loadUsage, usageCard} from './usage.js';

const pathOf = (name) => `/admin/teams/${encodeURIComponent(name)}`;

export async function loadTeam(name, signal) {
  const [team, own, everyone, usage, audit] = await Promise.all([
    get(pathOf(name), {}, {signal}),
    attempt(loadLimits(`team:${name}`, signal)),
    attempt(loadLimits('everyone', signal)),
    attempt(loadUsage({team: name}, 'key', signal)),
    attempt(loadAudit('team', name, null, signal)),
  ]);
  return {team, own, everyone, usage, audit};
}

export const teamPage = (view) =>
  page({
    title: view.query.team,
    lead: html`<a class="back" href=${link('teams')}>${icon('back')} All teams</a> ${view.data ? summary(view.data.team) : nothing}`,
    json: href(pathOf(view.query.team)),
    actions: view.data && !readOnlyReason(view.data.team) ? actions(view, view.data.team) : nothing,
    view,
    skeleton: html`<div class="stack">${skeleton('tiles', 2)}${skeleton('chart')}</div>`,
    content: (data) => contents(view, data),
  });

const summary = (team) => html`
  ${declaredBadge(team)}
  <a href=${link('keys', {search: team.name})}>${count(team.keys)} active ${team.keys === 1 ? 'key' : 'keys'}</a>
`;

const actions = (view, team) => html`
  <button class="button" @click=${() => editTeam(view, team)}>${icon('edit')} Edit</button>
  <button class="button quiet-danger" @click=${() => removeTeam({...view, navigate: () => view.app.navigate('teams')}, team)}>
    ${icon('trash')} Remove
  </button>
`;

function contents(view, {team, own, everyone, usage, audit}) {
  const reason = readOnlyReason(team);
  return html`
    ${reason ? banner({title: 'Read only.', text: reason}) : nothing}
    <div class="stack">
      <div class="limit-cards">
        ${orError(own, 'This team', () => limitCard({title: 'This team', note: 'all of its keys together', limits: own, view}))}
        ${orError(everyone, 'Everyone', () => limitCard({title: 'Everyone', note: 'all keys together', limits: everyone, view}))}
      </div>
      ${orError(usage, 'Last 30 days', () => usageCard(usage, {linkOf: (name) => link('keys', {search: name, state: 'all'})}))}
      <div class="grid">
        <div class="half">${settingsCard(team)}</div>
        <div class="half">${auditCard(audit)}</div>
      </div>
    </div>
  `;
}

const settingsCard = (team) =>
  card({
    title: 'Settings',
    body: html`<dl class="pairs">
      <dt>Models</dt><dd>${team.models?.join(', ') ?? 'all'}</dd>
      <dt>Labels</dt><dd>${labels(team.labels)}</dd>
      <dt>Scope</dt><dd>${team.scope ?? html`<span class="note">default</span>`}</dd>
      <dt>Made</dt><dd>${team.created_at ? fullTime(team.created_at) : 'not made here: keys or a file name it'}</dd>
    </dl>`,
  });
