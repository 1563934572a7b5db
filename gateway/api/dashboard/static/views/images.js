/** Images: what the cache holds, newest first. A key's holder sees those that the key bought. */
import {html, nothing} from '../vendor/lit-html.js';
import * as format from '../lib/format.js';
import {isDrawn} from '../lib/generation.js';
import {get, href, post} from '../lib/http.js';
import {getPage} from '../lib/pages.js';
import {parameterOf} from '../lib/parameters.js';
import {link, place} from '../lib/router.js';
import {copyButton} from '../ui/copy.js';
import {dialog} from '../ui/dialog.js';
import {badge, empty, skeleton} from '../ui/feedback.js';
import {checkField, filter, onSubmit} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {page} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {altOf, thumbnail, undrawn} from '../ui/thumbnail.js';

await stylesheet('studio');

const PAGE_SIZE = 60;
const LISTED_PROMPT = 500;
const FILTERS = ['model', 'size', 'key', 'tag'];
const STATES = {cached: ['Cached', 'ok'], expired: ['Expired', 'warning'], purged: ['Purged', 'neutral']};

/** Pages behind the first one, the first one itself, and the image whose dialog is open. */
let further = {data: [], after: null, isLoading: false};
let shown = null;
let opened = '';

const listOf = (session) => (session.kind === 'admin' ? '/admin/images' : '/images');

export const images = {
  defaults: {model: '', size: '', key: '', tag: '', image: ''},

  async load(query, {signal, session}) {
    const list = href(listOf(session), listQuery(query));
    if (shown?.list === list && shown.image !== query.image) {
      // An image was opened or closed: what is on the screen stays.
      shown.image = query.image;
      return shown.data;
    }
    const [first, models] = await Promise.all([
      getPage(listOf(session), listQuery(query), {signal}),
      get('/models', {}, {signal}).catch(() => ({data: []})),
    ]);
    further = {data: [], after: first.after, isLoading: false};
    shown = {list, image: query.image, data: {...first, models: models.data}};
    return shown.data;
  },

  render(view) {
    const {query, session, data} = view;
    openNamed(view);
    return page({
      title: 'Images',
      lead:
        session.kind === 'admin'
          ? 'What the cache holds, newest first.'
          : 'The images that your key bought, newest first.',
      json: href(listOf(session), listQuery(query)),
      rows: ['images', () => [...data.data, ...further.data]],
      filters: filters(view),
      view,
      skeleton: skeleton('cards', 12),
      content: () => gallery(view, [...data.data, ...further.data]),
    });
  },
};

const listQuery = (query) => ({
  limit: PAGE_SIZE,
  ...Object.fromEntries(FILTERS.map((name) => [name, query[name]])),
});

// ── filters ───────────────────────────────────────────────────────────────────────────────────

function filters({query, setQuery, session, data}) {
  const models = data?.models ?? [];
  const select = (label, name, values) =>
    filter({
      label,
      name,
      value: query[name],
      onChange: (value) => setQuery({[name]: value}),
      options: [{value: '', label: 'All'}, ...new Set([...values, query[name]].filter(Boolean))],
    });
  const set = FILTERS.filter((name) => query[name]);
  const clear = () => setQuery(Object.fromEntries(FILTERS.map((name) => [name, ''])));
  return html`
    ${select(
      'Model',
      'model',
      models.map(({id}) => id),
    )}
    ${select('Size', 'size', sizesOf(models, data?.data ?? []))}
    ${session.kind === 'admin' ? typed('Key', 'key', query, setQuery) : nothing}
    ${typed('Tag', 'tag', query, setQuery)}
    ${set.length ? html`<button class="button quiet small" @click=${clear}>Clear filters</button>` : nothing}
  `;
}

function sizesOf(models, images) {
  const listed = models.flatMap((model) => parameterOf(model, 'size')?.values ?? []);
  const sizes = [...listed, ...images.map(({size}) => size)].filter((size) => /^\d/.test(size));
  return [...new Set(sizes)].sort((a, b) => parseInt(a, 10) - parseInt(b, 10) || a.localeCompare(b));
}

const typed = (label, name, query, setQuery) => html`
  <div class="filter typed ${query[name] ? 'set' : ''}">
    <label for="filter-${name}">${label}</label>
    <input
      id="filter-${name}"
      type="search"
      placeholder="All"
      autocomplete="off"
      spellcheck="false"
      .value=${query[name]}
      @change=${(event) => setQuery({[name]: event.target.value.trim()})}
    />
  </div>
`;

// ── the gallery ───────────────────────────────────────────────────────────────────────────────

