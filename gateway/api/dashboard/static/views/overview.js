/** Overview: what is spent and saved, whether the gateway is healthy, and what needs attention. */

import {html, nothing} from '../vendor/lit-html.js';
import * as format from '../lib/format.js';
import {get, href} from '../lib/http.js';
import {dateIn} from '../lib/period.js';
import {link} from '../lib/router.js';
import {meter, shareBar} from '../ui/bar.js';
import {chart} from '../ui/chart.js';
import {code} from '../ui/copy.js';
import {skeleton, state, storeBanner} from '../ui/feedback.js';
import {icon} from '../ui/icons.js';
import {card, page, tile} from '../ui/page.js';
import {stylesheet} from '../ui/styles.js';

await stylesheet('overview');

const {usd, count, percent, bytes, plural} = format;
const PATH = '/admin/overview';
const MAX_SHOWN = 3;
const DAYS = {since: '29d', bucket_width: '1d', format: 'csv'};

export const overview = {
  refreshSeconds: 10,
  defaults: {},
  load: (query, {signal}) => get(PATH, {}, {signal}),
  render: (view) =>
    page({
      title: 'Overview',
      lead: `The last 30 days. Times are in ${format.zone()}.`,
      json: href(PATH),
      csv: href('/admin/usage', DAYS),
      view,
      skeleton: loadingPage(),
      content: (data) => (isUnused(data) ? firstSteps(data, view.session) : contents(data, view.app)),
    }),
};

const loadingPage = () => html`
  <div class="stack">
    ${skeleton('tiles', 4)}
    <div class="grid">
      <div class="two-thirds">${skeleton('chart')}</div>
      <div class="third">${skeleton('chart')}</div>
    </div>
  </div>
`;

const contents = (data, app) => html`
  ${isStoreDown(data) ? storeBanner({storeDown: true}, data.attention.slice(0, 1).map(actionLink)) : nothing}
  <div class="stack">
    ${!isStoreDown(data) && data.attention.length ? attention(data.attention) : nothing}
    <div class="tiles">${figures(data)}</div>
    <div class="grid">
      <div class="card two-thirds">${data.days ? dailySpend(data.days, app) : waiting('Spend and savings by day')}</div>
      <div class="third">${health(data)}</div>
      ${data.top ? topLists(data.top) : nothing}
    </div>
  </div>
`;

/** Without amounts alone it is not: a worker that has just started reads them first. */
const isStoreDown = ({health}) => health.store.state === 'fault';

const waiting = (title) => html`
  <div class="card-head"><h2>${title}</h2></div>
  <p class="waiting">Reports wait for the store. They come back by themselves.</p>
`;

// What needs attention

const attention = (items) => html`
  <section class="card attention" aria-label="Needs attention">
    <ul>
      ${items.slice(0, MAX_SHOWN).map(attentionItem)}
    </ul>
    ${items.length > MAX_SHOWN ? moreAttention(items.slice(MAX_SHOWN)) : nothing}
  </section>
`;

const moreAttention = (items) => html`
  <details>
    <summary>${count(items.length)} more</summary>
    <ul>
      ${items.map(attentionItem)}
    </ul>
  </details>
`;

const attentionItem = (item) => html`
  <li>
    <span class="attention-icon ${item.level}">${icon('alert')}</span>
    <div class="attention-text"><strong>${item.title}</strong><span class="muted">${item.text}</span></div>
    ${actionLink(item)}
  </li>
`;

const actionLink = ({action}) =>
  action ? html`<a class="button small" href=${link(action.view, action.query)}>${action.label}</a>` : nothing;

// Figures

const figures = ({spend, days, hit_ratio: hits}) => html`
  ${monthTile(spend)} ${forecastTile(spend)} ${savedTile(spend)} ${hitTile(hits, days)}
`;

function monthTile(spend) {
  const note = spend && html`Today ${usd(spend.today_usd)} · this week ${usd(spend.week_usd)} ${monthLimit(spend)}`;
  return tile({label: 'Spent this month', value: usd(spend?.month_usd), note: note ?? nothing});
}

const monthLimit = ({month_usd: used, reserved_usd: reserved, month_limit_usd: max}) =>
  max === null
    ? nothing
    : html`<div class="tile-bar">
        ${meter({label: 'Limit of the month', used, reserved, max})} ${percent(used / max)} of ${usd(max)}
      </div>`;

function forecastTile(spend) {
  const {month_forecast_usd: forecast, previous_month_usd: previous, month_limit_usd: limit, month_from: from} = spend ?? {};
  const over = limit && forecast > limit;
  return tile({
    label: spend ? `${format.month(from)} forecast` : 'Forecast',
    value: usd(forecast),
    level: over ? 'warning' : '',
    note: spend ? forecastNote(forecast, previous, over) : nothing,
  });
}

function forecastNote(forecast, previous, over) {
  if (over) return 'Above the limit of the month';
  if (!previous) return 'No month before to compare with';
  return `${format.change(forecast, previous)} against ${usd(previous)} last month`;
}

function savedTile(spend) {
  const without = spend && spend.month_usd + spend.saved_month_usd;
  return tile({
    label: 'Saved by the cache',
    value: usd(spend?.saved_month_usd),
    level: 'saved',
    note: without ? `${percent(spend.saved_month_usd / without)} of ${usd(without)} this month` : nothing,
  });
}

