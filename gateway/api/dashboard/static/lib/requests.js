/**
 * Records of the books in words: outcomes, flags, the time line and the cost of one request.
 */
import {duration, latency, plural, usd} from './format.js';
import {limitLabel, scopeText} from './limits.js';

export const OUTCOMES = {
  bought: {label: 'Bought', level: 'ok', text: 'All requested images were bought.'},
  hit: {label: 'Hit', level: 'ok', text: 'Answered from the cache.'},
  partial: {label: 'Partly bought', level: 'ok', text: 'Some images were bought, some were in the cache or in another request’s purchase.'},
  collapsed: {label: 'Followed', level: 'ok', text: 'Followed the purchase of an identical request.'},
  refused: {label: 'Refused', level: 'warning', text: 'Refused before anything was bought.'},
  failed: {label: 'Failed', level: 'fault', text: 'A purchase without an image.'},
};

const FLAGS = {
  over_estimate: 'The bill was above the reserved estimate.',
  no_usage: 'Upstream reported no usage, so the estimate was charged.',
  assumed_free: 'Upstream answered with its own error, which is taken to be free.',
  undelivered: 'Charged for something that could not be delivered.',
  presumed: 'It is not known whether upstream charged it, so the estimate was charged.',
  unreadable: 'The journal of the purchase could not be read.',
  unfinished: 'The purchase could not be finished after three attempts.',
  unreserved: 'The store had lost the reservation.',
  shadow_limit: 'A limit in shadow mode would have refused it.',
  unknown_price: 'The model has no known price; the configured worst case was charged.',
  by_admin: 'An admin made this request with the key, in the dashboard.',
  flight_failed: 'The purchase that it followed failed.',
};

const KINDS = {
  text_in: 'Text in',
  cached_text_in: 'Text in, cached upstream',
  image_in: 'Image in',
  cached_image_in: 'Image in, cached upstream',
  image_out: 'Image out',
  text_out: 'Text out',
  svg_text_in: 'SVG text in',
  svg_text_out: 'SVG text out',
  image: 'Images, by price per image',
  estimated: 'Estimate',
};

export const outcomeOf = (name) => OUTCOMES[name] ?? {label: name, level: 'ok', text: ''};
export const flagText = (flag) => FLAGS[flag] ?? flag.replaceAll('_', ' ');
export const kindLabel = (kind) => KINDS[kind] ?? kind.replaceAll('_', ' ');

/**
 * @typedef {{time: number, title: string, text: string, level: string}} Step
 * @returns {Step[]} what happened, in order
 */
export function timeLine({records, open_purchases: open, followed}) {
  const steps = [
    ...followed.map((record) => stepOf(record, followedStep(record))),
    ...records.flatMap(recordSteps),
    ...open.map(openStep),
  ];
  return steps.sort((a, b) => a.time - b.time);
}

/** Rows of cost by kind, and their sum, over all records of a request. */
export function costRows(records) {
  const rows = new Map();
  for (const {tokens, costs_usd: costs} of records) {
    for (const kind of new Set([...Object.keys(tokens ?? {}), ...Object.keys(costs ?? {})])) {
      const row = rows.get(kind) ?? {kind, tokens: 0, usd: 0};
      row.tokens += tokens?.[kind] ?? 0;
      row.usd += costs?.[kind] ?? 0;
      rows.set(kind, row);
    }
  }
  return [...rows.values()];
}

/** What was asked for: `2 × gpt-image-2, 1024x1024, high`. */
function askedText({n, model, size, quality}) {
  const image = [model ?? 'unknown model', size, quality].filter(Boolean).join(', ');
  return n > 1 ? `${n} × ${image}` : image;
}

function recordSteps(record) {
  if (record.corrects) return [correctionStep(record)];
  const isPurchase = record.upstream && ['bought', 'partial', 'failed'].includes(record.outcome);
  const began = {title: isPurchase ? 'Reserved and sent' : 'Admitted', text: beganText(record, isPurchase), level: 'none'};
  return [stepOf(record, began), answerStep(record)];
}

function beganText(record, isPurchase) {
  const asked = askedText(record);
  return isPurchase ? `${asked} – to upstream ${record.upstream}` : asked;
}

function answerStep(record) {
  const {label, level, text} = outcomeOf(record.outcome);
  const result = [resultText(record), record.error && `${record.status} ${record.error}`, record.latency_ms ? `after ${latency(record.latency_ms)}` : ''];
  const said = result.filter(Boolean).join(', ');
  return {
    time: record.time + record.latency_ms / 1000,
    title: label,
    text: said ? `${text} ${said[0].toUpperCase()}${said.slice(1)}.` : text,
    level,
  };
}

function resultText({images, images_served: served, cost_usd: cost, saved_usd: saved, limit, scope}) {
  const parts = [];
  if (images) parts.push(`${plural(images, 'image')} bought for ${usd(cost)}`);
  else if (cost) parts.push(`charged ${usd(cost)}`);
  if (served) parts.push(`${plural(served, 'image')} served, ${usd(saved)} saved`);
  if (limit) parts.push(`over ${limitLabel(limit).toLowerCase()} of ${scopeText(scope)}`);
  return parts.join(', ');
}

function correctionStep(record) {
  const sign = record.cost_usd < 0 ? '' : '+';
  return {
    time: record.corrected_at ?? record.time,
    title: 'Corrected',
    text: `A late answer replaced the presumed charge: ${sign}${usd(record.cost_usd)}.`,
    level: 'ok',
  };
}

function followedStep(record) {
  return {title: 'Another request’s purchase', text: `${askedText(record)}, by ${record.key}: the request followed it`, level: 'none'};
}

function openStep({since, state, reserved_usd: reserved, upstream, worker}) {
  const waits = state === 'received' ? 'The images are stored; the settlement follows.' : `${upstream ?? 'Upstream'} has not answered yet.`;
  const age = since ? ` For ${duration(Date.now() / 1000 - since)}.` : '';
  return {time: since ?? Date.now() / 1000, title: 'Under way', text: `${usd(reserved)} reserved by worker ${worker}. ${waits}${age}`, level: 'warning'};
}

function stepOf(record, step) {
  return {time: record.time, ...step};
}
