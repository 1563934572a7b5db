/** The dialogs that make, change and remove a team. */

import {html} from '../vendor/lit-html.js';
import {del, get, patch, post} from '../lib/http.js';
import {patchFields, teamFields} from '../lib/key_form.js';
import {confirm, dialog} from '../ui/dialog.js';
import {onSubmit, textField} from '../ui/form.js';
import {labelsField, modelsField, scopeField} from './key_dialogs.js';
import {atLimit, limitFields} from './limit_dialogs.js';

const pathOf = (team) => `/admin/teams/${encodeURIComponent(team.name)}`;

export const makeTeam = (view) =>
  openForm(view, {}, {
    title: 'Make a team',
    submit: 'Make the team',
    save: (fields) => post('/admin/teams', fields),
    said: (made) => `Team ${made.name} is made. Name it in its keys.`,
  });

export const editTeam = (view, team) =>
  openForm(view, team, {
    title: `Edit team ${team.name}`,
    submit: 'Save',
    save: (fields) => saveChanges(team, fields),
    said: (changed) => (changed ? `Team ${changed.name} has changed.` : 'Nothing has changed.'),
  });

function saveChanges(team, fields) {
  const changes = patchFields({...team, name: undefined}, {...fields, name: undefined});
  return Object.keys(changes).length ? patch(pathOf(team), changes) : null;
}

export function removeTeam({app, refresh, navigate}, team) {
  const {keys} = team;
  const text = keys
    ? `It has ${keys} active ${keys === 1 ? 'key' : 'keys'}: revoke them first, or move them to another team.`
    : 'Its limits, models and labels are gone at once. What its keys spent stays in the books.';
  confirm(app, {
    title: `Remove team ${team.name}?`,
    text,
    action: `Remove ${team.name}`,
    run: async () => {
      await del(pathOf(team));
      app.toast(`Team ${team.name} is removed.`);
      navigate ? navigate() : refresh();
    },
  });
}

async function openForm({app, refresh}, team, {title, submit, save, said}) {
  const models = await get('/models');
  const run = onSubmit(async (_, form) => {
    const saved = await atLimit(() => save(teamFields(new FormData(form))));
    app.closeDialog();
    app.toast(said(saved));
    refresh();
  });
  app.dialog(dialog({title, body: teamForm(team, models.data), onSubmit: run, submit, close: app.closeDialog}));
}

const teamForm = (team, models) => html`
  <div class="fields two">
    ${team.name ? '' : textField({label: 'Name', name: 'name', required: true, placeholder: 'art', hint: 'Keys join by naming it.'})}
    ${scopeField(team.scope, 'the gateway’s')}
  </div>
  ${limitFields(team.limits)} ${modelsField(models, team.models ?? [])} ${labelsField(team.labels)}
`;
