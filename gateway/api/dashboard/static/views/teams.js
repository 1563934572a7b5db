/** Teams and everyone: limits that count many keys together; a page for each team (`?team=NAME`). */

import {html, nothing} from '../vendor/lit-html.js';
import {changeLimits, editTeam, makeTeam, openRaise, removeTeam} from '../admin/dialogs.js';
import {isLimit, limitCard, limitsCell, loadLimits, raiseBanner} from '../admin/limits.js';
import {attempt, declaredBadge, menu, searchBox} from '../admin/parts.js';
import {count} from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {readOnlyReason} from '../lib/keys.js';
import {link} from '../lib/router.js';
import {badge, banner, empty, skeleton} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';
import {page} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {table} from '../ui/table.js';

await stylesheet('admin');

export const teams = {
  refreshSeconds: 30,
  defaults: {search: '', team: '', scope: '', limit: ''},
  partOf: (query) => query.team,
  load: (query, {signal}) => (query.team ? loadOne(query.team, signal) : loadList(signal)),
  render: (view) => (view.query.team ? one(view) : list(view)),
};

/** The page of one team, with its chart: loaded when a team is first opened. */
let teamPages;

async function loadOne(name, signal) {
  teamPages ??= await import('../admin/team_page.js');
  return teamPages.loadTeam(name, signal);
}

const one = (view) => teamPages?.teamPage(view) ?? page({title: 'Team', view, skeleton: skeleton('tiles', 4)});

async function loadList(signal) {
  const [{data}, everyone] = await Promise.all([
    get('/admin/teams', {with: 'limits'}, {signal}),
    attempt(loadLimits('everyone', signal)),
  ]);
  return {teams: data, everyone};
}

const list = (view) =>
  page({
    title: 'Teams',
    lead: 'Limits over many keys together: those of a team, and those of everyone.',
    json: href('/admin/teams', {with: 'limits'}),
    rows: ['teams', ({teams}) => found(teams, view.query.search)],
    actions: html`<button class="button primary" @click=${() => makeTeam(view)}>${icon('plus')} Make a team</button>`,
    view,
    skeleton: html`<div class="stack">${skeleton('tiles', 1)}${skeleton('table', 6)}</div>`,
    content: (data) => contents(view, data),
  });

const contents = (view, {teams: all, everyone}) => html`
  ${view.query.limit ? raiseBanner(view, view.query.scope || `team:${view.query.search}`, view.query.limit) : nothing}
  <div class="stack">
    ${everyoneCard(view, everyone)}
    <div class="stack small">
      <div class="filters">${searchBox({label: 'Search teams', placeholder: 'Name or label', value: view.query.search, setQuery: view.setQuery})}</div>
      ${table({caption: 'Teams', columns: columns(view), rows: found(all, view.query.search), rowClass: () => 'key-row', cards: true, empty: nothingFound(view, all)})}
    </div>
  </div>
`;

function everyoneCard(view, everyone) {
  if (everyone.error) return banner({level: 'warning', title: 'The limits of everyone are unknown.', text: everyone.error.message});
  const edit = html`<button class="button small" @click=${() => changeLimits(view, everyone)}>${icon('edit')} Edit</button>`;
  return limitCard({
    title: 'Everyone',
    note: html`all keys together ${declaredBadge(everyone)}`,
    limits: everyone,
    view,
    edit: everyone.declared_in ? nothing : edit,
  });
}

function found(all, search) {
  const text = search.toLowerCase();
  return all.filter(({name, labels}) => `${name} ${Object.entries(labels ?? {}).join(' ')}`.toLowerCase().includes(text));
}

const columns = (view) => [
  {name: 'name', label: 'Team', cell: nameCell},
  {name: 'keys', label: 'Keys', cell: keysCell},
  {name: 'limits', label: 'Limits', cell: limitsCell},
  {name: 'models', label: 'Models', hide: true, cell: ({models}) => html`<span class="note">${models?.join(', ') ?? 'all'}</span>`},
  {name: 'actions', label: 'Actions', cell: (team) => actions(view, team)},
];

const nameCell = (team) => html`
  <div class="key-name">
    <span class="row badges"><a class="name" href=${link('teams', {team: team.name})}>${team.name}</a> ${declaredBadge(team)}</span>
    <span class="row badges">${Object.entries(team.labels ?? {}).map(([name, value]) => badge(`${name}=${value}`))}</span>
  </div>
`;

const keysCell = ({name, keys}) => html`<a href=${link('keys', {search: name})}>${count(keys)} active</a>`;

const actions = (view, team) =>
  menu(`Actions for ${team.name}`, [
    {label: 'Raise a limit', icon: 'bolt', hidden: !team.used?.some(isLimit), run: () => openRaise(view, `team:${team.name}`)},
    {label: 'Edit', icon: 'edit', hidden: Boolean(readOnlyReason(team)), run: () => editTeam(view, team)},
    {label: 'Remove', icon: 'trash', danger: true, hidden: Boolean(readOnlyReason(team)), run: () => removeTeam(view, team)},
    {label: 'Its spend', icon: 'spend', href: link('spend', {team: team.name})},
  ]);

function nothingFound(view, all) {
  if (all.length) return empty({title: 'No team matches', text: 'Search for another name or label.'});
  return empty({
    icon: 'teams',
    title: 'No teams yet',
    text: 'A team gives its keys common limits, models and labels. Make one, then name it in keys.',
    action: html`<button class="button primary" @click=${() => makeTeam(view)}>Make a team</button>`,
  });
}
