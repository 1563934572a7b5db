/** Sign-in with the admin token or a gateway key. A one-time link needs no form: see app.js. */

import {html, nothing} from '../vendor/lit-html.js';
import {banner} from '../ui/feedback.js';
import {formError, onSubmit, textField} from '../ui/form.js';
import {mark} from '../ui/icons.js';

/** @param {{notice: string, signIn: (token: string) => Promise<void>}} options */
export const signin = ({notice, signIn}) => html`
  <div class="signin">
    <section class="signin-box">
      ${mark()}
      <h1 tabindex="-1">Image Gateway</h1>
      <p class="lead">See what is spent and what the cache saves, and make images.</p>
      ${notice ? banner({level: 'warning', title: notice}) : nothing}
      <form @submit=${onSubmit(({token}) => signIn(token.trim()))}>
        ${textField({
          label: 'Admin token or gateway key',
          name: 'token',
          type: 'password',
          placeholder: 'gk-…',
          required: true,
          autocomplete: 'current-password',
        })}
        ${formError()}
        <button class="button primary block">Sign in</button>
      </form>
      ${help()}
    </section>
  </div>
`;

const help = () => html`
  <details class="help">
    <summary>Where do I find one?</summary>
    <dl>
      <dt>You run the gateway</dt>
      <dd><code>gateway open</code> prints a link that signs you in once, without a token.</dd>
      <dt>You hold a key</dt>
      <dd>It begins with <code>gk-</code>. You see your own usage and images, and can make new ones.</dd>
    </dl>
  </details>
`;
