/**
 *   thumbnail(list, image)    a square of fixed size, so that nothing jumps while it comes;
 *                             `list` is '/images' or '/admin/images'
 *   undrawn(format)           in place of an image that this page never draws, such as an SVG
 *   altOf(image)              what an image shows, in words
 */
import {html} from '../vendor/lit-html.js';
import * as format from '../lib/format.js';
import {isDrawn} from '../lib/generation.js';
import {href} from '../lib/http.js';
import {icon} from './icons.js';

export const thumbnail = (list, image) => html`
  <span class="thumbnail">${isDrawn(image.format) ? picture(list, image) : undrawn(image.format)}</span>
`;

/** An SVG could contain script: only a program of the reader's own opens it. */
export const undrawn = (format) => html`
  <span class="undrawn" role="img" aria-label="A file: ${format}">${icon('images')}<span>${format.toUpperCase()}</span></span>
`;

const picture = (list, image) => html`
    <img
      src=${href(`${list}/${image.id}/thumbnail`)}
      loading="lazy"
      decoding="async"
      alt=${altOf(image)}
      width="320"
      height="320"
      @error=${(event) => event.target.classList.add('missing')}
    />
`;

export function altOf({prompt, model, size, created_at: at}) {
  return prompt ? prompt.slice(0, 200) : `${model}, ${size}, ${format.time(at)}`;
}
