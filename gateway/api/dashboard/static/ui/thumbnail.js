/**
 *   thumbnail(list, image)    a square of fixed size, so that nothing jumps while it comes;
 *                             `list` is '/images' or '/admin/images'
 *   altOf(image)              what an image shows, in words
 */
import {html} from '../vendor/lit-html.js';
import * as format from '../lib/format.js';
import {href} from '../lib/http.js';

export const thumbnail = (list, image) => html`
  <span class="thumbnail">
    <img
      src=${href(`${list}/${image.id}/thumbnail`)}
      loading="lazy"
      decoding="async"
      alt=${altOf(image)}
      width="320"
      height="320"
      @error=${(event) => event.target.classList.add('missing')}
    />
  </span>
`;

export function altOf({prompt, model, size, created_at: at}) {
  return prompt ? prompt.slice(0, 200) : `${model}, ${size}, ${format.time(at)}`;
}
