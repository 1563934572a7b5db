/**
 *   copyButton(text, label = 'Copy')   copies, and says so
 *   code(text, label)                  a block of code with a copy button
 *   secret(text)                       a secret that is shown once, with a copy button
 */

import {html} from '../vendor/lit-html.js';
import {icon} from './icons.js';

const SAID_SECONDS = 2;

export const copyButton = (text, label = 'Copy') => html`
  <button type="button" class="button small copy" @click=${(event) => copyFrom(event.currentTarget, text)}>
    ${icon('copy')}<span class="copy-label">${label}</span><span class="copied" role="status"></span>
  </button>
`;

export const code = (text, label = 'Code') => html`
  <div class="code">
    <pre tabindex="0" aria-label=${label}><code>${text}</code></pre>
    ${copyButton(text)}
  </div>
`;

export const secret = (text) => html`
  <div class="secret">
    <code tabindex="0" aria-label="Secret">${text}</code>
    ${copyButton(text)}
  </div>
`;

async function copyFrom(button, text) {
  await copyText(text, button);
  const said = button.querySelector('.copied');
  button.classList.add('done');
  said.textContent = 'Copied';
  setTimeout(() => {
    button.classList.remove('done');
    said.textContent = '';
  }, SAID_SECONDS * 1000);
}

async function copyText(text, near) {
  // Browsers offer the clipboard to https and this machine's own addresses only.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement('textarea');
  area.value = text;
  area.className = 'hidden';
  // Beside the button: an open dialog keeps the focus inside itself.
  near.parentElement.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
  near.focus();
}
