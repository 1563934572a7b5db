/**
 * Whether this browser may have a session. Scripts cannot see the cookie, and to ask without one
 * would log an error in the console.
 */

const NAME = 'signed-in';

export function mayBeSignedIn() {
  try {
    return localStorage.getItem(NAME) !== null;
  } catch {
    return true; // storage is off: the gateway knows
  }
}

export function noteSignedIn(isSignedIn) {
  try {
    if (isSignedIn) localStorage.setItem(NAME, '1');
    else localStorage.removeItem(NAME);
  } catch {
    // Storage is off.
  }
}
