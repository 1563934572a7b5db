/**
 * icon(name): a line icon of 24 units, as high as the text beside it. It is decoration: a button
 * that has only an icon needs an aria-label.
 */

import {html} from '../vendor/lit-html.js';

const PATHS = {
  alert: 'M12 9v4m0 4h.01M10.3 3.9 2 18a2 2 0 0 0 1.7 3h16.6A2 2 0 0 0 22 18L13.7 3.9a2 2 0 0 0-3.4 0z',
  arrow: 'M5 12h14m-6-6 6 6-6 6',
  back: 'M19 12H5m6 6-6-6 6-6',
  bolt: 'M13 2 4 14h7l-1 8 9-12h-7z',
  check: 'm5 13 4 4L19 7',
  chevron: 'm6 9 6 6 6-6',
  clock: 'M12 7v5l3 2m6-2a9 9 0 1 1-18 0 9 9 0 0 1 18 0z',
  close: 'M6 6l12 12M18 6 6 18',
  copy: 'M9 9h11v11H9zM5 15H4V4h11v1',
  download: 'M12 4v11m-5-5 5 5 5-5M4 20h16',
  edit: 'M4 20h4L19 9l-4-4L4 16zm9-13 4 4',
  events: 'M6 9a6 6 0 1 1 12 0c0 5 2 6 2 8H4c0-2 2-3 2-8zm4 11a2 2 0 0 0 4 0',
  eye: 'M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zm13 0a3 3 0 1 1-6 0 3 3 0 0 1 6 0z',
  filter: 'M4 5h16l-6 8v6l-4-2v-4z',
  images: 'M4 4h16v16H4zm0 12 5-5 5 5m-1-1 3-3 4 4M15.5 8.5h.01',
  key: 'M11.5 15.5a4.5 4.5 0 1 1-9 0 4.5 4.5 0 0 1 9 0zM10.5 12.5 20 3m-3 3 3 3m-6 0 2 2',
  link: 'M10 14a4 4 0 0 0 6 0l4-4a4 4 0 0 0-6-6l-1 1m1 5a4 4 0 0 0-6 0l-4 4a4 4 0 0 0 6 6l1-1',
  menu: 'M4 7h16M4 12h16M4 17h16',
  more: 'M5 12h.01M12 12h.01M19 12h.01',
  moon: 'M20 14A8 8 0 0 1 10 4a8 8 0 1 0 10 10z',
  overview: 'M4 4h7v9H4zm9 0h7v5h-7zm0 8h7v8h-7zm-9 4h7v4H4z',
  playground: 'm5 19 9-9m-1-5 1-2 1 2 2 1-2 1-1 2-1-2-2-1zm6 7 .7-1.5L20.5 12l1.5.7-1.5.8L19.7 15l-.7-1.5-1.5-.8zM7 5l.7-1.5L8.5 5l1.5.7-1.5.8L7.7 8 7 6.5l-1.5-.8z',
  plus: 'M12 5v14M5 12h14',
  refresh: 'M20 11a8 8 0 0 0-14-4L4 9m0-5v5h5m-5 4a8 8 0 0 0 14 4l2-2m0 5v-5h-5',
  requests: 'M4 6h16M4 12h16M4 18h10',
  search: 'm20 20-4.5-4.5M17 10.5a6.5 6.5 0 1 1-13 0 6.5 6.5 0 0 1 13 0z',
  settings: 'M4 7h9m5 0h2M4 17h3m5 0h8M18 7a2.5 2.5 0 1 1-5 0 2.5 2.5 0 0 1 5 0zm-6 10a2.5 2.5 0 1 1-5 0 2.5 2.5 0 0 1 5 0z',
  share: 'M12 3v9h9a9 9 0 1 1-9-9zm4 .9A9 9 0 0 1 20.1 8H16z',
  signout: 'M10 4H5v16h5m5-4 4-4-4-4m4 4H9',
  spend: 'M4 20V10m5 10V4m5 16v-8m5 8V7',
  sun: 'M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0zM12 2v2m0 16v2M4.9 4.9l1.4 1.4m11.4 11.4 1.4 1.4M2 12h2m16 0h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4',
  system: 'M3 5h18v11H3zm6 15h6m-3-4v4',
  table: 'M4 5h16v14H4zm0 5h16M10 10v9',
  teams: 'M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zm-6 9a6 6 0 0 1 12 0m1-16a3.5 3.5 0 0 1 0 7m2 3a6 6 0 0 1 3 6',
  trash: 'M5 7h14M10 7V4h4v3m3 0-1 13H8L7 7m3 4v5m4-5v5',
};

export const icon = (name) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** The gateway's mark, beside its name. */
export const mark = () => html`
  <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
    <rect width="32" height="32" rx="8" />
    <path class="gate" d="M7 25V13.5a9 9 0 0 1 18 0V25" />
    <path class="hill" d="m10.5 25 4-6 2.7 3.6 1.9-2.3L22 25z" />
    <circle cx="18.7" cy="15" r="1.9" />
  </svg>
`;
