/** The playground's form: key, model, prompt, parameters, the estimate, and the buttons. */
import {html, nothing} from '../vendor/lit-html.js';
import * as format from '../lib/format.js';
import {get} from '../lib/http.js';
import {
  canStream,
  fieldsOf,
  initialPartialImages,
  isUsable,
  maxImages,
  parameterOf,
  sizeChoices,
  valueOf,
  whyFixed,
} from '../lib/parameters.js';
import {scrolling} from '../lib/motion.js';
import {label, MAX_SIDE_BY_SIDE, VARIATION} from '../lib/studio.js';
import {badge} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';
import {problem} from './playground_results.js';

const MAX_BUTTONS = 4;
const MAX_TEXT = 512;
const SUGGESTIONS = 20;

export function formCard(studio, view, data) {
  const {main, more} = fieldsOf(studio.model);
  const generate = (event) => {
    event.preventDefault();
    studio.generate();
    showStage();
  };
  const shown = (parameter) => parameterField(studio, parameter);
  return html`
    <form class="studio-form" novalidate @submit=${generate} @keydown=${submitOnCommandEnter}>
      <section class="card stack">
        <h2 class="hidden">Request</h2>
        ${data.keys ? keyPicker(view, data) : nothing} ${modelField(studio)} ${promptField(studio)}
        ${estimateLine(studio, view)} ${buttons(studio)}
      </section>
      <section class="card stack">
        <h2>Settings</h2>
        ${main.map(shown)} ${amountFields(studio)}
        ${studio.note ? html`<p class="hint" role="status">${studio.note}</p>` : nothing}
        <details class="studio-more">
          <summary>More settings</summary>
          ${more.map(shown)} ${variationField(studio)}
        </details>
      </section>
    </form>
  `;
}

/** On a narrow screen the images are below the form. */
function showStage() {
  const stage = document.querySelector('.studio-side');
  if (stage.getBoundingClientRect().top > innerHeight / 2) stage.scrollIntoView({behavior: scrolling()});
}

function submitOnCommandEnter(event) {
  if (event.key !== 'Enter' || !(event.metaKey || event.ctrlKey)) return;
  event.preventDefault();
  event.currentTarget.requestSubmit();
}

// ── key and model ─────────────────────────────────────────────────────────────────────────────

/** An admin picks any key: typing searches all of them. */
export function keyPicker(view, data) {
  return field({
    name: 'playground-key',
    label: 'Key',
    hint: `Images are charged to this key${data.key?.team ? ` of team ${data.key.team}` : ''}.`,
    control: html`
      <input
        id="field-playground-key"
        list="playground-keys"
        type="search"
        autocomplete="off"
        spellcheck="false"
        .value=${data.key?.name ?? ''}
        placeholder="Search keys"
        @input=${(event) => suggestKeys(view, data, event.target.value)}
        @change=${(event) => pickKey(view, data, event.target)}
      />
      <datalist id="playground-keys">
        ${data.keys.map((key) => html`<option value=${key.name}>${key.team ?? ''}</option>`)}
      </datalist>
    `,
  });
}

/** Some active keys whose name, team or id has this text. */
export async function activeKeys(search, {signal} = {}) {
  const {data} = await get('/admin/keys', {search, limit: SUGGESTIONS, state: 'active'}, {signal});
  return data.filter((key) => !key.revoked_at);
}

async function suggestKeys({app}, data, text) {
  data.keys = await activeKeys(text).catch(() => data.keys);
  app.update();
}

async function pickKey({app, query, setQuery}, data, input) {
  const isNamed = (key) => key.name === input.value.trim();
  await suggestKeys({app}, data, input.value.trim());
  const key = data.keys.find(isNamed) ?? (data.keys.length === 1 ? data.keys[0] : null);
  if (key) return setQuery({...query, key: key.id});
  app.toast(`No active key is named ${input.value}.`, 'warning');
  input.value = data.key?.name ?? '';
}

function modelField(studio) {
  const {model} = studio;
  const ending = model.shutdown_date ? ` Upstream shuts it down on ${model.shutdown_date}.` : '';
  return field({
    name: 'model',
    label: 'Model',
    hint: `Billed by ${model.billed === 'image' ? 'image' : 'tokens'}.${ending}`,
    fault: studio.faults.model,
    control: html`
      <select id="field-model" name="model" @change=${(event) => studio.setModel(event.target.value)}>
        ${studio.models.map(({id}) => html`<option value=${id} .selected=${id === model.id}>${id}</option>`)}
      </select>
    `,
  });
}

