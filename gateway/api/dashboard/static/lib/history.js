/**
 * The last generations of a key, in this browser only: settings, a small image and the cost.
 *
 * Never a secret. Prompts are kept here and nowhere else, so there is `clearHistory`.
 */

const MAX_ENTRIES = 24;
const MAX_KEYS = 8;
const THUMBNAIL_EDGE = 112;
const PREFIX = 'gateway-playground:';

/**
 * @typedef {object} HistoryEntry
 * @property {number} at  Unix seconds
 * @property {{model: string, prompt: string, values: object, variation: number, side: number}} settings
 * @property {string} thumbnail  a `data:` URL of a few kilobytes
 * @property {number|null} costUsd
 * @property {string} handling
 */

/** @returns {HistoryEntry[]} newest first */
export function readHistory(keyId) {
  try {
    const stored = JSON.parse(localStorage.getItem(PREFIX + keyId));
    return stored.entries.filter(isEntry);
  } catch {
    return []; // blocked, none yet, or written by another version
  }
}

const isEntry = (entry) =>
  typeof entry?.settings?.model === 'string' && typeof entry.settings.prompt === 'string';

/** Adds an entry, and forgets the oldest ones that no longer fit. Returns what is kept. */
export function addToHistory(keyId, entry) {
  let entries = [entry, ...readHistory(keyId)].slice(0, MAX_ENTRIES);
  forgetOtherKeys(keyId);
  while (entries.length && !store(keyId, entries)) {
    entries = entries.slice(0, Math.floor(entries.length / 2));
  }
  return entries;
}

export function clearHistory(keyId) {
  try {
    localStorage.removeItem(PREFIX + keyId);
  } catch {
    // Storage is blocked, so nothing was kept.
  }
}

function store(keyId, entries) {
  try {
    localStorage.setItem(PREFIX + keyId, JSON.stringify({at: Date.now(), entries}));
    return true;
  } catch {
    return false; // full
  }
}

/** An admin may try many keys: the histories used longest ago go. */
function forgetOtherKeys(keyId) {
  try {
    const names = Object.keys(localStorage).filter((n) => n.startsWith(PREFIX) && n !== PREFIX + keyId);
    const byUse = names
      .map((name) => [JSON.parse(localStorage[name])?.at ?? 0, name])
      .sort((a, b) => b[0] - a[0]);
    for (const [, name] of byUse.slice(MAX_KEYS - 1)) localStorage.removeItem(name);
  } catch {
    // Storage is blocked or holds something else.
  }
}

/** An image as a `data:` URL of a few kilobytes; empty if the browser cannot draw it. */
export async function thumbnailOf(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = THUMBNAIL_EDGE / Math.max(bitmap.width, bitmap.height);
    const [width, height] = [bitmap.width, bitmap.height].map((edge) =>
      Math.max(1, Math.round(edge * scale)),
    );
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext('2d').drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    return await dataUrl(await canvas.convertToBlob({type: 'image/webp', quality: 0.7}));
  } catch {
    return '';
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
