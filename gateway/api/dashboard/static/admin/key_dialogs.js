/**
 * The dialogs that make, change, rotate and revoke a key, and the one that shows its secret once.
 */
import {html, nothing} from '../vendor/lit-html.js';
import {ago, day, fullTime, zone} from '../lib/format.js';
import {del, get, patch, post} from '../lib/http.js';
import {keyFields, labelLines, lastDay, patchFields} from '../lib/key_form.js';
import {overlapsOf} from '../lib/keys.js';
import {code, secret} from '../ui/copy.js';
import {confirm, dialog} from '../ui/dialog.js';
import {banner} from '../ui/feedback.js';
import {checkField, choice, field, onSubmit, selectField, textField} from '../ui/form.js';
import {atLimit, limitFields} from './limit_dialogs.js';

const LIFETIMES = [
  {value: 'never', label: 'Never'},
  {value: '7d', label: 'In 7 days'},
  {value: '30d', label: 'In 30 days'},
  {value: '90d', label: 'In 90 days'},
  {value: '365d', label: 'In a year'},
  {value: 'date', label: 'After a day…'},
];

const OVERLAPS = [
  {value: '0', label: 'At once'},
  {value: '1h', label: 'In an hour'},
  {value: '24h', label: 'In a day'},
  {value: '7d', label: 'In 7 days'},
  {value: '30d', label: 'In 30 days'},
  {value: '90d', label: 'In 90 days'},
];

/** Opens the form for a new key. `preset`: fields that are filled in. */
export function makeKey(view, preset = {}) {
  return openForm(view, preset, {
    title: 'Make a key',
    submit: 'Make the key',
    save: (fields) => post('/admin/keys', fields),
    saved: (made, models) =>
      showSecret(view, made, models, {title: 'Key made', onClose: () => view.app.navigate('keys', {key: made.id})}),
  });
}

/** Opens the form of a key. Only what was changed is sent. */
export function editKey(view, key) {
  const {app, refresh} = view;
  return openForm(view, key, {
    title: `Edit ${key.name}`,
    submit: 'Save',
    save: (fields) => {
      const changes = patchFields(key, fields);
      return Object.keys(changes).length ? patch(`/admin/keys/${encodeURIComponent(key.id)}`, changes) : null;
    },
    saved: (changed) => {
      app.closeDialog();
      app.toast(changed ? `${changed.name} has changed.` : 'Nothing has changed.');
      if (changed) refresh();
    },
  });
}

export function rotateKey(view, key) {
  const {app, refresh} = view;
  const submit = onSubmit(async ({overlap}) => {
    const rotated = await post(`/admin/keys/${encodeURIComponent(key.id)}/rotate`, {overlap});
    showSecret(view, rotated, await loadModels(), {title: 'Secret rotated', onClose: refresh});
  });
  app.dialog(dialog({
    title: `Rotate ${key.name}`,
    lead: 'The key gets a new secret and keeps everything else: limits, use, records.',
    body: html`
      ${selectField({label: 'The former secret stops working', name: 'overlap', value: '24h', options: OVERLAPS, hint: 'Until then both work, so that clients can change without an outage.'})}
      ${overlapNote(key)}
    `,
    onSubmit: submit,
    submit: 'Rotate',
    close: app.closeDialog,
  }));
}

function overlapNote(key) {
  const ends = overlapsOf(key);
  if (!ends.length) return nothing;
  const text = `${ends.length} former ${ends.length === 1 ? 'secret works' : 'secrets work'} still, the last one until ${fullTime(Math.max(...ends))}.`;
  return html`<p class="note">${text} A key has at most five secrets at once.</p>`;
}