function gallery(view, list) {
  if (!list.length) return further.after ? nothingYet(view) : nothingHere(view);
  return html`
    <ul class="gallery">
      ${list.map((image) => html`<li>${tile(view, image)}</li>`)}
    </ul>
    ${further.after ? html`<div class="row center gallery-end">${loadMore(view, 'Load more')}</div>` : html`<p class="note gallery-end">${format.plural(list.length, 'image')}</p>`}
  `;
}

const nothingYet = (view) =>
  empty({
    icon: 'filter',
    title: 'Nothing so far',
    text: 'No image that was looked at matches. There are older ones.',
    action: loadMore(view, 'Look further'),
  });

function nothingHere({query, session}) {
  const isFiltered = FILTERS.some((name) => query[name]);
  if (isFiltered)
    return empty({icon: 'filter', title: 'No image matches', text: 'Change a filter, or clear all of them.'});
  return empty({
    icon: 'images',
    title: 'No images yet',
    text:
      session.kind === 'admin'
        ? 'Images appear here as soon as a key buys the first one.'
        : 'Images that your key buys appear here.',
    action: html`<a class="button primary" href=${link('playground')}>Make one in the playground</a>`,
  });
}

function tile(view, image) {
  const {session, setQuery} = view;
  return html`
    <button class="gallery-item" @click=${() => setQuery({image: image.id})}>
      ${thumbnail(listOf(session), image)}
      <span class="gallery-text">
        <span class="ellipsis">${session.kind === 'admin' ? (image.key ?? '–') : image.model}</span>
        <span class="row nowrap between note">
          <span class="ellipsis">${format.usd(image.cost_usd)}${image.hits ? ` · ${hits(image)}` : ''}</span>
          <span class="made">${format.ago(image.created_at)}</span>
        </span>
      </span>
      ${image.state === 'cached' ? nothing : stateBadge(image)}
    </button>
  `;
}

const hits = ({hits: n}) => format.plural(n, 'hit');

const stateBadge = ({state}) => badge(...(STATES[state] ?? [state, 'neutral']));

function loadMore({query, session, app}, label) {
  const load = async () => {
    const page = further;
    page.isLoading = true;
    app.update();
    try {
      const {data, after} = await getPage(listOf(session), {...listQuery(query), after: page.after});
      // Another filter may have been set meanwhile.
      if (further === page) further = {data: [...page.data, ...data], after, isLoading: false};
    } catch (error) {
      page.isLoading = false;
      app.toast(error.message, 'fault');
    }
    app.update();
  };
  return html`
    <button class="button" ?disabled=${further.isLoading} @click=${load}>
      ${further.isLoading ? 'Loading…' : label}
    </button>
  `;
}

// ── details ───────────────────────────────────────────────────────────────────────────────────

/** The URL names the open image, so that details can be linked and Back closes them. */
function openNamed(view) {
  const {query, data, app} = view;
  if (!data || query.image === opened) return;
  opened = query.image;
  queueMicrotask(() => (opened ? showDetails(view, opened) : app.closeDialog()));
}

async function showDetails(view, id) {
  const {session, app, data} = view;
  try {
    const known = [...data.data, ...further.data].find((image) => image.id === id);
    // A list has only the beginning of a long prompt.
    const isWhole = known && (known.prompt ?? '').length < LISTED_PROMPT;
    const image = isWhole ? known : await get(`${listOf(session)}/${id}`);
    if (opened === id) app.dialog(details(view, image), {onClose: () => closed(view)});
  } catch (error) {
    app.toast(error.message, 'fault');
    closed(view);
  }
}

function closed({setQuery}) {
  if (!opened) return;
  opened = '';
  // Another view closed it, and the list will be an old one when this view is opened again.
  if (place().name !== 'images') shown = null;
  else setQuery({image: ''}, {replace: true});
}

function details(view, image) {
  const {session, app} = view;
  const file = `${listOf(session)}/${image.id}/file`;
  return html`
    <div class="dialog-wide image-dialog">
      <header class="dialog-head">
        <h2 id="dialog-title">${image.model} · ${image.size.replace('x', ' × ')}</h2>
        ${stateBadge(image)}
        <button type="button" class="icon-button" aria-label="Close" @click=${app.closeDialog}>
          ${icon('close')}
        </button>
      </header>
      <div class="dialog-body">
        ${isDrawn(image.format) ? large(image, file) : undrawn(image.format)}
        <div class="stack small">
          ${image.prompt ? html`<blockquote class="prompt">${image.prompt}</blockquote>` : nothing}
          ${image.revised_prompt ? html`<p class="note">Revised: ${image.revised_prompt}</p>` : nothing}
          ${facts(view, image)}
          ${session.stores_prompts ? nothing : html`<p class="note">Prompts are not stored (<code>cache.store_prompts</code>).</p>`}
        </div>
      </div>
      <footer class="dialog-foot">
        ${session.kind === 'admin' ? adminActions(view, image) : nothing}
        <a class="button" href=${href(file, {download: 1})} download>${icon('download')} Download</a>
      </footer>
    </div>
  `;
}

