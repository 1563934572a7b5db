/**
 * The page: its session, its router and the current view.
 *
 * A view is an object with defaults, refreshSeconds, load() and render(): see views/overview.js. Its
 * row in views/index.js has name, label, icon and kind. It loads data and renders them; all that it
 * may do besides is in `app`.
 */

import {html, render} from './vendor/lit-html.js';
import {setTimeZone} from './lib/format.js';
import {del, get, post} from './lib/http.js';
import {Loader} from './lib/loader.js';
import {readQuery, writeQuery} from './lib/query.js';
import {link, place, show, takeLinkSecret, watchPlace} from './lib/router.js';
import {mayBeSignedIn, noteSignedIn} from './lib/signed_in.js';
import {failure, skeleton} from './ui/feedback.js';
import {shell} from './ui/shell.js';
import {groupsFor, openedView, openView, rowNamed} from './views/index.js';
import {signin} from './views/signin.js';

const TOAST_SECONDS = 6;
const MAX_TOASTS = 3;

const root = document.getElementById('app');
const loader = new Loader(() => loaded());
const state = {
  started: false,
  session: null,
  holder: null, // of the last session
  notice: '',
  view: null,
  query: {},
  dialog: null,
  dialogOnClose: null,
  dialogKeeps: false,
  part: '',
  toasts: [],
  menuOpen: false,
  get loading() {
    return loader.loading;
  },
};

/** What a view may do. Its functions need no `this`. */
const app = {
  get session() {
    return state.session;
  },
  /** Renders again: for views that keep state of their own. */
  update,
  navigate(view, query = {}) {
    show(link(view, query));
    enter();
  },
  /**
   * Opens the dialog with a template, or a function that returns one (see ui/dialog.js).
   * keep: neither Escape nor a click beside it closes it.
   */
  dialog(contents, {onClose, keep = false} = {}) {
    // Contents of an earlier dialog are removed first, so that no typed text stays in new fields.
    state.dialog = null;
    renderNow();
    state.dialog = contents;
    state.dialogOnClose = onClose ?? null;
    state.dialogKeeps = keep;
    renderNow();
    const element = document.getElementById('dialog');
    if (!element.open) element.showModal();
    focusDialog(element);
  },
  closeDialog() {
    document.getElementById('dialog').close();
  },
  dialogClosed() {
    const {dialogOnClose} = state;
    Object.assign(state, {dialog: null, dialogOnClose: null});
    dialogOnClose?.();
    update();
  },
  /** Says something for a moment; a fault stays until it is dismissed. level: ok|warning|fault */
  toast(text, level = 'ok') {
    const toast = {text, level};
    state.toasts = [...state.toasts, toast].slice(-MAX_TOASTS);
    if (level !== 'fault') setTimeout(() => app.closeToast(toast), TOAST_SECONDS * 1000);
    update();
  },
  closeToast(toast) {
    state.toasts = state.toasts.filter((each) => each !== toast);
    update();
  },
  toggleMenu() {
    state.menuOpen = !state.menuOpen;
    update();
  },
  async signOut() {
    const error = await del('/session').catch((failed) => failed);
    const isUnanswered = error?.status === 0;
    // The page forgets what it has all the same, but only an answer deletes the cookie.
    noteSignedIn(isUnanswered);
    leave(isUnanswered ? 'No answer: this browser is still signed in. Reload, and sign out again.' : '');
  },
};

/** What a dialog's keyboard begins at, best first: its first field, or the button that does nothing. */
const DIALOG_FOCUS = ['[autofocus]', '.secret button', '.dialog-body :is(input:not([type="hidden"]), select, textarea)', '.dialog-foot :is(a, button):not(.danger, .row *)', '.dialog-head button'];

function focusDialog(element) {
  const found = DIALOG_FOCUS.map((selector) => element.querySelector(selector)).find(Boolean);
  found?.focus();
}

// Session

async function start() {
  watchPlace(enter);
  addEventListener('hashchange', () => resume());
  addEventListener('keydown', closeMenuByKey);
  await resume();
  state.started = true;
  if (state.session) update();
  else focusSoon('#field-token');
}