function promptField(studio) {
  const {
    promptLength: length,
    model: {prompt_max: most},
  } = studio;
  const tooLong =
    length > most
      ? `This model reads ${format.count(most)} characters; ${format.count(length - most)} are too many.`
      : '';
  return field({
    name: 'prompt',
    label: 'Prompt',
    fault: tooLong || studio.faults.prompt,
    note: html`<span class="counter ${tooLong ? 'fault-text' : ''}"
      >${format.count(length)} / ${format.count(most)}</span
    >`,
    control: html`
      <textarea
        id="field-prompt"
        name="prompt"
        rows="5"
        placeholder="A lighthouse in the fog, oil on canvas"
        aria-describedby="error-prompt"
        aria-invalid=${tooLong || studio.faults.prompt ? 'true' : nothing}
        .value=${studio.prompt}
        @input=${(event) => studio.setPrompt(event.target.value)}
      ></textarea>
    `,
  });
}

// ── parameters ────────────────────────────────────────────────────────────────────────────────

function parameterField(studio, parameter) {
  if (!isUsable(studio.model, studio.values, parameter)) return nothing;
  if (parameter.name === 'size') return sizeField(studio, parameter);
  return CONTROLS[parameter.type]?.(studio, parameter) ?? nothing;
}

const CONTROLS = {
  enum: enumField,
  integer: numberField,
  decimal: numberField,
  string: textField,
  object: textField,
  boolean: enumField,
  size: sizeField,
};

function enumField(studio, parameter) {
  const options = autoFirst(parameter.values).map((value) => ({value, label: String(value)}));
  const omitted = {value: '', label: 'Not set'};
  return chooser(studio, parameter, parameter.default === null ? [omitted, ...options] : options);
}

function chooser(studio, {name}, options) {
  const value = valueOf(studio.model, studio.values, name) ?? '';
  const choose = (chosen) => studio.set(name, chosen);
  const control = options.length > MAX_BUTTONS ? select : radios;
  return field({
    name,
    label: label(name),
    isGroup: control === radios,
    fault: studio.faults[name],
    control: control({name, value, options, choose}),
  });
}

const radios = ({name, value, options, choose}) => html`
  <div class="choice wide ${name}" role="radiogroup" aria-labelledby="label-${name}">
    ${options.map(
      (option) => html`
        <label>
          <input
            type="radio"
            name=${name}
            value=${option.value}
            .checked=${option.value === value}
            @change=${() => choose(option.value)}
          /><span>${option.icon ?? nothing}${option.label}</span>
        </label>
      `,
    )}
  </div>
`;

const select = ({name, value, options, choose}) => html`
  <select id="field-${name}" name=${name} @change=${(event) => choose(event.target.value)}>
    ${options.map((option) => html`<option value=${option.value} .selected=${option.value === value}>${option.label}</option>`)}
  </select>
`;

function numberField(studio, parameter) {
  const {name, type, min, max} = parameter;
  const isWhole = type === 'integer';
  const fixed = whyFixed(studio.model, studio.values, parameter);
  const set = (event) => studio.set(name, clamped(event.target, parameter));
  return field({
    name,
    label: label(name),
    hint: fixed ?? `${min} to ${max}`,
    fault: studio.faults[name],
    control: html`
      <input
        id="field-${name}"
        name=${name}
        type="number"
        inputmode=${isWhole ? 'numeric' : 'decimal'}
        min=${min}
        max=${max}
        step=${isWhole ? '1' : parameter.step ?? 'any'}
        placeholder=${parameter.default === null ? 'Not set' : nothing}
        ?disabled=${fixed !== null}
        .value=${String(valueOf(studio.model, studio.values, name) ?? '')}
        @change=${set}
      />
    `,
  });
}

function clamped(input, {min, max, type, default: standard}) {
  const number = type === 'decimal' ? Number(input.value) : Math.round(Number(input.value));
  const value = input.value === '' || Number.isNaN(number) ? standard : Math.min(Math.max(number, min), max);
  input.value = String(value ?? '');
  return value;
}

