// A classic script in <head>: it sets the chosen theme before the first paint.
// lib/theme.js changes it afterwards.
(() => {
  try {
    const chosen = localStorage.getItem('theme');
    if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is blocked: the page follows the system.
  }
})();