/** Continues a session, or begins one with the one-time link in the address. */
async function resume() {
  const secret = takeLinkSecret();
  if (!secret && state.session) return;
  if (!secret && !mayBeSignedIn()) return leave('');
  try {
    await begin(secret ? await post('/session', {link: secret}) : await get('/session'));
  } catch (error) {
    noteSignedIn(!error.signedOut);
    leave(secret || !error.signedOut ? error.message : '');
  }
}

async function signIn(token) {
  await begin(await post('/session', {token}));
}

async function begin(session) {
  noteSignedIn(true);
  const holder = session.key?.id ?? session.kind;
  // Views keep data in their modules. Another holder must not see those of the one before.
  if (state.holder && state.holder !== holder) return void location.reload();
  Object.assign(state, {session, holder, notice: ''});
  setTimeZone(session.time_zone);
  return enter();
}

function leave(notice) {
  loader.reset();
  Object.assign(state, {session: null, view: null, notice, menuOpen: false});
  document.getElementById('dialog')?.close();
  document.title = 'Sign in · Image Gateway';
  focusSoon('#field-token');
}

// Views

/** Shows the view that the address names. */
async function enter() {
  if (!state.session) return update();
  const row = rowNamed(place().name, state.session);
  try {
    showView(openedView(row) ?? (await openView(row)));
  } catch {
    app.toast(`${row.label} could not be loaded. Is the gateway running?`, 'fault');
  }
}

function showView(view) {
  const {name, search} = place();
  // Someone may have gone elsewhere while the module was loaded.
  if (!state.session || rowNamed(name, state.session).name !== view.name) return;
  if (view.name !== name) show(link(view.name) + (name ? '' : search), {replace: true});
  const query = readQuery(search, view.defaults);
  const part = view.partOf?.(query) ?? '';
  const entered = view !== state.view || part !== state.part;
  Object.assign(state, {view, part, query, menuOpen: false});
  document.title = `${view.label} · Image Gateway`;
  if (entered) arrive();
  reload();
}

/** A new view, or part of one (`partOf`), begins at its top, and screen readers at its heading. */
function arrive() {
  loader.reset();
  document.getElementById('dialog')?.close();
  scrollTo(0, 0);
  if (state.started) focusSoon('h1'); // at first, Tab begins at the top of the page
}

function reload() {
  const {view, query, session} = state;
  return loader.run(({signal}) => view.load(query, {signal, session}), view.refreshSeconds);
}

function loaded() {
  if (loader.error?.signedOut) {
    noteSignedIn(false);
    leave('Your session has ended. Sign in again.');
  }
  update();
}

/** Merges filters into the URL; null or '' takes one away. Back leads to the filters before. */
function setQuery(changes, {replace = false} = {}) {
  const {view, query} = state;
  if (!view) return; // signed out meanwhile
  show(`/dashboard/${view.name}${writeQuery({...query, ...changes}, view.defaults)}`, {replace});
  enter();
}

function closeMenuByKey(event) {
  if (event.key === 'Escape' && state.menuOpen) app.toggleMenu();
}

// Rendering

let renderDue = false;

/** Focuses what the next rendering shows. */
function focusSoon(selector) {
  update(); // first
  queueMicrotask(() => root.querySelector(selector)?.focus({preventScroll: true}));
}

function update() {
  if (renderDue) return;
  renderDue = true;
  queueMicrotask(renderNow);
}

function renderNow() {
  renderDue = false;
  root.classList.remove('boot');
  const groups = state.session ? groupsFor(state.session) : [];
  render(shell({app, state, groups, main: main()}), root);
}

function main() {
  if (state.session) return state.view ? viewContents() : skeleton('lines', 3);
  return state.started ? signin({notice: state.notice, signIn}) : html``;
}

function viewContents() {
  const {view, query, session} = state;
  const {data, error, loading, loadedAt} = loader;
  try {
    return view.render({data, error, loading, loadedAt, query, session, setQuery, refresh: reload, app});
  } catch (fault) {
    // A mistake in one view leaves the rest of the page alone.
    console.error(fault);
    return failure(fault, reload);
  }
}

start();
