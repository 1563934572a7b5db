/**
 * Bars are SVG: their width is an attribute, which the content security policy allows.
 *
 *   limitBar({label, used, reserved, max, format, note, warnAt})
 *       a limit: what is used and reserved of it; max null: no limit, only the figures
 *   meter({label, used, reserved, max})
 *       the bar of a limit alone
 *   shareBar(ratio, saved = 0)
 *       a thin bar in a table: 0..1 of the largest row; what was saved follows in green
 */

import {html, nothing} from '../vendor/lit-html.js';
import {count, percent} from '../lib/format.js';

const width = (ratio) => `${Math.min(Math.max(ratio || 0, 0), 1) * 100}%`;

export function limitBar({label, used, reserved = 0, max, format = count, note = nothing, warnAt = 0.8}) {
  const ratio = max ? (used + reserved) / max : used > 0 && max === 0 ? 1 : 0;
  const level = ratio >= 1 ? 'fault' : ratio >= warnAt ? 'warning' : 'ok';
  const of = max === null || max === undefined ? 'no limit' : `of ${format(max)}`;
  return html`
    <div class="limit ${level}">
      <div class="limit-text">
        <span class="limit-label">${label}</span>
        <span><strong>${format(used)}</strong> ${of}</span>
      </div>
      ${max === null || max === undefined ? nothing : meter({label, used, reserved, max})}
      ${note === nothing ? nothing : html`<div class="note">${note}</div>`}
    </div>
  `;
}

export function meter({label, used, reserved = 0, max}) {
  const ratio = (amount) => (max ? amount / max : Number(amount > 0));
  return html`
    <svg class="bar" role="img" aria-label="${label}: ${percent(ratio(used))} used">
      <rect class="track" width="100%" height="100%" />
      <rect class="reserved" width=${width(ratio(used + reserved))} height="100%" />
      <rect class="used" width=${width(ratio(used))} height="100%" />
    </svg>
  `;
}

export const shareBar = (ratio, saved = 0) => html`
  <svg class="bar thin" aria-hidden="true">
    <rect class="saved" width=${width(ratio + saved)} height="100%" />
    <rect class="used" width=${width(ratio)} height="100%" />
  </svg>
`;
