"""The dashboard in Chromium. `browser.mjs` drives it; each other script is one test's steps."""