function textField(studio, {name, fields, max_length: most}) {
  return field({
    name,
    label: label(name),
    hint: fields ? objectHint(fields) : HINTS[name] ?? nothing,
    fault: studio.faults[name],
    control: html`
      <input
        id="field-${name}"
        name=${name}
        type="text"
        autocomplete="off"
        spellcheck="false"
        maxlength=${most ?? MAX_TEXT}
        .value=${studio.values[name] ?? ''}
        @input=${(event) => studio.set(name, event.target.value)}
      />
    `,
  });
}

const objectHint = (fields) =>
  `A JSON object with ${fields.map(({name, required}) => (required ? name : `${name} (optional)`)).join(', ')}.`;

const HINTS = {
  user: 'Your name for the end user. It does not change the image.',
  safety_identifier: 'The same under its newer name.',
};

const autoFirst = (values) => [...values].sort((a, b) => (b === 'auto') - (a === 'auto'));

// ── sizes ─────────────────────────────────────────────────────────────────────────────────────

function sizeField(studio, parameter) {
  const value = valueOf(studio.model, studio.values, 'size');
  const known = autoFirst(sizeChoices(parameter));
  const options = known.map((size) => ({value: size, label: sizeLabel(size), icon: shape(size)}));
  if (parameter.type !== 'size') return chooser(studio, {name: 'size'}, options);
  const shown = known.includes(value) ? value : 'custom';
  const choose = (size) => studio.set('size', size === 'custom' ? '1824x1024' : size);
  return field({
    name: 'size',
    label: 'Size',
    isGroup: true,
    fault: studio.faults.size,
    control: html`
      ${radios({name: 'size', value: shown, options: [...options, {value: 'custom', label: 'Custom', icon: shape('custom')}], choose})}
      ${shown === 'custom' ? customSize(studio, value, parameter.rule) : nothing}
    `,
  });
}

function customSize(studio, value, rule) {
  const [width, height] = (value ?? '').split('x');
  const set = (event) => {
    const inputs = event.currentTarget.querySelectorAll('input');
    studio.set('size', [...inputs].map((input) => Number(input.value) || 0).join('x'));
  };
  const edge = (name, edgeValue) => html`
    <label
      ><span class="hidden">${name}</span>
      <input
        type="number"
        inputmode="numeric"
        min="16"
        step="16"
        aria-describedby="size-rule"
        .value=${edgeValue}
      />
    </label>
  `;
  return html`
    <div class="custom-size" @change=${set}>
      ${edge('Width', width)}<span aria-hidden="true">×</span>${edge('Height', height)}
    </div>
    ${rule ? html`<p class="hint" id="size-rule">${rule}</p>` : nothing}
  `;
}

const sizeLabel = (size) => (size === 'auto' ? 'Auto' : size.replace('x', '×'));

/** A size as a small frame of its proportions. */
function shape(size) {
  const [width, height] = /^\d+x\d+$/.test(size) ? size.split('x').map(Number) : [1, 1];
  const scale = 12 / Math.max(width, height);
  const [w, h] = [width * scale, height * scale];
  return html`
    <svg class="shape ${/^\d/.test(size) ? '' : 'open'}" viewBox="0 0 16 16" aria-hidden="true">
      <rect x=${8 - w / 2} y=${8 - h / 2} width=${w} height=${h} rx="2" />
    </svg>
  `;
}

// ── how many ──────────────────────────────────────────────────────────────────────────────────

function amountFields(studio) {
  const numbers = (last) =>
    Array.from({length: last}, (_, i) => ({value: String(i + 1), label: String(i + 1)}));
  const most = maxImages(studio.model);
  return html`
    <div class="field-row">
      ${field({
        name: 'n',
        label: 'Images a request',
        fault: studio.faults.n,
        hint: most === 1 ? 'This model makes one.' : nothing,
        control: select({
          name: 'n',
          value: String(studio.images),
          options: numbers(most),
          choose: (n) => studio.set('n', Number(n)),
        }),
      })}
      ${field({
        name: 'side',
        label: 'Variations side by side',
        control: select({
          name: 'side',
          value: String(studio.side),
          options: numbers(MAX_SIDE_BY_SIDE),
          choose: (n) => studio.setSide(Number(n)),
        }),
      })}
    </div>
    ${partialImagesField(studio)}
  `;
}

