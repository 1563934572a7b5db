/** The page of one key: its limits, its use, its settings and its audit. */

import {html, nothing} from '../vendor/lit-html.js';
import {ago, fullTime} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {overlapsOf, readOnlyReason} from '../lib/keys.js';
import {link} from '../lib/router.js';
import {banner, skeleton} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';
import {card, page} from '../ui/page.js';
import {editKey, revokeKey, rotateKey} from './dialogs.js';
import {limitCard, loadLimits} from './limits.js';
import {attempt, stateBadge} from './parts.js';
import {auditCard, labels, loadAudit, orError} from './subject.js';
import {loadUsage, usageCard} from './usage.js';

export async function loadKey(id, signal) {
  const key = await get(`/admin/keys/${encodeURIComponent(id)}`, {}, {signal});
  const [own, team, everyone, usage, audit] = await Promise.all([
    key.revoked_at ? null : attempt(loadLimits(`key:${key.name}`, signal)),
    key.team ? attempt(loadLimits(`team:${key.team}`, signal)) : null,
    attempt(loadLimits('everyone', signal)),
    attempt(loadUsage({key_id: id}, 'model', signal)),
    attempt(loadAudit('key', key.name, key.created_at, signal)),
  ]);
  return {key, own, team, everyone, usage, audit};
}

export const keyPage = (view) =>
  page({
    title: view.data?.key.name ?? 'Key',
    lead: html`<a class="back" href=${link('keys')}>${icon('back')} All keys</a> ${view.data ? summary(view.data.key) : nothing}`,
    json: href(`/admin/keys/${encodeURIComponent(view.query.key)}`),
    actions: view.data ? actions(view, view.data.key) : nothing,
    view,
    skeleton: html`<div class="stack">${skeleton('tiles', 3)}${skeleton('chart')}</div>`,
    content: (data) => contents(view, data),
  });

const summary = (key) => html`
  ${stateBadge(key)}
  ${key.team ? html`<span>Team <a href=${link('teams', {team: key.team})}>${key.team}</a></span>` : nothing}
  <span class="mono">${key.prefix}…</span>
  <span>${key.last_used_at ? html`last used <time title=${fullTime(key.last_used_at)}>${ago(key.last_used_at)}</time>` : 'never used'}</span>
`;

function actions(view, key) {
  if (readOnlyReason(key)) return nothing;
  return html`
    <button class="button" @click=${() => editKey(view, key)}>${icon('edit')} Edit</button>
    <button class="button" @click=${() => rotateKey(view, key)}>${icon('refresh')} Rotate</button>
    <button class="button quiet-danger" @click=${() => revokeKey(view, key)}>${icon('trash')} Revoke</button>
  `;
}

function contents(view, {key, own, team, everyone, usage, audit}) {
  const reason = readOnlyReason(key);
  return html`
    ${reason ? banner({title: 'Read only.', text: reason}) : nothing} ${overlapBanner(key)}
    <div class="stack">
      <div class="limit-cards">
        ${own ? orError(own, 'This key', () => limitCard({title: 'This key', limits: own, view})) : nothing}
        ${team ? orError(team, `Team ${key.team}`, () => limitCard({title: `Team ${key.team}`, limits: team, view})) : nothing}
        ${orError(everyone, 'Everyone', () => limitCard({title: 'Everyone', limits: everyone, view}))}
      </div>
      ${orError(usage, 'Last 30 days', () => usageCard(usage))}
      <div class="grid">
        <div class="half">${settingsCard(key)}</div>
        <div class="half">${auditCard(audit)}</div>
      </div>
    </div>
  `;
}

function overlapBanner(key) {
  const ends = key.revoked_at ? [] : overlapsOf(key);
  if (!ends.length) return nothing;
  const text = `${ends.length === 1 ? 'The former secret works' : `${ends.length} former secrets work`} until ${fullTime(Math.max(...ends))}.`;
  return banner({title: 'Rotated.', text});
}

const settingsCard = (key) =>
  card({
    title: 'Settings',
    actions: html`<a class="button small" href=${link('requests', {key: key.name, outcome: ''})}>${icon('requests')} Its requests</a>`,
    body: html`<dl class="pairs">${settings(key).map(([label, value]) => html`<dt>${label}</dt><dd>${value}</dd>`)}</dl>`,
  });

const DEFAULT = html`<span class="note">default</span>`;

const settings = (key) => [
  ['Id', html`<span class="mono">${key.id}</span>`],
  ['Made', key.created_at ? fullTime(key.created_at) : `by ${key.declared_in}`],
  ['Expires', key.expires_at ? fullTime(key.expires_at) : 'never'],
  ['Models', key.models?.join(', ') ?? 'all'],
  ['Labels', labels(key.labels)],
  ['Scope', key.scope ?? DEFAULT],
  ['Reuse', key.reuse ?? DEFAULT],
  ['Parallel', key.parallel ?? DEFAULT],
  ['Validation', key.validation ?? DEFAULT],
  ['End users', key.user_header ?? DEFAULT],
  ['Usage of hits', key.hits_report_usage === false ? 'not reported' : 'reported'],
  ['no-cache', key.allow_no_cache === false ? 'ignored' : 'heeded'],
];
