/**
 * The dialogs of keys, teams, limits and the cache. Their modules are loaded when one is first opened,
 * so that looking needs less than changing. Each takes the view first.
 */

const open = (load, name) => async (view, ...rest) => {
  try {
    const module = await load();
    await module[name](view, ...rest);
  } catch (error) {
    view.app.toast(error.message, 'fault');
  }
};

const ofKeys = () => import('./key_dialogs.js');
const ofTeams = () => import('./team_dialogs.js');
const ofLimits = () => import('./limit_dialogs.js');
const ofCache = () => import('./maintenance.js');

export const makeKey = open(ofKeys, 'makeKey');
export const editKey = open(ofKeys, 'editKey');
export const rotateKey = open(ofKeys, 'rotateKey');
export const revokeKey = open(ofKeys, 'revokeKey');
export const makeTeam = open(ofTeams, 'makeTeam');
export const editTeam = open(ofTeams, 'editTeam');
export const removeTeam = open(ofTeams, 'removeTeam');
export const openRaise = open(ofLimits, 'openRaise');
export const endRaise = open(ofLimits, 'endRaise');
export const changeLimits = open(ofLimits, 'changeLimits');
export const purgeCache = open(ofCache, 'purgeCache');
export const rotateSigningKeys = open(ofCache, 'rotateSigningKeys');
