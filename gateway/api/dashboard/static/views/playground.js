/**
 * Playground: make images under one key, see what they cost, take the same request as code.
 *
 * The state is `lib/studio.js`. The form is `playground_form.js`, what comes of it
 * `playground_results.js`.
 */
import {html, nothing} from '../vendor/lit-html.js';
import {get, href} from '../lib/http.js';
import {holder, picked, Studio} from '../lib/studio.js';
import {empty, skeleton} from '../ui/feedback.js';
import {page} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {activeKeys, formCard, keyPicker} from './playground_form.js';
import {codeCard, historyCard, stage} from './playground_results.js';

await stylesheet('studio');

let app = null;
const studio = new Studio(() => app?.update());
let sessionOf = null;

export const playground = {
  defaults: {key: '', model: ''},

  async load({key: keyId, model}, {signal, session}) {
    if (session.kind === 'key') {
      const models = await get('/models', {}, {signal});
      return {key: session.key, models, model};
    }
    const keys = await activeKeys('', {signal});
    const key = await pickedKey(keyId, keys, signal);
    return {keys, key, model, models: key ? await get('/models', {key: key.id}, {signal}) : null};
  },

  render(view) {
    ({app} = view);
    openStudio(view);
    return page({
      title: 'Playground',
      lead: 'Try a prompt, see what it costs before you click, and take the request with you as code.',
      json: href('/models', {key: view.data?.keys && view.data.key?.id}),
      view,
      skeleton: html`<div class="studio">${skeleton('cards', 1)} ${skeleton('cards', 1)}</div>`,
      content: (data) => content(view, data),
    });
  },
};

/** The key that the URL names, or else the one that was picked last. */
async function pickedKey(id, keys, signal) {
  const wanted = id || studio.owner?.id;
  if (!wanted) return keys[0] ?? null;
  const known = keys.find((key) => key.id === wanted);
  if (known) return known;
  const found = get(`/admin/keys/${encodeURIComponent(wanted)}`, {}, {signal});
  return id ? found : found.catch(() => keys[0] ?? null);
}

/** Another session never sees the prompts and images of the one before. */
function openStudio({session, data}) {
  const id = `${session.kind}:${session.key?.id ?? ''}`;
  if (sessionOf !== id) studio.close();
  sessionOf = id;
  if (!data?.models || studio.opened === data) return;
  studio.opened = data;
  const owner = session.kind === 'key' ? holder(data.key) : picked(data.key);
  const models = data.models.data.filter((model) => model.allowed !== false);
  studio.open({owner, models, standard: data.model || data.models.default});
}

function content(view, data) {
  if (!data.key) return noKeys(view);
  if (!studio.model) return noModels(view, data);
  return html`
    <div class="studio">
      ${formCard(studio, view, data)}
      <div class="studio-side">
        ${stage(studio, view)} ${codeCard(studio, view)} ${historyCard(studio, view)}
      </div>
    </div>
  `;
}

const noKeys = ({app}) =>
  empty({
    icon: 'key',
    title: 'No key to work under',
    text: 'Every image is charged to a key. Make the first one, then come back.',
    action: html`<button class="button primary" @click=${() => app.navigate('keys', {})}>Make a key</button>`,
  });

const noModels = (view, data) => html`
  ${data.keys ? keyPicker(view, data) : nothing}
  ${empty({
    icon: 'playground',
    title: 'This key may use no model',
    text: 'Its allow-list names no model that the gateway offers. Change the models of the key or of its team.',
  })}
`;