function partialImagesField(studio) {
  const {model, values} = studio;
  if (!model.partial_images_max || !parameterOf(model, 'partial_images')) return nothing;
  const options = Array.from({length: model.partial_images_max + 1}, (_, i) => ({
    value: String(i),
    label: i ? String(i) : 'None',
  }));
  if (!canStream(model, values)) {
    return html`<p class="hint">Partial images come with one image a request, if its format can be streamed.</p>`;
  }
  return field({
    name: 'partial_images',
    label: 'Partial images while it is made',
    isGroup: true,
    fault: studio.faults.partial_images,
    control: radios({
      name: 'partial_images',
      value: String(values.partial_images ?? initialPartialImages(model)),
      options,
      choose: (n) => studio.set('partial_images', Number(n)),
    }),
  });
}

function variationField(studio) {
  const parameter = {min: 0, max: studio.lastVariation, default: 0};
  return field({
    name: 'variation',
    label: 'First variation',
    hint: `0 to ${studio.lastVariation}. The same prompt has up to 64 images; each number is always the same one.`,
    fault: studio.faults[VARIATION],
    control: html`
      <input
        id="field-variation"
        name="variation"
        type="number"
        inputmode="numeric"
        min="0"
        max=${studio.lastVariation}
        .value=${String(studio.variation)}
        @change=${(event) => studio.setVariation(clamped(event.target, parameter))}
      />
    `,
  });
}

// ── estimate and buttons ──────────────────────────────────────────────────────────────────────

function estimateLine(studio, view) {
  const {estimate} = studio;
  if (estimate.state === 'failed' && !studio.hasField(estimate.error.param))
    return problem(estimate.error, {view, owner: studio.owner});
  return html`<div class="estimate ${estimate.state}" role="status">${estimateText(studio)}</div>`;
}

function estimateText({estimate, prompt, faults, isRunning}) {
  if (estimate.usd !== undefined && estimate.state !== 'none') return foundEstimate(estimate);
  if (Object.keys(faults).length)
    return html`<span class="note">Change the marked field to see the price.</span>`;
  if (isRunning) return html`<span class="note">Working…</span>`;
  return html`<span class="note"
    >${prompt ? 'Looking up the price…' : 'Write a prompt to see what it costs.'}</span
  >`;
}

function foundEstimate({usd, hits, total, remainingUsd}) {
  const left =
    remainingUsd === null || remainingUsd === undefined
      ? ''
      : `${format.usd(remainingUsd)} left of the budget`;
  if (hits === total) {
    return html`${badge('Hit', 'ok')} <strong>Free</strong>
      <span class="note">from the cache${left ? ` · ${left}` : ''}</span>`;
  }
  const isOver = left && usd > remainingUsd;
  return html`
    <span class="note">At most</span> <strong class="price">${format.usd(usd)}</strong>
    <span class="note">
      ${hits ? html`${hits} of ${total} from the cache ·` : nothing}
      ${isOver ? html`<span class="fault-text">only ${left}</span>` : left}
    </span>
  `;
}

function buttons(studio) {
  const stop = html`
    <button type="button" class="button" @click=${() => studio.stop()}>${icon('close')} Stop</button>
  `;
  return html`
    <div class="row">
      <button
        class="button primary grow"
        title="Ctrl+Enter"
        ?disabled=${!studio.canGenerate && !studio.isRunning}
        aria-disabled=${studio.isRunning ? 'true' : nothing}
      >
        ${icon('playground')} ${studio.isRunning ? 'Generating…' : 'Generate'}
      </button>
      ${studio.isRunning ? stop : nothing}
    </div>
  `;
}

/** As `ui/form.js` has it, with a note beside the label, and its error as part of the template. */
function field({name, label: text, control, hint = nothing, note = nothing, fault = '', isGroup = false}) {
  return html`
    <div class="field ${fault ? 'invalid' : ''}">
      <div class="field-label">
        ${
          isGroup
            ? html`<span class="label" id="label-${name}">${text}</span>`
            : html`<label for="field-${name}">${text}</label>`
        }
        ${note}
      </div>
      ${control} ${hint === nothing ? nothing : html`<p class="hint">${hint}</p>`}
      <p class="field-error" id="error-${name}" role=${fault ? 'alert' : nothing}>${fault}</p>
    </div>
  `;
}
