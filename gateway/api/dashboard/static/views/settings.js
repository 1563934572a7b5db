/** Settings: those in use and where each comes from; the doctor; signing keys, purges and links. */

import {html, nothing} from '../vendor/lit-html.js';
import {purgeCache, rotateSigningKeys} from '../admin/dialogs.js';
import {attempt, searchBox} from '../admin/parts.js';
import {bytes, count, duration, fullTime, plural, zone} from '../lib/format.js';
import {get, href, post} from '../lib/http.js';
import {link} from '../lib/router.js';
import {badge, empty, skeleton, state} from '../ui/feedback.js';
import {choice} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {card, page} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {table} from '../ui/table.js';

await stylesheet('admin');

const SHOWN = [
  {value: '', label: 'All'},
  {value: 'set', label: 'Set by you'},
];

const SOURCE_LEVELS = {default: 'neutral', file: 'info', environment: 'ok', 'secret file': 'ok'};

const LEVELS = ['fault', 'warning', 'ok'];

/** The doctor's last answer; it lasts until the page is left. */
const doctor = {running: false, at: null, findings: null, error: null};

export const settings = {
  defaults: {search: '', shown: ''},
  load,
  render: (view) => settingsPage(view),
};

async function load(_, {signal}) {
  const [{data}, cache] = await Promise.all([
    get('/admin/settings', {}, {signal}),
    attempt(get('/admin/cache', {}, {signal})),
  ]);
  return {settings: data, cache};
}

const settingsPage = (view) =>
  page({
    title: 'Settings',
    lead: 'The settings in use, and where each comes from. Change them in files or the environment.',
    json: href('/admin/settings'),
    rows: ['settings', ({settings}) => matching(settings, view.query)],
    view,
    skeleton: html`<div class="stack">${skeleton('tiles', 3)}${skeleton('table', 12)}</div>`,
    content: (data) => contents(view, data),
  });

const contents = (view, data) => html`
  <div class="stack">
    ${doctorCard(view)}
    <div class="grid">
      <div class="third">${cacheCard(view, data.cache)}</div>
      <div class="third">${signingCard(view)}</div>
      <div class="third">${aboutCard(view.session)}</div>
    </div>
    ${settingsTable(view, data.settings)}
  </div>
`;

// Doctor

const doctorCard = (view) =>
  card({
    title: 'Doctor',
    note: doctor.at ? `examined ${fullTime(doctor.at)}` : 'checks store, upstream, clock, prices and links',
    actions: html`<button class="button small" ?disabled=${doctor.running} @click=${() => examine(view.app)}>${icon('check')} ${doctor.running ? 'Examining…' : 'Examine now'}</button>`,
    body: html`<div aria-live="polite">${doctorBody()}</div>`,
  });

function doctorBody() {
  if (doctor.error) return html`<p class="fault-text">${doctor.error.message}</p>`;
  if (!doctor.findings) return html`<p class="note">Nothing is changed, and nothing is bought. It takes some seconds.</p>`;
  return html`<p>${verdict(doctor.findings)}</p>
    <ul class="findings">${doctor.findings.map(finding)}</ul>`;
}

function verdict(findings) {
  const [faults, warnings] = ['fault', 'warning'].map((level) => findings.filter((each) => each.level === level).length);
  if (!faults && !warnings) return html`<strong>Nothing is wrong.</strong> ${plural(findings.length, 'check')}.`;
  return html`<strong>${plural(faults, 'fault')}, ${plural(warnings, 'warning')}.</strong> Start with the first.`;
}

const finding = ({check, level, finding: text}) => html`
  <li><span class="check">${state(level, check)}</span><span class="break">${text}</span></li>
`;

async function examine(app) {
  Object.assign(doctor, {running: true, error: null});
  app.update();
  try {
    const {data} = await post('/admin/doctor');
    const sorted = [...data].sort((a, b) => LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level));
    Object.assign(doctor, {findings: sorted, at: Date.now() / 1000});
  } catch (error) {
    doctor.error = error;
  }
  doctor.running = false;
  app.update();
}

// Cache, signing keys, about

