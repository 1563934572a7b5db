/**
 * The playground's state: the form, its estimate, the runs side by side, and the history.
 *
 * It outlives the view, so a run goes on while its owner looks at another one. Templates are in
 * `views/playground*.js`. `changed` is called after every change.
 */
import {estimate, generate} from './generation.js';
import {addToHistory, clearHistory, readHistory, thumbnailOf} from './history.js';
import {get} from './http.js';
import * as form from './parameters.js';

export const MAX_SIDE_BY_SIDE = 4;
const MAX_VARIATION = 63;
export const VARIATION = 'X-Gateway-Variation';

/** An estimate counts as a request of the key: ask only when typing has stopped. */
const ESTIMATE_DELAY_MS = 600;
const TICK_MS = 200;
const SETTLE_DELAYS_MS = [300, 1000, 3000];
const RECENT_IMAGES = 20;

/**
 * @typedef {object} Run  one request, and its place side by side
 * @property {'running'|'done'|'failed'|'stopped'} status
 * @property {number} variation
 * @property {object} body
 * @property {string} model
 * @property {{width: number, height: number}} size
 * @property {number} startedAt  milliseconds
 * @property {number} endedAt
 * @property {number} partials  how many have come
 * @property {string|null} previewUrl  of the last partial image
 * @property {{url: string, blob: Blob, revisedPrompt?: string}[]} images
 * @property {import('./generation.js').Outcome|null} outcome
 * @property {Error|null} error
 */

export class Studio {
  /** What the view opened it with. */
  opened = null;
  /** Whose key: `{id, name, generations, images}`, see `holder`. */
  owner = null;
  models = [];
  model = null;
  prompt = '';
  values = {};
  variation = 0;
  side = 1;
  language = 'curl';
  /** @type {Run[]} */
  runs = [];
  history = [];
  /** `{state: 'none'|'loading'|'ready'|'failed', …}` */
  estimate = {state: 'none'};
  /** `{param: message}` */
  faults = {};
  note = '';

  #changed;
  #estimateTimer = 0;
  #estimateAborter = new AbortController();
  #ticker = 0;

  constructor(changed) {
    this.#changed = changed;
  }

  /** Works under this key from now on. The form stays as far as the key's models allow. */
  open({owner, models, standard}) {
    const isSame = owner.id === this.owner?.id;
    Object.assign(this, {owner, models});
    const wanted = this.model?.id ?? standard;
    this.#useModel(models.find((m) => m.id === wanted) ?? models[0] ?? null);
    if (isSame) return;
    this.#freeRuns(); // they are of another key
    this.history = readHistory(owner.id);
    this.#scheduleEstimate();
  }

  /** Forgets everything, as for another session. */
  close() {
    this.stop();
    this.#freeRuns();
    clearTimeout(this.#estimateTimer);
    this.#estimateAborter.abort();
    Object.assign(this, {
      owner: null,
      model: null,
      prompt: '',
      values: {},
      variation: 0,
      side: 1,
      history: [],
      estimate: {state: 'none'},
      faults: {},
      note: '',
    });
  }

  // ── the form ────────────────────────────────────────────────────────────────────────────────

  setPrompt(prompt) {
    this.prompt = prompt;
    this.#edited();
  }

  setModel(id) {
    this.#useModel(this.models.find((model) => model.id === id) ?? this.model);
    this.#edited();
  }

  set(name, value) {
    const {values, reset} = form.setValue(this.model, this.values, name, value);
    this.values = values;
    const standards = reset.map(
      (other) => `${label(other)} is back to ${form.parameterOf(this.model, other).default ?? 'not set'}`,
    );
    this.#edited(standards.length ? `${standards.join(', ')}: the two do not go together.` : '');
  }

  setVariation(variation) {
    this.variation = variation;
    this.#edited();
  }

  setSide(side) {
    this.side = clamp(side, 1, MAX_SIDE_BY_SIDE);
    this.#edited();
  }

  setLanguage(language) {
    this.language = language;
    this.#changed();
  }

  use({model, prompt, values, variation, side}) {
    const known = this.models.find((each) => each.id === model);
    if (!known) return false;
    Object.assign(this, {prompt, variation, side});
    this.model = known;
    this.values = form.carriedOver(values, known);
    this.#edited();
    return true;
  }

  forget() {
    clearHistory(this.owner.id);
    this.history = [];
    this.#changed();
  }

  get settings() {
    const {model, prompt, values, variation, side} = this;
    return {model: model.id, prompt, values, variation, side};
  }

  get body() {
    return form.bodyOf(this);
  }

  get images() {
    return this.values.n ?? 1;
  }

  get lastVariation() {
    return MAX_VARIATION + 1 - this.images * this.side;
  }

  /** Characters are code points, as the gateway counts them. */
  get promptLength() {
    return [...this.prompt].length;
  }

  get canGenerate() {
    return Boolean(
      this.model && this.prompt && !this.isRunning && this.promptLength <= this.model.prompt_max,
    );
  }

  hasField(name) {
    return ['model', 'prompt', VARIATION].includes(name) || Boolean(form.parameterOf(this.model, name));
  }

  get isRunning() {
    return this.runs.some((run) => run.status === 'running');
  }

  #useModel(model) {
    this.model = model;
    if (model) this.values = form.carriedOver(this.values, model);
  }