export function revokeKey({app, refresh}, key) {
  const used = key.last_used_at ? `It was last used ${ago(key.last_used_at)}.` : 'It was never used.';
  confirm(app, {
    title: `Revoke ${key.name}?`,
    text: `Its secrets stop working at once, in every worker, and for good. ${used} Its records and costs stay.`,
    action: `Revoke ${key.name}`,
    run: async () => {
      await del(`/admin/keys/${encodeURIComponent(key.id)}`);
      app.toast(`${key.name} is revoked.`);
      refresh();
    },
  });
}

// The form

async function openForm(view, key, {title, submit, save, saved}) {
  const {app} = view;
  const [teams, models] = await Promise.all([get('/admin/teams'), loadModels()]);
  const run = onSubmit(async (_, form) => {
    const fields = keyFields(new FormData(form), {zone: zone(), former: key});
    saved(await atField(() => save(fields)), models);
  });
  const body = keyForm(key, {teams: teams.data, models: models.data});
  app.dialog(dialog({title, body, onSubmit: run, submit, close: app.closeDialog}));
}

const loadModels = () => get('/models');

/** The API names fields by the record's names; some have another name in the form. */
async function atField(change) {
  try {
    return await atLimit(change);
  } catch (error) {
    if (error.param === 'expires_at') error.param = 'expiry';
    throw error;
  }
}

const keyForm = (key, {teams, models}) => html`
  <div class="fields two">
    ${textField({label: 'Name', name: 'name', value: key.name ?? '', required: true, placeholder: 'web-shop', hint: 'Letters, digits, spaces and . _ @ + : / -'})}
    ${textField({label: 'Team', name: 'team', value: key.team ?? '', list: 'team-names', hint: 'The limits of a team count all of its keys together.'})}
    <datalist id="team-names">${teams.map(({name}) => html`<option value=${name}></option>`)}</datalist>
    ${expiryField(key)}
  </div>
  ${limitFields(key.limits)} ${modelsField(models, key.models ?? [])} ${labelsField(key.labels)}
  <details class="advanced" ?open=${hasAdvanced(key)}>
    <summary>Advanced</summary>
    ${advancedFields(key)}
  </details>
`;

function expiryField(key) {
  const kept = key.expires_at ? [{value: 'keep', label: `As now: ${day(key.expires_at)}`}] : [];
  return html`
    <div class="expiry">
      ${selectField({label: 'Expires', name: 'expiry', value: kept.length ? 'keep' : 'never', options: [...kept, ...LIFETIMES]})}
      <div class="expiry-date">
        ${textField({label: 'Last day', name: 'expires_on', type: 'date', value: lastDay(key.expires_at, zone()), hint: `Its end in ${zone()}.`})}
      </div>
    </div>
  `;
}

/** The models of the table, and those of the key that the table no longer has. */
export function modelsField(models, chosen) {
  const ids = [...new Set([...models.map(({id}) => id), ...chosen])];
  return html`
    <fieldset class="group">
      <legend>Models</legend>
      <p class="hint">None chosen: all models, also later ones.</p>
      <div class="checks">
        ${ids.map((id) => html`<label class="check-pill"><input type="checkbox" name="models" value=${id} .checked=${chosen.includes(id)} /><span>${id}</span></label>`)}
      </div>
      <p class="field-error" id="error-models"></p>
    </fieldset>
  `;
}

export const labelsField = (labels) =>
  field({
    label: 'Labels',
    name: 'labels',
    hint: 'One a line, such as cost_center=4711. Records and reports have them.',
    control: html`<textarea id="field-labels" name="labels" rows="2" spellcheck="false" .value=${labelLines(labels)} aria-describedby="hint-labels error-labels"></textarea>`,
  });

const ADVANCED = ['scope', 'reuse', 'parallel', 'validation', 'user_header', 'hits_report_usage', 'allow_no_cache'];

const hasAdvanced = (key) => ADVANCED.some((name) => key[name] !== undefined);

