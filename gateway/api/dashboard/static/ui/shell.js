/** The frame around every view: navigation, the dialog, toasts. Used by app.js alone. */

import {html, nothing} from '../vendor/lit-html.js';
import {clock, zone} from '../lib/format.js';
import {link} from '../lib/router.js';
import {THEMES, setTheme, theme} from '../lib/theme.js';
import {toasts} from './feedback.js';
import {icon, mark} from './icons.js';

const THEME_ICONS = {system: 'system', light: 'sun', dark: 'moon'};

export const shell = ({app, state, groups, main}) => html`
  <a class="skip" href="#main" @click=${skipToMain}>Skip to the content</a>
  ${state.session ? topBar(app, state) : nothing}
  <div class=${state.session ? 'frame' : 'frame alone'}>
    ${state.session ? sidebar(app, state, groups) : nothing}
    <main id="main" tabindex="-1" aria-busy=${state.loading ? 'true' : 'false'}>${main}</main>
  </div>
  <div class="progress ${state.loading ? 'on' : ''}" aria-hidden="true"></div>
  <dialog
    id="dialog"
    aria-labelledby="dialog-title"
    @close=${app.dialogClosed}
    @cancel=${(event) => state.dialogKeeps && event.preventDefault()}
    @mousedown=${(event) => event.target === event.currentTarget && !state.dialogKeeps && app.closeDialog()}
  >
    <div class="dialog-box">${contentsOf(state.dialog)}</div>
  </dialog>
  ${toasts(state.toasts, app.closeToast)}
`;

const contentsOf = (dialog) => (typeof dialog === 'function' ? dialog() : (dialog ?? nothing));

function skipToMain(event) {
  event.preventDefault();
  document.getElementById('main').focus();
}

const brand = () => html`<a class="brand" href="/dashboard">${mark()}<span>Image Gateway</span></a>`;

const topBar = (app, state) => html`
  <header class="top-bar">
    ${brand()}
    <button
      class="icon-button"
      aria-label="Menu"
      aria-expanded=${state.menuOpen ? 'true' : 'false'}
      aria-controls="menu"
      @click=${app.toggleMenu}
    >
      ${icon(state.menuOpen ? 'close' : 'menu')}
    </button>
  </header>
`;

const sidebar = (app, state, groups) => html`
  <aside id="menu" class="sidebar ${state.menuOpen ? 'open' : ''}">
    ${brand()}
    <nav aria-label="Views">
      ${groups.map((views) => html`<ul>${views.map((view) => navigationItem(view, state))}</ul>`)}
    </nav>
    <div class="sidebar-foot">${themeChoice(app)} ${sessionBox(app, state.session)}</div>
  </aside>
`;

const navigationItem = (view, state) => html`
  <li>
    <a href=${link(view.name)} aria-current=${view.name === state.view?.name ? 'page' : nothing}>
      ${icon(view.icon)}<span>${view.label}</span>
    </a>
  </li>
`;

const themeChoice = (app) => html`
  <fieldset class="choice themes">
    <legend class="hidden">Theme</legend>
    ${THEMES.map(
      (name) => html`
        <label title="Theme: ${name}">
          <input type="radio" name="theme" value=${name} .checked=${theme() === name} @change=${() => chooseTheme(name, app)} />
          <span>${icon(THEME_ICONS[name])}<span class="hidden">${name}</span></span>
        </label>
      `,
    )}
  </fieldset>
`;

function chooseTheme(name, app) {
  setTheme(name);
  app.update();
}

const sessionBox = (app, session) => html`
  <div class="session">
    <div class="session-text">
      <strong>${session.key ? session.key.name : 'Admin'}</strong>
      <span class="note">${session.key?.team ? `${session.key.team} · ` : ''}until ${clock(session.expires_at)}</span>
    </div>
    <button class="icon-button" aria-label="Sign out" title="Sign out" @click=${app.signOut}>${icon('signout')}</button>
  </div>
  <p class="note">Version ${session.version} · times in ${zone()}</p>
`;