  #edited(note = '') {
    Object.assign(this, {note, faults: {}, variation: clamp(this.variation, 0, this.lastVariation)});
    this.#scheduleEstimate();
    this.#changed();
  }

  // ── the estimate ────────────────────────────────────────────────────────────────────────────

  #scheduleEstimate() {
    clearTimeout(this.#estimateTimer);
    this.#estimateAborter.abort();
    if (!this.canGenerate) {
      this.estimate = {state: 'none'};
      return;
    }
    this.estimate = {...this.estimate, state: 'loading'};
    this.#estimateTimer = setTimeout(() => this.#askEstimate(), ESTIMATE_DELAY_MS);
  }

  async #askEstimate() {
    const {signal} = (this.#estimateAborter = new AbortController());
    try {
      const found = await Promise.all(this.#slots().map((slot) => estimate({...slot, signal})));
      this.estimate = {
        state: 'ready',
        usd: sum(found.map((each) => each.usd)),
        hits: found.filter((each) => each.isHit).length,
        total: found.length,
        remainingUsd: found[0].remainingUsd,
      };
    } catch (error) {
      if (signal.aborted) return;
      this.estimate = {state: 'failed', error};
      this.#markField(error);
    }
    this.#changed();
  }

  /** Shows an error at the field that it names, if the form has it. */
  #markField({param, message}) {
    if (this.hasField(param)) this.faults = {[param]: message};
  }

  /** The requests of one click: each takes the slots behind those of the one before. */
  #slots() {
    return Array.from({length: this.side}, (_, i) => {
      const variation = this.variation + i * this.images;
      return {
        path: this.owner.generations,
        body: this.body,
        variation,
        headers: {[VARIATION]: String(variation)},
      };
    });
  }

  // ── runs ────────────────────────────────────────────────────────────────────────────────────

  generate() {
    if (!this.canGenerate) return;
    this.#freeRuns();
    this.faults = {};
    this.runs = this.#slots().map((slot) => this.#start(slot));
    this.#changed();
  }

  /** The same slots again, bought although there are images. */
  buyAgain(run) {
    this.#replace(run, {...run.slot, headers: {...run.slot.headers, 'Cache-Control': 'no-cache'}});
  }

  retry(run) {
    this.#replace(run, run.slot);
  }

  /** One more beside the others: the slots behind the last ones. */
  another() {
    const last = this.runs.at(-1).slot;
    const variation = last.variation + (last.body.n ?? 1);
    const headers = {[VARIATION]: String(variation)};
    const kept = this.runs.slice(1 - MAX_SIDE_BY_SIDE);
    this.runs.filter((run) => !kept.includes(run)).forEach(free);
    this.runs = [...kept, this.#start({...last, variation, headers})];
    this.#changed();
  }

  get canVaryMore() {
    const last = this.runs.at(-1)?.slot;
    return Boolean(last) && !this.isRunning && last.variation + 2 * (last.body.n ?? 1) <= MAX_VARIATION + 1;
  }

  stop() {
    for (const run of this.runs) run.aborter.abort();
  }

  /** What buying a run's images again would cost; `notice` says that the key may not. */
  async #priceAgain(run) {
    const headers = {...run.slot.headers, 'Cache-Control': 'no-cache'};
    const {signal} = run.aborter;
    run.again = await estimate({...run.slot, headers, signal}).catch(() => null);
    this.#changed();
  }

  #replace(run, slot) {
    const at = this.runs.indexOf(run);
    if (at === -1) return;
    free(run);
    this.runs = this.runs.with(at, this.#start(slot));
    this.#changed();
  }

  #start(slot) {
    const run = {
      slot,
      status: 'running',
      settings: this.settings,
      startedAt: Date.now(),
      endedAt: 0,
      size: form.expectedSize(this.model, this.values),
      partials: 0,
      previewUrl: null,
      images: [],
      outcome: null,
      error: null,
      again: null,
      aborter: new AbortController(),
    };
    this.#run(run);
    this.#tick();
    return run;
  }

  async #run(run) {
    try {
      const outcome = await generate({
        ...run.slot,
        signal: run.aborter.signal,
        onHead: (facts) => {
          run.outcome = facts;
        },
        onPartial: (image) => this.#showPartial(run, image),
      });
      this.#finish(run, outcome);
    } catch (error) {
      run.status = run.aborter.signal.aborted ? 'stopped' : 'failed';
      run.error = error;
      if (error.status === 400) this.#markField(error);
    }
    run.endedAt = Date.now();
    this.#scheduleEstimate();
    this.#changed();
    if (run.status === 'done') await Promise.all([this.#remember(run), this.#priceAgain(run)]);
  }

  #showPartial(run, image) {
    revoke(run.previewUrl);
    run.previewUrl = URL.createObjectURL(image);
    run.partials += 1;
    this.#changed();
  }

  #finish(run, outcome) {
    revoke(run.previewUrl);
    Object.assign(run, {status: 'done', outcome, previewUrl: null});
    run.images = outcome.images.map(({blob, format}, i) => ({
      blob,
      format,
      url: URL.createObjectURL(blob),
      revisedPrompt: outcome.revisedPrompts[i],
    }));
  }

  async #remember(run) {
    const owner = this.owner;
    const thumbnail = await thumbnailOf(run.images[0].blob);
    await this.#settle(run);
    const {costUsd, handling} = run.outcome;
    const settings = {...run.settings, variation: run.slot.variation, side: 1};
    const at = Math.round(run.startedAt / 1000);
    const entries = addToHistory(owner.id, {at, settings, thumbnail, costUsd, handling});
    if (this.owner?.id === owner.id) this.history = entries;
    this.#changed();
  }

  /** The cost of a live stream is in the books a moment after its image. */
  async #settle(run) {
    const {outcome} = run;
    if (outcome.costUsd !== null) return;
    if (outcome.handling === 'collapsed') outcome.costUsd = 0;
    const {images} = this.owner;
    for (const delay of SETTLE_DELAYS_MS) {
      if (outcome.costUsd !== null) return;
      await new Promise((resolve) => setTimeout(resolve, delay));
      const {data} = await images().catch(() => ({data: []}));
      const isThis = ({fingerprint, slot}) =>
        fingerprint === outcome.fingerprint && slot === run.slot.variation;
      const found = data.find(isThis);
      if (found) Object.assign(outcome, {costUsd: found.cost_usd, ids: [found.id]});
      this.#changed();
    }
  }

  #tick() {
    if (this.#ticker) return;
    this.#ticker = setInterval(() => {
      if (!this.isRunning) {
        clearInterval(this.#ticker);
        this.#ticker = 0;
      }
      this.#changed();
    }, TICK_MS);
  }

  #freeRuns() {
    this.runs.forEach(free);
    this.runs = [];
  }
}

/** Where a key's holder generates, and where the cost of a live stream is found. */
export const holder = (key) => ({
  id: key.id,
  name: key.name,
  generations: '/images/generations',
  images: () => get('/images', {limit: RECENT_IMAGES}),
});

/** The same for a key that an admin picked. */
export const picked = (key) => ({
  id: key.id,
  name: key.name,
  generations: `/admin/keys/${encodeURIComponent(key.id)}/images/generations`,
  images: () => get('/admin/images', {key_id: key.id, limit: RECENT_IMAGES}),
});

function free(run) {
  run.aborter.abort();
  revoke(run.previewUrl);
  run.images.forEach(({url}) => revoke(url));
}

function revoke(url) {
  if (url) URL.revokeObjectURL(url);
}

/** "output_format" → "Output format" */
export function label(name) {
  const words = name === 'svg' ? 'SVG' : name.replaceAll('_', ' ');
  return words[0].toUpperCase() + words.slice(1);
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
