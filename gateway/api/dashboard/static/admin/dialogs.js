/** The dialogs of keys and teams: their modules are loaded when the first one is opened. */

const ofKeys = (name) => lazily(() => import('./key_dialogs.js'), name);
const ofTeams = (name) => lazily(() => import('./team_dialogs.js'), name);

function lazily(load, name) {
  return async (view, ...given) => {
    try {
      (await load())[name](view, ...given);
    } catch (error) {
      view.app.toast(error.message, 'fault');
    }
  };
}

export const makeKeyDialog = ofKeys('makeKeyDialog');
export const editKeyDialog = ofKeys('editKeyDialog');
export const rotateDialog = ofKeys('rotateDialog');
export const revokeDialog = ofKeys('revokeDialog');
export const makeTeamDialog = ofTeams('makeTeamDialog');
export const editTeamDialog = ofTeams('editTeamDialog');
export const removeTeamDialog = ofTeams('removeTeamDialog');
