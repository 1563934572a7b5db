/**
 * The parameters of a model as a form has them: only legal ones, only what differs from the default.
 *
 * A model is a row of `/dashboard/api/models`. No model is named here.
 */

import {needsBase64} from './snippets.js';

/** Parameters that the form does not show as they are: it decides them, or has an own field. */
const OWN_FIELDS = new Set(['n', 'stream', 'partial_images', 'response_format']);

const SHOWN_LATER = new Set([
  ...['user', 'safety_identifier', 'moderation', 'output_compression', 'frame_duration_ms'],
]);

const isShownLater = ({name}) => SHOWN_LATER.has(name);

const PRESET_SIZES = ['1024x1024', '1536x1024', '1024x1536', '2048x2048'];

const PARTIAL_IMAGES = 2;

/** The types whose field has a number, and that whose field has text. */
const NUMBERS = new Set(['integer', 'decimal']);
const TEXTS = {string: 'object'};

export const parameterOf = (model, name) => model.parameters.find((p) => p.name === name);

/** The fields of a model: those that most people use, and the others. */
export function fieldsOf(model) {
  const shown = model.parameters.filter(({name}) => !OWN_FIELDS.has(name));
  return {
    main: shown.filter((parameter) => !isShownLater(parameter)),
    more: shown.filter(isShownLater),
  };
}

export function valueOf(model, values, name) {
  return values[name] ?? parameterOf(model, name)?.default ?? null;
}

/** The sizes to choose from. Of a model with free sizes, some that are often used. */
export function sizeChoices(parameter) {
  const values = parameter.values ?? [];
  return parameter.type === 'size' ? [...new Set([...values, ...PRESET_SIZES])] : values;
}

export function maxImages(model) {
  return parameterOf(model, 'n')?.max ?? 1;
}

export function canStream(model, values) {
  if (!model.streams || !parameterOf(model, 'stream') || (values.n ?? 1) !== 1) return false;
  return !brokenRules(model, {...values, stream: true}).some(({when}) => 'stream' in when);
}

/** How many partial images a new form asks for. */
export const initialPartialImages = (model) => Math.min(PARTIAL_IMAGES, model.partial_images_max ?? 0);

/** The body of a request. Values at their default are left out. */
export function bodyOf({model, prompt, values}) {
  const body = {model: model.id, prompt};
  for (const {name, type, default: standard} of model.parameters) {
    const value = values[name] ?? '';
    if (value === standard || value === '') continue;
    if (name !== 'partial_images') body[name] = type === 'object' ? asJson(value) : value;
  }
  if (needsBase64(model)) body.response_format = 'b64_json';
  if (!canStream(model, values)) return body;
  const partials = values.partial_images ?? initialPartialImages(model);
  return {...body, stream: true, ...(partials ? {partial_images: partials} : {})};
}

/** The value of a JSON text. The gateway refuses a text that is none, and its error names the field. */
function asJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// ── combinations ──────────────────────────────────────────────────────────────────────────────

/** The rules that values break, as `{param, message, names}`. */
function brokenRules(model, values) {
  return (model.rules ?? []).filter((rule) =>
    Object.entries(rule.when).every(([name, condition]) => holds(condition, valueOf(model, values, name))),
  );
}

function holds({given, equals, not_equals: unequal, above, below}, value) {
  if (isSet(given)) return isSet(value) === given;
  if (isSet(equals)) return value === equals;
  if (isSet(unequal)) return value !== unequal;
  if (typeof value !== 'number') return false;
  return isSet(above) ? value > above : isSet(below) && value < below;
}

const isSet = (value) => value !== undefined && value !== null && value !== '';

/**
 * Sets a value. The last choice wins: another parameter that forbids it goes back to its default.
 * @returns {{values: object, reset: string[]}} `reset` names the parameters that went back
 */
export function setValue(model, values, name, value) {
  const next = {...values, [name]: value};
  const reset = [];
  for (const rule of brokenRules(model, next)) {
    const other = Object.keys(rule.when).find((n) => n !== name && n !== 'stream');
    if (!other || next[other] === undefined) continue;
    delete next[other];
    reset.push(other);
  }
  return {values: next, reset};
}

/** Whether a parameter may be set beside the other values: some belong to one format only. */
export function isUsable(model, values, {name}) {
  const forbids = ({when}) => when[name]?.given === true;
  return isSet(values[name]) || !brokenRules(model, {...values, [name]: {}}).some(forbids);
}

/** Why only the default of a number is legal beside the other values; null if others are too. */
export function whyFixed(model, values, parameter) {
  if (parameter.type !== 'integer') return null;
  if (parameter.min === parameter.max) return `This model takes ${parameter.default} only.`;
  const others = [parameter.min, parameter.max].filter((value) => value !== parameter.default);
  const broken = others.map((value) => brokenRules(model, {...values, [parameter.name]: value})[0]);
  return broken.every(Boolean) ? broken[0].message : null;
}

/** The values of another model that this one has too. */
export function carriedOver(values, model) {
  return Object.fromEntries(
    Object.entries(values).filter(([name, value]) => {
      const parameter = parameterOf(model, name);
      if (!parameter) return false;
      if (parameter.type === 'enum') return parameter.values.includes(value);
      if (NUMBERS.has(parameter.type)) return value >= parameter.min && value <= parameter.max;
      return [typeof value, TEXTS[typeof value]].includes(parameter.type) || parameter.type === 'size';
    }),
  );
}

/** Width and height that an answer will probably have; square if that is not known. */
export function expectedSize(model, values) {
  const [, width, height] = /^(\d+)x(\d+)$/.exec(valueOf(model, values, 'size') ?? '') ?? [];
  return width ? {width: Number(width), height: Number(height)} : {width: 1024, height: 1024};
}