const large = (image, file) => html`
  <img
    class="image-large"
    src=${href(file)}
    alt=${altOf(image)}
    width=${image.width}
    height=${image.height}
  />
`;

const fileText = ({format: kind, width, height, bytes}) =>
  [kind, width ? `${width} × ${height}` : '', format.bytes(bytes)].filter(Boolean).join(', ');

function facts({session}, image) {
  const isAdmin = session.kind === 'admin';
  const pairs = [
    ['Cost', html`<strong>${format.usd(image.cost_usd)}</strong>`],
    ['Saved', saved(image)],
    ['Last hit', image.last_hit_at ? dated(image.last_hit_at) : null],
    ['Made', dated(image.created_at)],
    ['Expires', image.expires_at ? dated(image.expires_at) : null],
    ['Quality', image.quality],
    ['File', fileText(image)],
    ['Active content', activeText(image)],
    ['Key', isAdmin && image.key ? html`${filterLink('key', image.key)} ${teamText(image)}` : null],
    ['Model', filterLink('model', image.model)],
    ['Tags', image.tags?.length ? image.tags.map((tag) => html`${filterLink('tag', tag)} `) : null],
    ['Fingerprint', copied(html`<code class="ellipsis">${image.fingerprint}</code>`, image.fingerprint)],
    ['Slot', image.slot === null ? null : String(image.slot)],
    ['Link', image.url ? copied(imageLink(image), image.url) : null],
  ];
  const known = pairs.filter(([, value]) => value);
  return html`<dl class="pairs">
    ${known.map(
      ([name, value]) =>
        html`<dt>${name}</dt>
          <dd>${value}</dd>`,
    )}
  </dl>`;
}

/** What a browser could run or load, if it opened the file by itself. */
const activeText = ({active = []}) =>
  active.length ? active.map((kind) => html`${badge(kind, 'warning')} `) : null;

/** Null for the holder of a key, who does not learn of others' hits. */
const saved = (image) =>
  image.hits === null
    ? null
    : image.hits
    ? html`<span class="ok-text">${format.usd(image.saved_usd)}</span> by ${hits(image)}`
    : 'Nothing yet';

const filterLink = (name, value) => html`<a href=${link('images', {[name]: value})}>${value}</a>`;
const teamText = ({team}) => (team ? `of team ${team}` : '');
const copied = (shown, text) => html`<span class="row nowrap">${shown}${copyButton(text)}</span>`;
const imageLink = ({url, id}) =>
  html`<a class="ellipsis" href=${url} target="_blank" rel="noopener noreferrer">${id}</a>`;

const dated = (at) => html`
  <span title=${format.fullTime(at)}>${format.ago(at)}</span> <span class="note">${format.time(at)}</span>
`;

// ── take down and purge ───────────────────────────────────────────────────────────────────────

const adminActions = (view, image) => html`
  <div class="row nowrap grow">
    <button class="button danger" @click=${() => askTakeDown(view, image)}>Take down</button>
    <button class="button" ?disabled=${image.state !== 'cached'} @click=${() => askPurge(view, image)}>
      Purge
    </button>
  </div>
`;

function askTakeDown(view, image) {
  ask(view, {
    title: 'Take this image down?',
    text: `Within a second its link stops working, and the cache forgets it, also in other formats. The same
      bytes are refused from now on; a purchase that yields them is charged all the same. It cannot be undone.`,
    more: checkField({
      label: 'Also refuse the prompt',
      name: 'prompt',
      hint: 'Every request with this prompt and these settings is refused from now on.',
    }),
    action: 'Take down',
    run: ({prompt}) => post('/admin/cache/takedown', {image: image.id, prompt: prompt === 'on'}),
    said: 'The image was taken down.',
  });
}

function askPurge(view, image) {
  ask(view, {
    title: 'Purge this entry?',
    text: `The cache forgets all images of this fingerprint. The next request buys them again.
      Links that clients have keep working until they expire.`,
    action: 'Purge',
    run: () => post('/admin/cache/purge', {fingerprint: image.fingerprint}),
    said: 'The entry was purged.',
  });
}

function ask(view, {title, text, more = nothing, action, run, said}) {
  const {app, refresh} = view;
  const confirmed = onSubmit(async (values) => {
    await run(values);
    shown = null; // the list has changed
    app.closeDialog();
    app.toast(said);
    refresh();
  });
  const contents = dialog({
    title,
    body: html`<p>${text}</p>
      ${more}`,
    onSubmit: confirmed,
    submit: action,
    danger: true,
    close: app.closeDialog,
  });
  app.dialog(contents, {onClose: () => closed(view)});
}