const advancedFields = (key) => html`
  <div class="fields two">
    ${scopeField(key.scope, 'That of its team, else the gateway’s')}
    ${selectField({label: 'Reuse of cached images', name: 'reuse', value: key.reuse ?? '', options: reuseOptions(key.reuse), hint: 'For clients that cannot send Cache-Control.'})}
    ${selectField({label: 'Identical requests at once', name: 'parallel', value: key.parallel ?? '', options: withDefault('Share one purchase', [{value: 'share', label: 'Share one purchase, always'}, {value: 'vary', label: 'Get different images'}])})}
    ${selectField({label: 'Validation', name: 'validation', value: key.validation ?? '', options: withDefault('The gateway’s setting', [{value: 'strict', label: 'Strict: as OpenAI’s API'}, {value: 'lenient', label: 'Lenient: tolerate more clients'}])})}
    ${textField({label: 'Header of end users', name: 'user_header', value: key.user_header ?? '', placeholder: 'X-OpenWebUI-User-Email', hint: 'It names the user in records. It is trusted: only for keys of servers.'})}
  </div>
  ${checkField({label: 'Answers from the cache report their tokens', name: 'hits_report_usage', checked: key.hits_report_usage !== false, hint: 'Otherwise images that cost the key nothing count as no tokens.'})}
  ${checkField({label: 'Its requests may use Cache-Control: no-cache', name: 'allow_no_cache', checked: key.allow_no_cache !== false, hint: 'Otherwise no-cache and max-age of its requests have no effect.'})}
`;

export const scopeField = (value, otherwise) =>
  selectField({
    label: 'Shares cached images with',
    name: 'scope',
    value: value ?? '',
    options: withDefault(otherwise, [
      {value: 'global', label: 'All keys'},
      {value: 'team', label: 'Its team'},
      {value: 'key', label: 'No other key'},
    ]),
  });

const withDefault = (label, options) => [{value: '', label: `Default: ${label}`}, ...options];

function reuseOptions(value) {
  const within = {'within:1h': 'Only images of the last hour', 'within:24h': 'Only images of the last day', 'within:7d': 'Only images of the last 7 days'};
  const known = withDefault('always', [
    {value: 'always', label: 'Always'},
    {value: 'never', label: 'Never: buy each time'},
    ...Object.entries(within).map(([name, label]) => ({value: name, label})),
  ]);
  return known.some((option) => option.value === (value ?? '')) ? known : [...known, value];
}

// The secret

function showSecret({app, session}, made, models, {title, onClose}) {
  let language = 'curl';
  const choose = (value) => {
    language = value;
    app.update();
  };
  const model = made.models?.[0] ?? models.default;
  const contents = () => dialog({
    title: `${title}: ${made.name}`,
    body: html`
      ${banner({level: 'warning', title: 'This secret is shown once.', text: 'The gateway keeps only its hash. Copy it now.'})}
      ${secret(made.key)}
      <div class="row snippet-head">
        <h3>Try it</h3>
        ${choice({label: 'Language', name: 'language', value: language, options: [{value: 'curl', label: 'curl'}, {value: 'python', label: 'Python'}], onChange: choose})}
      </div>
      ${code(SNIPPETS[language]({base: session.public_url, key: made.key, model}), `Example in ${language}`)}
    `,
    actions: html`<button type="button" class="button primary" @click=${app.closeDialog}>I have copied it</button>`,
    close: app.closeDialog,
  });
  app.dialog(contents, {keep: true, onClose});
}

const SNIPPETS = {
  curl: ({base, key, model}) => `curl ${base}/images/generations \\
  -H "Authorization: Bearer ${key}" \\
  -H "Content-Type: application/json" \\
  -d '{"model": "${model}", "prompt": "An otter with a pearl earring"}'`,
  python: ({base, key, model}) => `from openai import OpenAI

client = OpenAI(
    base_url="${base}",
    api_key="${key}",
)
answer = client.images.generate(
    model="${model}",
    prompt="An otter with a pearl earring",
)
print(answer.data[0].url or answer.data[0].b64_json[:60])`,
};
