/**
 * Charts over time, drawn by uPlot on a canvas.
 *
 *   chart({
 *     title: 'Spend',                       its caption
 *     times: [unix, …],                     one for each bar or point, oldest first
 *     series: [{label, values: […], colour: 'spend' | 'saved' | 1…8 | 'other'}],
 *                                           with line: true a dashed line over the bars
 *     stacked: true,                        bars stand on each other, the first lowest
 *     format: usd,                          of values, in tooltip and table
 *     axis: usdShort,                       of values at the axis; its second argument: some have decimals
 *     label: dayShort,                      of times, in tooltip and table
 *     tall: true,                           320 px instead of 220 px
 *     csv: href,                            the table as CSV
 *     onPick: (index) => {…},               a click on a bar
 *     note: template                        at the right of the caption
 *   })
 *
 * A <figure> with its legend, and the same figures as a table behind "Show table".
 * Left and Right move the tooltip when the chart has the focus.
 */

import {html, nothing, render} from '../vendor/lit-html.js';
import {clock, day, dayShort, usd, usdShort, zone} from '../lib/format.js';
import {watchTheme} from '../lib/theme.js';
import {loadPlot} from './plot.js';
import {table} from './table.js';

const DAY = 86_400;
/** Right of its middle, a label of the time axis needs as much, some of it outside the plot. */
const LABEL_ROOM = 14;
const VALUES_WIDTH = 52;
const AXIS_FONT = '11px system-ui, sans-serif';

export function chart(options) {
  const {title, times, series, format = usd, label = day, tall = false, csv, note = nothing} = options;
  return html`
    <figure class="chart">
      <figcaption class="chart-head">
        <h2>${title}</h2>
        ${legend(series)} ${note === nothing ? nothing : html`<span class="note">${note}</span>`}
      </figcaption>
      <gw-chart
        class=${tall ? 'tall' : ''}
        tabindex="0"
        role="img"
        aria-label="${title}: ${times.length} values. The table below has them."
        .options=${options}
      ></gw-chart>
      <details class="chart-table">
        <summary>Show table</summary>
        ${table({caption: title, columns: columnsOf(series, label, format), rows: rowsOf(times, series)})}
        ${csv ? html`<p><a href=${csv} target="_blank" rel="noopener">This table as CSV</a></p>` : nothing}
      </details>
    </figure>
  `;
}

const swatch = (colour) => html`<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" rx="2.5" fill="var(--chart-${colour})" /></svg>`;

const legend = (series) => html`
  <ul class="legend">
    ${series.map(({label, colour}) => html`<li>${swatch(colour)}${label}</li>`)}
  </ul>
`;

const columnsOf = (series, label, format) => [
  {name: 'time', label: 'Time', cell: (row) => label(row.time)},
  ...series.map((each, index) => ({
    name: String(index),
    label: each.label,
    number: true,
    cell: (row) => format(row.values[index]),
  })),
];

const rowsOf = (times, series) =>
  times.map((time, index) => ({time, values: series.map((each) => each.values[index])}));

class ChartElement extends HTMLElement {
  #options;
  #drawn = '';
  #plot;
  #tip = document.createElement('div');
  #stopWatching;
  #resizes = new ResizeObserver(() => this.#resize());

  set options(options) {
    this.#options = options;
    this.#draw();
  }

