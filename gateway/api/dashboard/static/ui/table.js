/**
 * table({
 *   caption: 'Spend by team',            read by screen readers; always say it
 *   columns: [{
 *     name: 'cost_usd', label: 'Cost',
 *     value: (row) => row.cost_usd,      what is sorted by; row[name] unless given
 *     cell: (row) => template,           what is shown; the value unless given
 *     number: true,                      aligned at the right, in tabular figures
 *     sort: false,                       the heading is no button
 *     hide: true,                        left out on narrow screens
 *   }],
 *   rows,
 *   sort: query.sort, setSort,           "name" or "-name" (largest first); setSort(text)
 *   footer: {name: template},            a row of totals, by column
 *   rowClass: (row) => 'text',           optional
 *   empty: template,                     shown instead of the table if there are no rows
 *   cards: true,                         at 360 px each row is a card; else the box scrolls
 * })
 */

import {html, nothing} from '../vendor/lit-html.js';
import {icon} from './icons.js';

export function table({caption, columns, rows, sort, setSort, footer, rowClass, empty, cards = false}) {
  if (!rows.length && empty) return empty;
  const ordered = setSort ? sorted(rows, columns, sort) : rows;
  return html`
    <div class="table-box ${cards ? 'as-cards' : ''}" tabindex="0" role="region" aria-label=${caption}>
      <table>
        <caption class="hidden">${caption}</caption>
        <thead>
          <tr>${columns.map((column) => heading(column, sort, setSort))}</tr>
        </thead>
        <tbody>
          ${ordered.map(
            (row) => html`<tr class=${rowClass?.(row) ?? ''}>${columns.map((column) => cell(column, row))}</tr>`,
          )}
        </tbody>
        ${footer ? html`<tfoot><tr>${columns.map((column) => total(column, footer))}</tr></tfoot>` : nothing}
      </table>
    </div>
  `;
}

function sorted(rows, columns, sort) {
  const name = sort?.replace(/^-/, '');
  const column = columns.find((each) => each.name === name);
  if (!column) return rows;
  const direction = sort.startsWith('-') ? -1 : 1;
  return [...rows].sort((a, b) => direction * compare(valueOf(column, a), valueOf(column, b)));
}

const valueOf = (column, row) => (column.value ? column.value(row) : row[column.name]);

/** Missing values come first, as zero does. */
function compare(a, b) {
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : -1;
  if (b === null || b === undefined) return 1;
  return typeof a === 'string' ? a.localeCompare(b, 'en', {numeric: true}) : a - b;
}

const classes = ({number, hide}) => `${number ? 'number' : ''} ${hide ? 'hide-narrow' : ''}`;

function heading(column, sort, setSort) {
  if (!column.label) return html`<td class=${classes(column)}></td>`;
  const plain = column.sort === false || !setSort;
  const order = !sort || plain ? null : {[column.name]: 'ascending', [`-${column.name}`]: 'descending'};
  const down = `-${column.name}`;
  const first = column.number ? down : column.name;
  const second = column.number ? column.name : down;
  // A column opens with its usual order: figures from the largest, names from A.
  const next = sort === first ? second : first;
  const active = [column.name, down].includes(sort);
  const direction = order && active ? (sort === down ? order[down] : order[column.name]) : nothing;
  return html`
    <th scope="col" class=${classes(column)} aria-sort=${direction}>
      ${plain
        ? column.label
        : html`<button class="sort ${active ? 'active' : ''} ${sort === down ? 'down' : 'up'}" @click=${() => setSort(next)}>
            ${column.label}${icon('chevron')}
          </button>`}
    </th>
  `;
}

const cell = (column, row) => html`
  <td class=${classes(column)} data-label=${column.label}>
    ${column.cell ? column.cell(row) : (valueOf(column, row) ?? '–')}
  </td>
`;

const total = (column, footer) => html`
  <td class=${classes(column)} data-label=${column.label}>${footer[column.name] ?? nothing}</td>
`;