function cacheCard(view, cache) {
  const {images, bytes: size, total_bytes: bound, error} = cache;
  return card({
    title: 'Cache',
    body: html`
      ${error
        ? html`<p class="note">${error.message}</p>`
        : html`<p><strong>${plural(images, 'image')}</strong>, ${bytes(size)}${bound ? html` <span class="note">of at most ${bytes(bound)}</span>` : nothing}</p>`}
      <p class="note">A purge empties slots: the next request buys again. Links that clients have keep working.</p>
      <div class="row">
        <button class="button small" @click=${() => purgeCache(view)}>${icon('trash')} Purge…</button>
        <a class="button small" href=${link('images')}>${icon('images')} Images</a>
      </div>
    `,
  });
}

const signingCard = (view) =>
  card({
    title: 'Signing keys',
    body: html`
      <p>Links to images are signed. After a rotation a new key signs, and links of the former keys stay valid until they expire.</p>
      <div class="row"><button class="button small" @click=${() => rotateSigningKeys(view)}>${icon('refresh')} Rotate…</button></div>
    `,
  });

const aboutCard = ({version, public_url: url}) =>
  card({
    title: 'About',
    body: html`<dl class="pairs">
      <dt>Version</dt><dd>${version}</dd>
      <dt>Base URL</dt><dd class="mono">${url}</dd>
      <dt>Time zone</dt><dd>${zone()}</dd>
      <dt>API</dt><dd><a href="/openapi.json" target="_blank" rel="noopener">OpenAPI document</a></dd>
      <dt>Health</dt><dd><a href="/readyz" target="_blank" rel="noopener">/readyz</a></dd>
    </dl>`,
  });

// Settings

function settingsTable({query, setQuery}, all) {
  const rows = matching(all, query);
  return html`
    <section class="stack small" aria-labelledby="settings-title">
      <h2 id="settings-title">Effective configuration</h2>
      <div class="filters">
        ${searchBox({label: 'Search settings', placeholder: 'Name, value or source', value: query.search, setQuery})}
        ${choice({label: 'Which', name: 'shown', value: query.shown, options: SHOWN, onChange: (shown) => setQuery({shown})})}
        <span class="note">${count(rows.length)} of ${count(all.length)}</span>
      </div>
      ${rows.length ? [...Map.groupBy(rows, groupOf)].map(groupTable) : NOTHING_FOUND}
    </section>
  `;
}

const groupOf = ({key}) => (key.includes('.') ? key.split('.')[0] : 'general');

const groupTable = ([name, rows]) => html`
  <h3>${name}</h3>
  <div class="settings-table">${table({caption: `Settings of ${name}`, columns: COLUMNS, rows, cards: true})}</div>
`;

const NOTHING_FOUND = html`<div class="card">${empty({title: 'No setting matches', text: 'Search for a part of a name, such as cache or timeout.'})}</div>`;

const matching = (all, query) => all.filter((row) => matches(row, query));

function matches({key, value, source, origin}, {search, shown}) {
  if (shown === 'set' && source === 'default') return false;
  return [key, valueText(value), source, origin ?? ''].join(' ').toLowerCase().includes(search.toLowerCase());
}

const COLUMNS = [
  {name: 'key', label: 'Setting', cell: ({key}) => html`<code class="break">${key}</code>`},
  {name: 'value', label: 'Value', cell: valueCell},
  {name: 'source', label: 'Source', cell: ({source}) => badge(source, SOURCE_LEVELS[source])},
  {name: 'origin', label: 'From', hide: true, cell: ({origin}) => html`<span class="note break" title=${origin ?? nothing}>${origin?.split('/').at(-1) ?? ''}</span>`},
];

function valueCell({key, value}) {
  const text = valueText(value);
  if (text === '') return html`<span class="note">not set</span>`;
  return html`<span class="mono break">${text}</span> <span class="note">${inUnits(key, value)}</span>`;
}

/** Settings whose values are bytes, or seconds. */
const BYTES = /(bytes|max_body|max_head|max_image|max_body_memory)$/;
const SECONDS = /(ttl|timeout|heartbeat|dead_after|keep_alive|stale_if_error|breaker\.open|keep_\w+)$/;

function inUnits(key, value) {
  if (typeof value !== 'number' || value < 60) return nothing;
  if (BYTES.test(key)) return bytes(value);
  return SECONDS.test(key) ? duration(value) : nothing;
}

function valueText(value) {
  if (value === null || value === undefined) return '';
  return typeof value === 'string' ? value : JSON.stringify(value);
}
