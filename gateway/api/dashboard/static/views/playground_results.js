/** What comes of the playground's form: images side by side, errors, code, and the history. */
import {html, nothing} from '../vendor/lit-html.js';
import {adviceOf} from '../lib/advice.js';
import * as format from '../lib/format.js';
import {isDrawn} from '../lib/generation.js';
import {scrolling} from '../lib/motion.js';
import {bodyOf} from '../lib/parameters.js';
import {link} from '../lib/router.js';
import {LANGUAGES, needsBase64} from '../lib/snippets.js';
import {code, copyButton} from '../ui/copy.js';
import {badge} from '../ui/feedback.js';
import {choice} from '../ui/form.js';
import {icon} from '../ui/icons.js';
import {card} from '../ui/page.js';
import {undrawn} from '../ui/thumbnail.js';
import {askForMore} from './ask_for_more.js';

const EXAMPLES = [
  'A lighthouse in the fog, oil on canvas',
  'Isometric reading room with plants, soft morning light',
  'Flat icon of a paper plane on a teal background',
];

const HANDLINGS = {
  hit: ['Hit', 'ok', 'These images were in the cache.'],
  bought: ['Bought', 'info', 'These images were made now.'],
  partial: ['Partly bought', 'info', 'Some images were in the cache, the others were made now.'],
  collapsed: ['Followed', 'ok', 'Another request was already buying them: you got the same ones.'],
  bypass: ['Bought, not stored', 'warning', 'The cache was not used.'],
};

// ── the stage ─────────────────────────────────────────────────────────────────────────────────

export function stage(studio, view) {
  if (!studio.runs.length) return invitation(studio);
  return html`
    <section class="stage ${studio.runs.length > 1 ? 'many' : ''}" aria-label="Images">
      <h2 class="hidden">Images</h2>
      ${studio.runs.map((run) => runCard(studio, run, view))}
    </section>
    ${studio.isRunning || studio.canVaryMore ? anotherButton(studio) : nothing}
    <p class="hidden" role="status">${spoken(studio.runs)}</p>
  `;
}

const invitation = (studio) => html`
  <section class="stage-empty">
    ${icon('images')}
    <h2>Your image appears here</h2>
    <p class="note">Write a prompt, or begin with one of these.</p>
    <div class="row center">
      ${EXAMPLES.map(
        (prompt) =>
          html`<button class="button small" @click=${() => studio.setPrompt(prompt)}>${prompt}</button>`,
      )}
    </div>
  </section>
`;

const anotherButton = (studio) => html`
  <div class="row center">
    <button class="button" ?disabled=${studio.isRunning} @click=${() => studio.another()}>${icon('plus')} Another variation</button>
  </div>
`;

/** What a screen reader says, once for each change of state. */
function spoken(runs) {
  const named = (status) => runs.filter((run) => run.status === status).length;
  const [running, done, failed] = ['running', 'done', 'failed'].map(named);
  if (running) return `${running === 1 ? 'One request' : `${running} requests`} running`;
  return [done ? `${done} ready` : '', failed ? `${failed} failed` : ''].filter(Boolean).join(', ');
}

function runCard(studio, run, view) {
  const many = studio.runs.length > 1;
  return html`
    <article class="run ${run.status}">
      ${many ? html`<h3 class="run-title">Variation ${run.slot.variation}</h3>` : nothing}
      ${RUNS[run.status](studio, run, view)}
    </article>
  `;
}

const RUNS = {
  running: (studio, run) => html`${frame(run, preview(run))} ${progress(run)}`,
  done: (studio, run, view) => html`${imagesOf(run, view)} ${facts(run, view)} ${actions(studio, run)}`,
  failed: (studio, run, view) =>
    problem(run.error, {view, owner: studio.owner, retry: () => studio.retry(run)}),
  stopped: (studio, run) => stopped(studio, run),
};

// ── while it runs ─────────────────────────────────────────────────────────────────────────────

/** As high as the image will be, so that nothing jumps when it comes. */
const frame = ({size, slot}, inside) => html`
  <div class="frame-box" .style=${`aspect-ratio: ${size.width} / ${size.height}`}>
    ${inside} ${slot.body.n > 1 ? html`<span class="frame-note">${slot.body.n} images</span>` : nothing}
  </div>
`;

const preview = ({previewUrl, slot}) =>
  previewUrl
    ? html`<img class="preview" src=${previewUrl} alt="Partial image of: ${slot.body.prompt}" />`
    : html`<span class="shimmer"></span>`;

function progress({startedAt, partials, slot, outcome}) {
  const of = slot.body.partial_images ?? 0;
  const reserved = outcome?.reservedUsd;
  return html`
    <div class="run-progress">
      <span class="stripe" aria-hidden="true"></span>
      <div class="row between note">
        <span>${of ? `${partials} of ${of} partial images` : 'Waiting for the image'}</span>
        <span class="figures">
          ${reserved ? html`at most ${format.usd(reserved)} · ` : nothing}${seconds(Date.now() - startedAt)}
        </span>
      </div>
    </div>
  `;
}

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

