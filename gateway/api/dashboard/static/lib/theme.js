/** Light, dark, or what the system says. theme.js in <head> applies the choice before the paint. */

export const THEMES = ['system', 'light', 'dark'];

export function theme() {
  return document.documentElement.dataset.theme ?? 'system';
}

export function setTheme(name) {
  const root = document.documentElement;
  if (name === 'system') delete root.dataset.theme;
  else root.dataset.theme = name;
  try {
    localStorage.setItem('theme', name);
  } catch {
    // Storage is blocked: the choice lasts until the page is closed.
  }
  document.dispatchEvent(new Event('themechange'));
}

/** Calls `changed` whenever the page's colours change. @returns a function that stops it */
export function watchTheme(changed) {
  const system = matchMedia('(prefers-color-scheme: dark)');
  document.addEventListener('themechange', changed);
  system.addEventListener('change', changed);
  return () => {
    document.removeEventListener('themechange', changed);
    system.removeEventListener('change', changed);
  };
}