  connectedCallback() {
    loadPlot().then(
      () => this.#draw(),
      () => {}, // the table has the figures
    );
    this.#tip.className = 'chart-tip';
    this.#resizes.observe(this);
    this.#stopWatching = watchTheme(() => this.#draw({isForced: true}));
    this.addEventListener('keydown', (event) => this.#moveByKey(event));
    this.addEventListener('blur', () => this.#plot?.setCursor({left: -10, top: -10}));
    // Before uPlot, which stops the event.
    this.addEventListener('click', () => this.#pick(), {capture: true});
  }

  disconnectedCallback() {
    this.#resizes.disconnect();
    this.#stopWatching?.();
    this.#plot?.destroy();
    this.#plot = undefined;
    this.#drawn = '';
  }

  #resize() {
    if (!this.clientWidth) return;
    if (this.#plot) this.#plot.setSize({width: this.clientWidth, height: this.clientHeight});
    else this.#draw();
  }

  /** Nothing is drawn again while the figures stay the same. */
  #draw({isForced = false} = {}) {
    if (!globalThis.uPlot || !this.isConnected || !this.clientWidth || !this.#options) return;
    const {times} = this.#options;
    const drawn = JSON.stringify(this.#options);
    if (drawn === this.#drawn && !isForced) return;
    this.#drawn = drawn;
    this.#plot?.destroy();
    const series = drawnSeries(this.#options);
    const options = plotOptions(this, this.#options, series, (plot) => this.#showTip(plot));
    this.#plot = new uPlot(options, [times, ...series.map((each) => each.values)], this);
    this.append(this.#tip);
    this.classList.toggle('pickable', Boolean(this.#options.onPick));
  }

  #showTip(plot) {
    const {idx: index, left} = plot.cursor;
    const shown = index !== null && index !== undefined && left >= 0;
    this.#tip.classList.toggle('shown', shown);
    if (!shown) return;
    render(tipOf(this.#options, index), this.#tip);
    const x = plot.valToPos(plot.data[0][index], 'x') + plot.over.offsetLeft;
    const room = this.clientWidth - this.#tip.offsetWidth;
    const beside = x + 12 > room ? x - this.#tip.offsetWidth - 12 : x + 12;
    this.#tip.style.transform = `translate(${Math.max(0, Math.min(beside, room))}px, 4px)`;
  }

  #moveByKey(event) {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!step || !this.#plot) return;
    event.preventDefault();
    const last = this.#options.times.length - 1;
    const index = Math.min(Math.max((this.#plot.cursor.idx ?? (step > 0 ? -1 : last + 1)) + step, 0), last);
    this.#plot.setCursor({left: this.#plot.valToPos(this.#options.times[index], 'x'), top: 8});
  }

  #pick() {
    const index = this.#plot?.cursor.idx;
    if (index !== null && index !== undefined) this.#options.onPick?.(index);
  }
}

customElements.define('gw-chart', ChartElement);

const tipOf = ({times, series, format = usd, label = day}, index) => html`
  <strong>${label(times[index])}</strong>
  <dl>
    ${[...series].reverse().map(
      (each) => html`<dt>${swatch(each.colour)}${each.label}</dt>
        <dd>${format(each.values[index])}</dd>`,
    )}
  </dl>
`;

/** In the order of drawing: stacked bars from the highest to the lowest, then lines over them. */
function drawnSeries({times, series, stacked}) {
  if (!stacked) return series;
  const sums = times.map(() => 0);
  const stand = (each) => ({...each, values: each.values.map((value, index) => (sums[index] += value ?? 0))});
  const bars = series.filter((each) => !each.line).map(stand);
  return [...bars.reverse(), ...series.filter((each) => each.line)];
}

function plotOptions(element, {times, axis = usdShort}, drawn, showTip) {
  return {
    width: element.clientWidth,
    height: element.clientHeight,
    padding: [12, 8, 0, 0],
    tzDate: (time) => uPlot.tzDate(new Date(time * 1000), zone()),
    legend: {show: false},
    scales: {x: {time: true, range: () => edges(times)}, y: {range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1]}},
    cursor: {y: false, points: {show: false}, drag: {x: false, y: false}, move: snap},
    axes: [timeAxis(element), valueAxis(element, axis)],
    series: [{}, ...drawn.map((each) => plotSeries(element, each))],
    hooks: {setCursor: [showTip]},
  };
}

/** Half a bar of room at both ends. */
function edges(times) {
  const first = times[0] ?? 0;
  const last = times.at(-1) ?? DAY;
  const step = times.length > 1 ? (last - first) / (times.length - 1) : DAY;
  return [first - step / 2, last + step / 2];
}

function snap(plot, left, top) {
  if (left < 0 || !plot.data[0].length) return [left, top];
  return [plot.valToPos(plot.data[0][plot.posToIdx(left)], 'x'), top];
}

function plotSeries(element, {label, colour, line}) {
  const paint = paintOf(element, `--chart-${colour}`);
  return line
    ? {label, stroke: paint, width: 1.5, dash: [4, 4], points: {show: false}}
    : {label, fill: paint, stroke: paint, width: 0, points: {show: false}, paths: uPlot.paths.bars({size: [0.72, 48], radius: 0.12})};
}

const axisLook = (element) => ({
  stroke: paintOf(element, '--text-3'),
  font: AXIS_FONT,
  ticks: {show: false},
});

const timeAxis = (element) => ({
  ...axisLook(element),
  grid: {show: false},
  size: 28,
  space: 64,
  filter: (plot, splits) => splits.map((time) => (roomAfter(plot, time) < LABEL_ROOM ? null : time)),
  values: (_, splits, __, ___, step) => splits.map((time) => (time === null ? '' : step < DAY ? clock(time) : dayShort(time))),
});

/** Before the plot is laid out, when `valToPos` knows nothing yet. */
const roomAfter = ({scales: {x}, width}, time) => ((x.max - time) / (x.max - x.min)) * (width - VALUES_WIDTH);

const valueAxis = (element, format) => ({
  ...axisLook(element),
  grid: {stroke: paintOf(element, '--border'), width: 1},
  size: VALUES_WIDTH,
  gap: 8,
  space: 40,
  values: (_, splits) => splits.map((value) => format(value, splits.some((each) => each % 1))),
});

/** A CSS variable as a colour: light-dark() is resolved only where a property uses it. */
function paintOf(element, variable) {
  const probe = document.createElement('i');
  probe.style.color = `var(${variable})`;
  element.append(probe);
  const {color} = getComputedStyle(probe);
  probe.remove();
  return color;
}
