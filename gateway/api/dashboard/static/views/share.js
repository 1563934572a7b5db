/** "Your share": what a key's holder has used, what is left, and how to use the key. */
import {html, nothing} from '../vendor/lit-html.js';
import * as format from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {amountLeft, inOrder, limitAmount, limitLabel, resetText} from '../lib/limits.js';
import {dailySeries, lastDays, sumsBy, totalOf} from '../lib/usage.js';
import {link} from '../lib/router.js';
import {LANGUAGES, needsBase64} from '../lib/snippets.js';
import {limitBar, shareBar} from '../ui/bar.js';
import {chart} from '../ui/chart.js';
import {code, copyButton} from '../ui/copy.js';
import {banner, empty, skeleton} from '../ui/feedback.js';
import {choice} from '../ui/form.js';
import {card, page, tile} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';
import {table} from '../ui/table.js';
import {thumbnail} from '../ui/thumbnail.js';
import {askForMore} from './ask_for_more.js';

await stylesheet('studio');

const RANGES = {7: '7 days', 30: '30 days', 90: '90 days'};
const SHOWN_IMAGES = 8;
const PROMPT = 'A lighthouse in the fog, oil on canvas';

let language = LANGUAGES[0];

export const share = {
  refreshSeconds: 30,
  defaults: {days: '30', sort: '-cost_usd'},

  async load(query, {signal}) {
    const optional = (path, params) => get(path, params, {signal}).catch(() => null);
    const [usage, images, models] = await Promise.all([
      get('/usage', usageQuery(query), {signal}),
      optional('/images', {limit: SHOWN_IMAGES}),
      optional('/models'),
    ]);
    return {usage, images: images?.data ?? [], model: models?.data.find(({id}) => id === models.default)};
  },

  render(view) {
    const {query, data, setQuery, app, session} = view;
    const {key} = session;
    return page({
      title: 'Your share',
      lead: `What key ${key.name}${key.team ? ` of team ${key.team}` : ''} has used, and what is left.`,
      json: href('/usage', usageQuery(query)),
      rows: [`usage-${query.days}-days`, ({usage}) => usage.usage],
      actions: !data || data.usage.limits.length ? askButton(app, data?.usage) : nothing,
      filters: choice({
        label: 'Period',
        name: 'days',
        value: query.days,
        options: Object.entries(RANGES).map(([value, label]) => ({value, label})),
        onChange: (days) => setQuery({days}),
      }),
      view,
      skeleton: html`<div class="stack">${skeleton('tiles', 4)} ${skeleton('chart', 1)}</div>`,
      content: (found) => content(view, found),
    });
  },
};

/** "7d" are the seven days before today, and today. */
const usageQuery = ({days}) => ({since: `${Number(days) - 1}d`, bucket_width: '1d', group_by: 'model'});

/** It is there before the data, so that nothing moves. */
const askButton = (app, usage) =>
  html`<button class="button primary" ?disabled=${!usage} @click=${() => askForMore(app, {limits: usage.limits})}>Ask for more</button>`;

function content(view, {usage, images, model}) {
  return html`
    <div class="stack">
      ${spentBanner(usage, view.app)} ${tiles(usage.usage)}
      <div class="grid">
        <div class="third">${limitsCard(usage.limits)}</div>
        <div class="two-thirds">${usage.usage.length ? chartCard(view, usage) : nothingYet()}</div>
      </div>
      ${usage.usage.length ? modelTable(view, usage.usage) : nothing} ${imagesCard(images)}
      ${useCard(view, model)}
    </div>
  `;
}

// ── figures ───────────────────────────────────────────────────────────────────────────────────

function tiles(rows) {
  const {
    cost_usd: cost,
    saved_usd: saved,
    requests,
    hits,
    images_bought: bought,
    images_served: served,
  } = totalOf(rows);
  return html`
    <div class="tiles">
      ${tile({label: 'Spent', value: format.usd(cost), note: `${format.plural(bought, 'image')} bought`})}
      ${tile({label: 'Saved by the cache', value: format.usd(saved), level: saved ? 'saved' : '', note: `${format.plural(served, 'image')} from the cache`})}
      ${tile({label: 'Requests', value: format.count(requests), note: `${format.count(hits)} from the cache`})}
      ${tile({label: 'Hit ratio', value: format.percent(requests ? hits / requests : null), note: 'of all requests'})}
    </div>
  `;
}

function spentBanner({limits}, app) {
  const spent = limits.find(
    (limit) => limit.limit.startsWith('usd_') && amountLeft(limit) === 0 && limit.max !== null,
  );
  if (!spent) return nothing;
  return banner({
    level: 'warning',
    title: 'The budget is used up.',
    text: `${limitLabel(spent.limit)} of ${scopeText(spent.scope)}${resets(spent)}. Images that are in the cache are still free.`,
    action: html`<button class="button small" @click=${() => askForMore(app, {limits, limit: spent.limit})}>
      Ask for more
    </button>`,
  });
}

const resets = ({resets_at: at}) => (at ? `: it resets on ${format.fullTime(at)}` : '');

// ── limits ────────────────────────────────────────────────────────────────────────────────────

const SCOPES = ['key', 'team', 'everyone'];
const kindOf = (scope) => scope.split(':')[0];

