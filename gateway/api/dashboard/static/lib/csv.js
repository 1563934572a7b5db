/** CSV files of the rows that are on the page. */

/**
 * Rows of the API with all their fields; nested values are JSON.
 *
 * @param {object[]} rows
 * @returns {string} RFC 4180; a text that a spreadsheet would take for a formula begins with `'`
 */
export function csvText(rows) {
  const names = [...new Set(rows.flatMap(Object.keys))];
  const lines = [names, ...rows.map((row) => names.map((name) => row[name]))];
  return lines.map((cells) => cells.map(cell).join(',') + '\r\n').join('');
}

function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const plain = typeof value === 'object' ? JSON.stringify(value) : String(value);
  const text = /^[=+\-@\t\r\n]/.test(plain) ? `'${plain}` : plain;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function saveRows(name, rows) {
  const url = URL.createObjectURL(new Blob([csvText(rows)], {type: 'text/csv'}));
  const anchor = Object.assign(document.createElement('a'), {href: url, download: `${name}.csv`});
  anchor.click();
  // The browser has taken the blob when the click returns, but for some that take it a moment later.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