const hitTile = (ratio, days) =>
  tile({label: 'Hit ratio of images', value: percent(ratio), note: days && ratio !== null ? sparkline(days.map(hitRatio)) : nothing});

const hitRatio = ({images_bought: bought, images_served: served}) => (served ? served / (bought + served) : 0);

/** 0..1 over time, as a line as wide as its tile */
function sparkline(ratios) {
  const points = ratios.map((ratio, index) => `${index},${(1 - ratio) * 20 + 2}`).join(' ');
  return html`<svg class="sparkline" viewBox="0 0 ${ratios.length - 1} 24" preserveAspectRatio="none" aria-hidden="true">
    <polyline points=${points} />
  </svg>`;
}

// Days

function dailySpend(days, app) {
  const times = days.map((each) => each.from);
  return chart({
    title: 'Spend and savings by day',
    times,
    stacked: true,
    tall: true,
    series: [
      {label: 'Spent', colour: 'spend', values: days.map((each) => each.cost_usd)},
      {label: 'Saved by the cache', colour: 'saved', values: days.map((each) => each.saved_usd)},
    ],
    csv: href('/admin/usage', DAYS),
    onPick: (index) => app.navigate('spend', dayQuery(times[index])),
  });
}

function dayQuery(time) {
  const date = dateIn(time);
  return {range: 'custom', from: date, to: date};
}

// Health

function health({health: {store, upstreams, books}, live, cache, now}) {
  return card({
    title: 'Health',
    note: `at ${format.clock(now)}`,
    body: html`
      <dl class="health">
        ${healthRow('Store', store.state, store.text)}
        ${upstreams.map(({name, state: level, text, last_failure_at: failed}) =>
          healthRow(`Upstream ${name}`, level, text, failed && `last failure ${format.ago(failed)}`),
        )}
        ${healthRow('Books', books.state, books.text, books.checked_at && `checked ${checkedAt(books.checked_at)}`)}
        ${healthRow('Right now', 'ok', liveText(live), plural(live.workers, 'worker'))}
        ${cache ? healthRow('Cache', 'ok', plural(cache.images, 'image'), sizeText(cache)) : nothing}
      </dl>
    `,
  });
}

const liveText = ({requests, purchases, queue}) =>
  `${plural(requests, 'request')}, ${plural(purchases, 'purchase')}, ${count(queue)} queued`;

const sizeText = ({bytes: used, total_bytes: max}) => `${bytes(used)} of ${bytes(max)}`;

/** Today the time is enough. */
const checkedAt = (time) =>
  format.day(time) === format.day(Date.now() / 1000) ? format.clock(time) : format.time(time);

const healthRow = (name, level, text, more) => html`
  <div class="health-row">
    <dt>${state(level, name)}</dt>
    <dd>${text}${more ? html`<span class="note">${more}</span>` : nothing}</dd>
  </div>
`;

// Who spent most

const topLists = ({teams, keys, models}) => html`
  ${topList('Top teams', 'team', teams)} ${topList('Top keys', 'key', keys)} ${topList('Top models', 'model', models)}
`;

function topList(title, by, rows) {
  const most = Math.max(...rows.map((row) => row.cost_usd + row.saved_usd));
  const all = html`<a href=${link('spend', {by})}>All</a>`;
  return html`<div class="third top-list">
    ${card({
      title,
      note: '30 days',
      actions: all,
      body: rows.length
        ? html`<ol class="top">${rows.map((row) => topRow(row, by, most))}</ol>`
        : html`<p class="note">Nothing was spent.</p>`,
    })}
  </div>`;
}

const topRow = ({name, cost_usd: cost, saved_usd: saved}, by, most) => html`
  <li>
    ${name === null
      ? html`<span class="ellipsis muted">No ${by}</span>`
      : html`<a class="ellipsis" href=${link('spend', {by: by === 'model' ? 'key' : 'model', [by]: name})}>${name}</a>`}
    <span class="top-value" title="${usd(saved)} saved">${usd(cost)}</span>
    ${shareBar(cost / most, saved / most)}
  </li>
`;

// Nothing yet

const isUnused = ({days, cache}) =>
  days?.every((each) => !each.requests) && !cache?.images;

const firstSteps = (data, session) => html`
  <div class="stack">
    <section class="card first-steps">
      <h2>Make the first image</h2>
      <p class="muted">This gateway has not seen a request yet. Two steps, and the figures begin.</p>
      <ol>
        <li>
          <div>
            <strong>Make a key</strong>
            <p class="muted">Each team or person gets a key of their own, with limits if you like.</p>
          </div>
          <a class="button" href=${link('keys')}>${icon('plus')} Make a key</a>
        </li>
        <li>
          <div>
            <strong>Make an image</strong>
            <p class="muted">Here in the playground, or with any OpenAI client that uses this address:</p>
          </div>
          <a class="button primary" href=${link('playground')}>${icon('playground')} Open the playground</a>
        </li>
      </ol>
      ${code(session.public_url, 'Base URL')}
    </section>
    <div class="grid">
      <div class="two-thirds"><div class="tiles two">${figures(data)}</div></div>
      <div class="third">${health(data)}</div>
    </div>
  </div>
`;
