/**
 * The page's API: everything below /dashboard/api.
 *
 *   get(path, params, {signal})     → JSON
 *   post / patch / del(path, body)  → JSON, or null for 204
 *   request(path, options)          → the Response itself, for streams and headers
 *   href(path, params)              → an address for a link, such as "CSV"
 *
 * A path begins with "/", as in get('/admin/overview'). Every failure is an ApiError.
 */

export const API = '/dashboard/api';

export class ApiError extends Error {
  /** @param {{status: number, code?: string, message: string, param?: string}} error */
  constructor({status, code, message, param}) {
    super(message);
    this.status = status; // 0: no answer arrived
    this.code = code ?? '';
    this.param = param ?? '';
  }

  /** The store cannot be reached: the banner says what still works. */
  get storeDown() {
    return this.code === 'store_unavailable';
  }

  /** It passes by itself: another attempt is worth while. */
  get passes() {
    return this.storeDown || this.status === 0;
  }

  get signedOut() {
    return this.status === 401;
  }
}

/**
 * An address below the page's API. A list repeats its name. Empty parameters are left out; in a
 * list "" stays, as for records without a team: {team: ['']}.
 */
export function href(path, params = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (Array.isArray(value)) value.forEach((each) => search.append(name, each));
    else if ((value ?? '') !== '') search.append(name, value);
  }
  const text = search.toString();
  return API + path + (text ? `?${text}` : '');
}

export async function request(path, {method = 'GET', params, body, headers = {}, signal} = {}) {
  const options = {method, signal, headers: {...headers}};
  if (body !== undefined) {
    options.headers['Content-Type'] = 'application/json';
    options.body = JSON.stringify(body);
  }
  const response = await fetch(href(path, params), options).catch(noAnswer);
  if (!response.ok) throw await errorOf(response);
  return response;
}

export const get = async (path, params, {signal} = {}) => json(await request(path, {params, signal}));
export const post = async (path, body = {}, options) =>
  json(await request(path, {...options, method: 'POST', body}));
export const patch = async (path, body = {}, options) =>
  json(await request(path, {...options, method: 'PATCH', body}));
export const del = async (path, body, options) =>
  json(await request(path, {...options, method: 'DELETE', body}));

async function json(response) {
  return response.status === 204 ? null : response.json();
}

function noAnswer(error) {
  if (error.name === 'AbortError') throw error;
  throw new ApiError({status: 0, code: 'no_answer', message: 'The gateway did not answer.'});
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const {code, message, param} = body?.error ?? {};
  return new ApiError({
    status: response.status,
    code: code ?? '',
    message: message || `The gateway answered ${response.status}.`,
    param: param ?? '',
  });
}
