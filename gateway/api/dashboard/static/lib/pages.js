/**
 * Pages of lists that the gateway searches: it stops after some thousand entries, so that a page
 * may be short or empty although its `after` leads further.
 */
import {get} from './http.js';

const ENOUGH = 12;
const MORE_ANSWERS = 3;

/** A page with some rows, or all that a few answers had. Its `after` is that of the last answer. */
export async function getPage(path, params, options) {
  let page = await get(path, params, options);
  for (let more = 0; more < MORE_ANSWERS && page.after && page.data.length < ENOUGH; more += 1) {
    const limit = params.limit - page.data.length;
    const next = await get(path, {...params, limit, after: page.after}, options);
    page = {...next, data: [...page.data, ...next.data]};
  }
  return page;
}
