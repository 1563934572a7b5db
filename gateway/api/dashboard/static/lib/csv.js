/** CSV files made from the rows of a table that is on the page. */

/**
 * @param {{label: string, value: (row: object) => unknown}[]} columns
 * @returns {string} RFC 4180; a text that a spreadsheet would take for a formula begins with `'`
 */
export function csvText(columns, rows) {
  const lines = [columns.map(({label}) => label), ...rows.map((row) => columns.map(({value}) => value(row)))];
  return lines.map((cells) => cells.map(cell).join(',') + '\r\n').join('');
}

function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const text = /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Saves a text as a file. */
export function save(name, text, type = 'text/csv') {
  const url = URL.createObjectURL(new Blob([text], {type}));
  const anchor = Object.assign(document.createElement('a'), {href: url, download: name});
  anchor.click();
  // The browser has taken the blob when the click returns, but for some that take it a moment later.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
