/**
 * Events of the audit as sentences: who did what to which thing.
 */
import {limitAmount, limitLabel} from './limits.js';

/** Actions, and the verb of their sentence. */
const VERBS = {
  'key.create': 'made',
  'key.change': 'changed',
  'key.rotate': 'rotated the secret of',
  'key.revoke': 'revoked',
  'team.create': 'made',
  'team.change': 'changed',
  'team.remove': 'removed',
  'limits.change': 'changed the limits of',
  'limits.raise': 'raised a limit of',
  'limits.raise_end': 'ended a raise of',
  'cache.purge': 'purged',
  'cache.takedown': 'took down',
  'backup.restore': 'restored a backup into',
  'signing_key.rotate': 'rotated',
  'upstream.disable': 'took out of service',
  'upstream.enable': 'put back into service',
  'sign_in_link.create': 'made a one-time link to',
};

const THINGS = {
  all: 'the whole cache',
  store: 'the store',
  'signing-keys': 'the keys that sign links',
  dashboard: 'the dashboard',
};

const FIELDS = {
  former_secrets_expire_at: 'former secrets',
  expires_at: 'expiry',
  hits_report_usage: 'usage of hits',
  allow_no_cache: 'no-cache',
  user_header: 'header of end users',
};

/** Fields of `before` and `after` that say nothing to people. */
const HIDDEN = new Set(['id', 'prefix', 'purge']);

/** Who did it: `admin (API, 10.0.0.7)`, `ada@build (command)`. */
export function actorText({via, by, address}) {
  const how = {api: 'API', cli: 'command'}[via] ?? via;
  return `${by} (${[how, address].filter(Boolean).join(', ')})`;
}

export function verb(event) {
  return VERBS[event.action] ?? event.action;
}

/** What it was done to, and the view that shows it. */
export function thing(event) {
  const [kind, ...rest] = event.object.split(':');
  const name = rest.join(':');
  if (kind === 'everyone') return {label: 'everyone', view: 'teams', query: {}};
  if (!name) return {label: THINGS[event.object] ?? event.object};
  if (kind === 'key') return {kind, label: name, view: 'keys', query: keyQuery(event, name)};
  if (kind === 'team') return {kind, label: name, view: 'teams', query: {team: name}};
  return {kind: kind === 'fingerprint' ? 'entry' : kind, label: name};
}

/** The key's page if the event has its id; else a search, for the name may be another key's now. */
function keyQuery(event, name) {
  const id = keyIdOf(event);
  return id ? {key: id} : {search: name, state: 'all'};
}

/** The rest of the sentence: which fields, how much, why. */
export function detail(event) {
  const {action, before, after} = event;
  if (action === 'limits.raise') return raiseText(after);
  if (action === 'limits.raise_end') return raiseText(before);
  if (action.startsWith('cache.')) return purgeText(after);
  if (action === 'backup.restore') return `${after?.keys ?? 0} keys, ${after?.teams ?? 0} teams`;
  return action.endsWith('.change') ? fieldsText(before, after) : '';
}

/** Whether there is a before or an after worth a table. */
export function hasChanges({before, after}) {
  return Object.keys(visible(before ?? {})).length + Object.keys(visible(after ?? {})).length > 0;
}

export function visible(fields) {
  return Object.fromEntries(Object.entries(fields ?? {}).filter(([name]) => !HIDDEN.has(name)));
}

/** The events of one subject, also from before it was renamed. Newest first, as they came. */
export function eventsOf(events, kind, name) {
  const names = new Set([`${kind}:${name}`]);
  return events.filter((event) => {
    const isRename = event.action === 'key.change' && names.has(`key:${event.after?.name}`);
    if (isRename) names.add(event.object);
    return names.has(event.object);
  });
}

function keyIdOf({before, after}) {
  const id = (after ?? before)?.id;
  return typeof id === 'string' && !id.startsWith('raise_') ? id : null;
}

function raiseText(raise) {
  if (!raise) return '';
  const amount = limitAmount(raise.limit, raise.amount);
  return `${limitLabel(raise.limit).toLowerCase()}: ${amount} more until ${raise.until} – “${raise.reason}”`;
}

function purgeText(after) {
  const images = after?.images ?? 0;
  const also = after?.prompt ? ', and blocked the prompt' : '';
  return `${images.toLocaleString('en')} ${images === 1 ? 'image' : 'images'}${also}`;
}

function fieldsText(before, after) {
  const names = Object.keys(visible({...before, ...after}));
  return names.map((name) => FIELDS[name] ?? name.replaceAll('_', ' ')).join(', ');
}