function scopeText(scope) {
  const kind = kindOf(scope);
  if (kind === 'team') return `team ${scope.slice(5)}`;
  return kind === 'everyone' ? 'everyone together' : 'this key';
}

function limitsCard(limits) {
  const scopes = [...new Set(limits.map(({scope}) => scope))].sort(
    (a, b) => SCOPES.indexOf(kindOf(a)) - SCOPES.indexOf(kindOf(b)),
  );
  const group = (scope) => html`
    <h3>Of ${scopeText(scope)}</h3>
    ${inOrder(limits.filter((limit) => limit.scope === scope)).map(bar)}
  `;
  const none = html`<p class="note">This key has no limits.</p>`;
  return card({
    title: 'Limits',
    body: html`<div class="stack">${scopes.length ? scopes.map(group) : none}</div>`,
  });
}

function bar(row) {
  const left = amountLeft(row);
  const parts = [
    left === null ? '' : `${limitAmount(row.limit, left)} left`,
    row.reserved ? `${limitAmount(row.limit, row.reserved)} reserved` : '',
    row.used + row.reserved ? resetText(row) : '',
  ];
  return limitBar({
    label: limitLabel(row.limit),
    used: row.used,
    reserved: row.reserved,
    max: row.max,
    format: (amount) => limitAmount(row.limit, amount),
    note: html`<span title=${row.resets_at ? format.fullTime(row.resets_at) : ''}
      >${parts.filter(Boolean).join(' · ')}</span
    >`,
  });
}

// ── by day and model ──────────────────────────────────────────────────────────────────────────

function chartCard({query, session}, {usage}) {
  const days = lastDays(Number(query.days), session.time_zone);
  return card({
    body: chart({
      title: 'Spent by day and model',
      times: days.map((day) => Date.parse(`${day}T12:00:00Z`) / 1000),
      series: dailySeries(usage, days),
      stacked: true,
      format: format.usd,
      label: format.dayShort,
      tall: true,
    }),
  });
}

const COLUMNS = [
  {name: 'model', label: 'Model', cell: ({model}) => model ?? 'none'},
  {name: 'cost_usd', label: 'Spent', number: true, cell: (row) => format.usd(row.cost_usd)},
  {name: 'share', label: 'Share', sort: false, hide: true, cell: (row) => shareBar(row.share)},
  {name: 'saved_usd', label: 'Saved', number: true, cell: (row) => format.usd(row.saved_usd)},
  {name: 'requests', label: 'Requests', number: true, cell: (row) => format.count(row.requests)},
  {name: 'images_bought', label: 'Bought', number: true, cell: (row) => format.count(row.images_bought)},
  {
    name: 'images_served',
    label: 'From the cache',
    number: true,
    cell: (row) => format.count(row.images_served),
  },
];

function modelTable({query, setQuery}, rows) {
  const sums = sumsBy(rows, 'model');
  const total = totalOf(rows);
  const footer = {
    model: 'Total',
    cost_usd: format.usd(total.cost_usd),
    saved_usd: format.usd(total.saved_usd),
    requests: format.count(total.requests),
    images_bought: format.count(total.images_bought),
    images_served: format.count(total.images_served),
  };
  return card({
    title: 'By model',
    body: table({
      caption: 'Use by model',
      columns: COLUMNS,
      rows: sums.map((row) => ({...row, share: total.cost_usd ? row.cost_usd / total.cost_usd : 0})),
      sort: query.sort,
      setSort: (sort) => setQuery({sort}, {replace: true}),
      footer,
      cards: true,
    }),
  });
}

const nothingYet = () =>
  card({
    body: empty({
      icon: 'playground',
      title: 'Nothing used yet',
      text: 'Make your first image in the playground, or use the code below in your own program.',
      action: html`<a class="button primary" href=${link('playground')}>Open the playground</a>`,
    }),
  });

// ── images and code ───────────────────────────────────────────────────────────────────────────

function imagesCard(images) {
  if (!images.length) return nothing;
  return card({
    title: 'Your latest images',
    actions: html`<a class="button small" href=${link('images')}>All of them</a>`,
    body: html`<ul class="strip">
      ${images.map((image) => html`<li><a href=${link('images', {image: image.id})}>${thumbnail('/images', image)}</a></li>`)}
    </ul>`,
  });
}

function useCard({session, app}, model) {
  const choose = (id) => {
    language = LANGUAGES.find((each) => each.id === id);
    app.update();
  };
  const request = {
    publicUrl: session.public_url,
    body: {model: model?.id ?? session.key.models?.[0] ?? 'gpt-image-2', prompt: PROMPT},
    needsBase64: Boolean(model && needsBase64(model)),
  };
  return card({
    title: 'Use this key',
    actions: choice({
      label: 'Language',
      name: 'use-language',
      value: language.id,
      onChange: choose,
      options: LANGUAGES.map(({id, label}) => ({value: id, label})),
    }),
    body: html`
      <div class="stack">
        <dl class="pairs">
          <dt>Base URL</dt>
          <dd class="row"><code>${session.public_url}</code>${copyButton(session.public_url)}</dd>
          <dt>Key</dt>
          <dd>The secret that you signed in with. The page does not keep it.</dd>
        </dl>
        ${code(language.write(request), `A request in ${language.label}`)}
        <p class="hint">Any client of OpenAI's images API works with this base URL and your key.</p>
      </div>
    `,
  });
}