const stopped = (studio, run) => html`
  ${frame(run, run.previewUrl ? preview(run) : html`<span class="frame-text">Stopped</span>`)}
  <p class="note">
    Stopped after ${seconds(run.endedAt - run.startedAt)}. If the image was already being made, it is charged
    and comes from the cache next time.
  </p>
  <div class="row">
    <button class="button" @click=${() => studio.retry(run)}>${icon('refresh')} Go on</button>
  </div>
`;

// ── when it is there ──────────────────────────────────────────────────────────────────────────

const imagesOf = (run, view) => html`
  <div class="run-images ${run.images.length > 1 ? 'many' : ''}">
    ${run.images.map(
      (image, i) => html`
        <figure class="run-image">
          ${isDrawn(image.format) ? drawn(run, image, i, view) : undrawn(image.format)}
          <a
            class="icon-button run-image-save"
            href=${image.url}
            download=${fileName(run, i, image.format)}
            aria-label="Download"
            title="Download"
          >
            ${icon('download')}
          </a>
        </figure>
      `,
    )}
  </div>
`;

const drawn = (run, image, i, view) => html`
  <button class="run-image-open" aria-label="Open large" @click=${() => openLarge(view.app, run, image)}>
    <img
      src=${image.url}
      width=${run.size.width}
      height=${run.size.height}
      alt="Image ${i + 1} of: ${run.slot.body.prompt}"
    />
  </button>
`;

function openLarge(app, run, {url}) {
  app.dialog(html`
    <div class="large">
      <header class="dialog-head">
        <h2 id="dialog-title">${run.slot.body.model}</h2>
        <button type="button" class="icon-button" aria-label="Close" @click=${app.closeDialog}>
          ${icon('close')}
        </button>
      </header>
      <img src=${url} alt=${run.slot.body.prompt} />
    </div>
  `);
}

function fileName(run, i, kind) {
  const words =
    run.slot.body.prompt
      .toLowerCase()
      .match(/[a-z0-9]+/g)
      ?.slice(0, 5)
      .join('-') ?? 'image';
  return `${words.slice(0, 48)}-${run.slot.variation + i}.${kind}`;
}

function facts(run, view) {
  const {outcome} = run;
  const [name, level, why] = HANDLINGS[outcome.handling];
  return html`
    <div class="run-facts">
      <div class="row">
        <span title=${why}>${badge(name, level)}</span>
        <strong class="price">${cost(outcome)}</strong>
        ${outcome.savedUsd ? html`<span class="ok-text">saved ${format.usd(outcome.savedUsd)}</span>` : nothing}
        <span class="note end">${seconds(run.endedAt - run.startedAt)}</span>
      </div>
      ${revised(run)} ${outcome.notice ? html`<p class="note">Gateway: ${outcome.notice}</p>` : nothing}
      ${outcome.detail === 'stale-if-error' ? html`<p class="note">Upstream failed: this image has expired.</p>` : nothing}
      ${requestLine(outcome, view)}
    </div>
  `;
}

function cost({costUsd, reservedUsd, handling}) {
  if (costUsd === null && handling === 'hit') return 'Free';
  if (costUsd === null) return reservedUsd ? `at most ${format.usd(reservedUsd)}` : '…';
  return costUsd ? format.usd(costUsd) : 'Free';
}

function revised(run) {
  const texts = [...new Set(run.images.map((image) => image.revisedPrompt).filter(Boolean))];
  if (!texts.length) return nothing;
  return html`
    <details>
      <summary>Revised prompt</summary>
      ${texts.map((text) => html`<p class="revised">${text}</p>`)}
    </details>
  `;
}

function requestLine({requestId, ageSeconds}, {session}) {
  const id =
    session.kind === 'admin'
      ? html`<a href=${link('requests', {id: requestId})} title=${requestId}>${requestId}</a>`
      : html`<code title=${requestId}>${requestId}</code>`;
  return html`
    <p class="request-line note">
      ${ageSeconds === null ? nothing : html`<span>Made ${format.duration(ageSeconds)} ago ·</span>`}
      <span class="request-id">${id}</span>${copyButton(requestId, 'Copy id')}
    </p>
  `;
}

function actions(studio, run) {
  if (studio.isRunning) return nothing;
  const {
    again,
    outcome: {ids},
  } = run;
  const mayNot = html`<span class="note">This key may not buy an image again that is cached.</span>`;
  return html`
    <div class="row">
      ${/ignored/.test(again?.notice) ? mayNot : buyAgain(studio, run)}
      ${ids.length ? html`<a class="button quiet" href=${link('images', {image: ids[0]})}>Details</a>` : nothing}
    </div>
  `;
}

