/**
 * The differences of two JSON objects, as rows for a table and as changes for a PATCH.
 */

/** @typedef {{path: string, before: unknown, after: unknown, kind: 'added'|'removed'|'changed'}} Difference */

/** Rows of what differs, with paths such as `limits.usd_per_day`. @returns {Difference[]} */
export function differences(before, after, path = '') {
  if (isSame(before, after)) return [];
  if (!isObject(before ?? after) || !isObject(after ?? before)) return [row(path, before, after)];
  const names = new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})]);
  return [...names].flatMap((name) =>
    differences(before?.[name], after?.[name], path ? `${path}.${name}` : name));
}

/** The fields of `draft` that differ from `former`; null lifts what `draft` no longer has. */
function changedFields(former, draft) {
  const changes = {};
  for (const name of new Set([...Object.keys(former), ...Object.keys(draft)])) {
    if (!isSame(former[name], draft[name])) changes[name] = draft[name] ?? null;
  }
  return changes;
}

/** As `changedFields`, but `nested` fields are objects of which only the changed members are sent. */
export function patchOf(former, draft, nested) {
  const patch = changedFields(former, draft);
  for (const name of nested) {
    if (!(name in patch)) continue;
    patch[name] = changedFields(former[name] ?? {}, draft[name] ?? {});
    if (!Object.keys(patch[name]).length) delete patch[name];
  }
  return patch;
}

export function isSame(a, b) {
  if (a === b || ((a ?? null) === null && (b ?? null) === null)) return true;
  return JSON.stringify(sorted(a)) === JSON.stringify(sorted(b));
}

function row(path, before, after) {
  const kind = isMissing(before) ? 'added' : isMissing(after) ? 'removed' : 'changed';
  return {path, before, after, kind};
}

function isMissing(value) {
  return value === null || value === undefined;
}

function isObject(value) {
  return value !== null && typeof value === 'object' && !Array.isArray(value);
}

function sorted(value) {
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])]));
}
