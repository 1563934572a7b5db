/**
 * Image requests of the playground: one estimate, or one generation that may stream.
 *
 * Docs: docs/reference/headers.md#responses, cache.md#cache-status, images-api.md#streams.
 */
import {ApiError, href} from './http.js';
import {readEvents} from './sse.js';

/**
 * @typedef {object} Outcome
 * @property {{blob: Blob, format: string}[]} images  an SVG is never of a type that a browser opens
 * @property {(string|undefined)[]} revisedPrompts
 * @property {string[]} ids  of the images; empty if the answer was streamed while it was made
 * @property {'hit'|'bought'|'partial'|'collapsed'|'bypass'} handling
 * @property {string|null} detail  such as `stale-if-error`
 * @property {boolean} wasRequested  bought although there was an image: `no-cache`
 * @property {string|null} fingerprint
 * @property {number|null} costUsd  null while the books do not have it
 * @property {number|null} reservedUsd  the most that a live stream can cost
 * @property {number|null} savedUsd
 * @property {number|null} ageSeconds
 * @property {string|null} notice
 * @property {string} requestId
 */

/** @returns {Promise<{isHit: boolean, usd: number, remainingUsd: number|null, notice: string|null}>} */
export async function estimate({path, body, headers = {}, signal}) {
  const response = await send({path, body, headers: {...headers, Prefer: 'dry-run'}, signal});
  const found = await response.json();
  return {
    isHit: found.hit,
    usd: found.estimate_usd,
    remainingUsd: found.remaining,
    notice: response.headers.get('x-gateway-notice'),
  };
}

/**
 * Asks for images. Throws `ApiError`, also for an error in a stream.
 * @param {{path: string, body: object, headers?: object, signal: AbortSignal,
 *   onPartial?: (image: Blob, index: number) => void, onHead?: (facts: object) => void}} request
 * @returns {Promise<Outcome>}
 */
export async function generate({path, body, headers, signal, onPartial, onHead}) {
  const response = await send({path, body, headers, signal});
  const facts = headerFacts(response.headers);
  onHead?.(facts);
  const isStream = response.headers.get('Content-Type')?.startsWith('text/event-stream');
  const answer = isStream ? await readStream(response, onPartial) : await response.json();
  const items = isStream ? [answer] : answer.data;
  return {
    ...facts,
    images: items.map((item) => fileOf(item.b64_json, answer.output_format)),
    revisedPrompts: items.map((item) => item.revised_prompt),
  };
}

async function send({path, body, headers = {}, signal}) {
  let response;
  try {
    response = await fetch(href(path), {
      method: 'POST',
      headers: {'Content-Type': 'application/json', ...headers},
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw failure({message: 'The gateway did not answer.', code: 'no_answer'}, 0);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

// ── answers ───────────────────────────────────────────────────────────────────────────────────

async function readStream(response, onPartial) {
  for await (const {event, data} of readEvents(response.body)) {
    const fields = JSON.parse(data);
    if (event === 'image_generation.completed') return fields;
    if (event === 'error') throw failure(fields.error, response.status, response.headers);
    if (event === 'image_generation.partial_image') {
      onPartial?.(fileOf(fields.b64_json, fields.output_format).blob, fields.partial_image_index);
    }
  }
  const cutOff = {message: 'The connection ended before the image was there.', code: 'cut_off'};
  throw failure(cutOff, response.status, response.headers);
}

/** What the headers say about the images. */
export function headerFacts(headers) {
  const status = parseCacheStatus(headers.get('Cache-Status') ?? '');
  return {
    handling: handlingOf(status),
    detail: status.detail ?? null,
    wasRequested: status.fwd === 'request',
    fingerprint: status.key ?? null,
    costUsd: numberOf(headers, 'x-gateway-cost-usd'),
    reservedUsd: numberOf(headers, 'x-gateway-reserved-usd'),
    savedUsd: numberOf(headers, 'x-gateway-saved-usd'),
    ageSeconds: numberOf(headers, 'Age'),
    ids: (headers.get('x-gateway-image-ids') ?? '').split(',').filter(Boolean),
    notice: headers.get('x-gateway-notice'),
    requestId: headers.get('x-request-id') ?? '',
  };
}

/** The parameters of RFC 9211 for one cache: `image-gateway; fwd=miss; stored; key="…"`. */
function parseCacheStatus(text) {
  const [, ...parameters] = text.split(';').map((part) => part.trim());
  return Object.fromEntries(
    parameters.map((parameter) => {
      const [name, value] = parameter.split('=', 2);
      return [name, value === undefined ? true : value.replaceAll('"', '')];
    }),
  );
}

function handlingOf({hit, fwd, collapsed}) {
  if (hit) return 'hit';
  if (collapsed) return 'collapsed';
  return {partial: 'partial', bypass: 'bypass'}[fwd] ?? 'bought';
}

function numberOf(headers, name) {
  const text = headers.get(name);
  return text === null ? null : Number(text);
}

// ── errors ────────────────────────────────────────────────────────────────────────────────────

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? {message: `The gateway answered ${response.status}.`};
  return failure(error, response.status, response.headers);
}

/** An `ApiError` that also says when to retry, what was charged, and which request it was. */
function failure(error, status, headers = new Headers()) {
  const {message, code = null, param = null} = error;
  return Object.assign(new ApiError({status, code, message, param}), {
    retryAfterSeconds: numberOf(headers, 'Retry-After'),
    canRetry: headers.get('x-should-retry') !== 'false',
    costUsd: numberOf(headers, 'x-gateway-cost-usd'),
    source: headers.get('x-gateway-error-source'),
    requestId: headers.get('x-request-id') ?? '',
    at: Date.now() / 1000,
  });
}

// ── bytes ─────────────────────────────────────────────────────────────────────────────────────

const FORMATS = {0x89: 'png', 0xff: 'jpeg', 0x52: 'webp', 0x47: 'gif', 0x3c: 'svg'};

/**
 * An image as a blob, whose format its first byte tells. Script in an SVG would run with the session
 * of this page if a browser opened it under a `blob:` address, so its type is one that is only saved.
 */
function fileOf(base64, named) {
  const bytes = Uint8Array.fromBase64?.(base64) ?? Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const format = FORMATS[bytes[0]] ?? named ?? 'png';
  return {blob: new Blob([bytes], {type: isDrawn(format) ? `image/${format}` : 'application/octet-stream'}), format};
}

/** Whether the page shows images of a format. Others are documents, which it only offers to save. */
export const isDrawn = (format) => ['png', 'jpeg', 'webp', 'gif'].includes(format);