const buyAgain = (studio, run) => html`
  <button class="button" ?disabled=${!run.again} @click=${() => studio.buyAgain(run)}>
    ${icon('refresh')} Buy again
    ${run.again ? html`<span class="note">at most ${format.usd(run.again.usd)}</span>` : nothing}
  </button>
`;

// ── errors ────────────────────────────────────────────────────────────────────────────────────

/** An error and what to do: retry, ask for more, raise the limit, sign in. */
export function problem(error, {view, owner, retry}) {
  const advice = adviceOf(error);
  return html`
    <div class="problem" role="alert">
      <h3>${icon('alert')} ${advice.title}</h3>
      <p>${error.message}</p>
      <p class="note">
        ${advice.text} ${advice.mayCostAgain ? 'It may be charged again.' : ''} ${resetText(advice)}
      </p>
      ${error.costUsd ? html`<p class="note">It was charged ${format.usd(error.costUsd)} all the same.</p>` : nothing}
      <div class="row">
        ${advice.retry && retry ? problemButton('Try again', retry) : nothing}
        ${error.status === 401 ? problemButton('Sign in', view.refresh) : nothing}
        ${advice.limit ? limitButton(advice, view, owner) : nothing}
      </div>
      ${
        error.requestId
          ? html`<p class="request-line note">
              <code>${error.requestId}</code>${copyButton(error.requestId, 'Copy id')}
            </p>`
          : nothing
      }
    </div>
  `;
}

const problemButton = (text, click) =>
  html`<button type="button" class="button" @click=${click}>${text}</button>`;

function limitButton({limit, isOfKey}, {app, session}, owner) {
  if (session.kind === 'key') return problemButton('Ask for more', () => askForMore(app, {limit}));
  const address = isOfKey ? link('keys', {search: owner.name, limit}) : link('teams');
  return html`<a class="button" href=${address}>Raise the limit</a>`;
}

function resetText({resetsAt}) {
  if (resetsAt === null) return '';
  const left = resetsAt - Date.now() / 1000;
  if (left < 0) return 'It has reset by now.';
  return left < 60 ? `Free again in ${Math.ceil(left)} s.` : `It resets on ${format.fullTime(resetsAt)}.`;
}

// ── code ──────────────────────────────────────────────────────────────────────────────────────

export function codeCard(studio, {session}) {
  const language = LANGUAGES.find(({id}) => id === studio.language);
  const {model, values, variation, prompt} = studio;
  const text = language.write({
    publicUrl: session.public_url,
    body: bodyOf({model, values, prompt: prompt || EXAMPLES[0]}),
    variation,
    needsBase64: needsBase64(model),
  });
  return card({
    title: 'The same request as code',
    actions: choice({
      label: 'Language',
      name: 'language',
      value: language.id,
      options: LANGUAGES.map(({id, label}) => ({value: id, label})),
      onChange: (id) => studio.setLanguage(id),
    }),
    body: html`
      <div class="stack small">
        ${code(text, `The request in ${language.label}`)}
        <p class="hint">
          It gets the same image, from the cache if it is there. Put a key in place of the placeholder;
          partial images are left out.
        </p>
      </div>
    `,
  });
}

// ── history ───────────────────────────────────────────────────────────────────────────────────

export function historyCard(studio, {app}) {
  if (!studio.history.length) return nothing;
  return card({
    title: 'History',
    note: 'kept in this browser only',
    actions: html`<button class="button small" @click=${() => studio.forget()}>
      ${icon('trash')} Clear
    </button>`,
    body: html`<ul class="history">
      ${studio.history.map((entry) => historyItem(studio, entry, app))}
    </ul>`,
  });
}

function historyItem(studio, {at, settings, thumbnail, costUsd, handling}, app) {
  const use = () => {
    if (studio.use(settings)) scrollTo({top: 0, behavior: scrolling()});
    else app.toast(`This key may not use ${settings.model} any more.`, 'warning');
  };
  const [name] = HANDLINGS[handling] ?? HANDLINGS.bought;
  return html`
    <li>
      ${thumbnail ? html`<img src=${thumbnail} alt="" width="56" height="56" />` : html`<span class="no-thumbnail">${icon('images')}</span>`}
      <div class="history-text">
        <span class="history-prompt" title=${settings.prompt}>${settings.prompt}</span>
        <span class="note"
          >${settings.model} · ${name}${costUsd ? ` · ${format.usd(costUsd)}` : ''} · ${format.ago(at)}</span
        >
      </div>
      <button class="button small" @click=${use}>
        Use<span class="hidden"> these settings: ${settings.prompt}</span>
      </button>
    </li>
  `;
}
