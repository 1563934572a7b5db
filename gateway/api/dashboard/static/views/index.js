/** All views. The navigation shows them in this order, in groups, to the sessions they are for. */

import {events} from './events.js';
import {images} from './images.js';
import {keys} from './keys.js';
import {overview} from './overview.js';
import {playground} from './playground.js';
import {requests} from './requests.js';
import {settings} from './settings.js';
import {share} from './share.js';
import {spend} from './spend.js';
import {teams} from './teams.js';

const GROUPS = [
  [overview, spend, share],
  [keys, teams, images],
  [playground],
  [requests, events, settings],
];

const isFor = (view, session) => view.kind === 'any' || view.kind === session.kind;

/** The groups of the navigation for this session. */
export const groupsFor = (session) =>
  GROUPS.map((group) => group.filter((view) => isFor(view, session))).filter((group) => group.length);

/** The view of this name, or the first one that the session may see. */
export function viewNamed(name, session) {
  const views = groupsFor(session).flat();
  return views.find((view) => view.name === name) ?? views[0];
}
