/** What a person can do about an error of an image request. */

/**
 * @typedef {object} Advice
 * @property {string} title
 * @property {string} text  what to do
 * @property {string|null} limit  the limit that is reached, such as `usd_per_month`
 * @property {boolean} isOfKey  whether it is the key's own limit
 * @property {number|null} resetsAt  Unix seconds
 * @property {boolean} retry  whether the same request can succeed later
 * @property {boolean} mayCostAgain  because upstream may have charged the failure
 */

const SAFETY = 'The safety system refuses this prompt. Say it in other words.';
const OPERATOR = 'Only the operator of this gateway can fix that. Tell them the request id.';
const AGAIN = 'Try again. If it happens again, tell the operator the request id.';
const NOT_CHARGED = 'Nothing was charged. Try again in a moment.';

/** By code: the title, what to do, and whether a retry can help. */
const KNOWN = {
  insufficient_quota: [
    'Over the budget',
    'Choose something cheaper, wait for the reset, or ask for more.',
    false,
  ],
  rate_limit_exceeded: ['Too many requests', 'Wait a moment, then try again.', true],
  too_many_open: ['Too many requests at once', 'Wait until one has ended.', true],
  moderation_blocked: ['Refused by the safety system', SAFETY, false],
  content_policy_violation: ['Refused by the safety system', SAFETY, false],
  content_taken_down: [
    'Taken down',
    'The operator took down this image or this prompt. Use another prompt.',
    false,
  ],
  model_not_found: [
    'This key may not use the model',
    'Choose another model, or ask the operator to allow it.',
    false,
  ],
  unknown_price: [
    'The model has no price',
    'Choose another model, or ask the operator to set its price.',
    false,
  ],
  max_cost_exceeded: ['More expensive than allowed', 'Choose a smaller size or a lower quality.', false],
  upstream_auth: ['The image service refuses the gateway', OPERATOR, false],
  image_generation_failed: ['The image could not be made', AGAIN, true],
  upstream_error: ['The image service failed', AGAIN, true],
  upstream_unavailable: ['The image service does not answer', NOT_CHARGED, true],
  overloaded: ['The gateway is busy', NOT_CHARGED, true],
  store_unavailable: ['The store does not answer', NOT_CHARGED, true],
  invalid_api_key: ['The key is not active any more', 'Sign in with another key.', false],
  session_required: ['You are signed out', 'Sign in again. Your prompt is still here.', false],
  no_answer: [
    'No connection to the gateway',
    'Check your network, then try again. An image that was being made is in the cache.',
    true,
  ],
  cut_off: ['The connection ended early', 'Try again: if the image was made, it comes from the cache.', true],
};

/** @returns {Advice} */
export function adviceOf(error) {
  const [title, text, retry] = KNOWN[error.code] ?? general(error);
  return {
    title,
    text,
    limit: /^Limit (\w+) of /.exec(error.message)?.[1] ?? null,
    isOfKey: / of key '/.test(error.message),
    resetsAt: resetTime(error),
    retry,
    mayCostAgain: retry && error.canRetry === false,
  };
}

function resetTime({message, at, retryAfterSeconds}) {
  const seconds = retryAfterSeconds ?? goSeconds(/resets in ([\w.]+?)\.?(?:\s|$)/.exec(message)?.[1]);
  return seconds === null ? null : at + seconds;
}

function general({status, param, source}) {
  if (status === 400) {
    const fix = param ? 'Change the field that is marked.' : 'Change the settings.';
    return ['The request is not valid', fix, false];
  }
  // A stream that has begun has the status 200.
  const isFailure = status >= 500 || status === 200;
  if (!isFailure) return ['The request was refused', '', false];
  return [source === 'upstream' ? 'The image service failed' : 'The gateway failed', AGAIN, true];
}

/** Seconds of a duration as Go writes it: `29h4m12s`. Null for anything else. */
export function goSeconds(text) {
  const match = /^(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?$/.exec(text ?? '');
  if (!match || !text) return null;
  const [hours, minutes, seconds, milliseconds] = match.slice(1).map((part) => Number(part ?? 0));
  return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000;
}
