// Opens views and their dialogs in themes and widths; says of each what is wrong with it, and what
// axe-core finds.
//
// `views` are addresses below /dashboard, each with the dialogs that it opens: the names of the
// buttons that lead to them. All sessions sign in first: at the step `signed in` the test may take
// the store away.
import {browse, examine, given, openPage, openView, say, settled, signIn, tell} from './browser.mjs';

const HEIGHTS = {360: 740, 1440: 900};

async function lookAtAll(page, {name, theme, views}) {
  for (const width of given.widths) {
    await page.setViewportSize({width, height: HEIGHTS[width]});
    for (const {view, dialogs} of views) {
      const about = {session: name, view, theme, width};
      await openView(page, view);
      await refresh(page);
      await lookAt(page, {...about, title: await page.locator('h1').first().innerText()});
      for (const path of given.dialogs ? dialogs : []) await lookAtDialog(page, path, about);
    }
  }
}

async function lookAt(page, about) {
  // A second theme has other colours only.
  const rules = about.theme === given.themes[0] ? [] : ['color-contrast'];
  const findings = given.axe ? await examine(page, about.dialog ? 'dialog' : 'html', rules) : [];
  say('view', {...about, ...(await measure(page)), axe: findings});
  if (!given.save) return;
  await loadAllImages(page);
  const {view, dialog = '', session, theme, width} = about;
  const name = `${view} ${dialog}`.trim().replaceAll(/\W+/g, '-');
  // The whole page, whatever scrolls inside of it; of a dialog what a person sees.
  await page.screenshot({
    path: `${given.save}/${name}-${session}-${theme}-${width}.png`,
    fullPage: !dialog,
    animations: 'disabled',
  });
}

/** Also those that are below the screen. */
async function loadAllImages(page) {
  await page.evaluate(() => {
    for (const image of document.images) image.loading = 'eager';
  });
  await page.waitForFunction(() => [...document.images].every((image) => image.complete));
}

/** As the page does by itself. A click would be input, after which things may move. */
async function refresh(page) {
  await page.evaluate(() => document.querySelector('[aria-label="Refresh"]')?.click());
  await settled(page);
}

async function lookAtDialog(page, path, about) {
  for (const name of path) await clickOn(page, name);
  const dialog = page.getByRole('dialog');
  await dialog.waitFor();
  await settled(page);
  await lookAt(page, {...about, dialog: path.at(-1), title: await dialog.getByRole('heading').first().innerText()});
  await page.keyboard.press('Escape');
  await dialog.waitFor({state: 'hidden'});
  await settled(page);
}

/**
 * The first button whose name begins so, or that a selector such as `.gallery-item` finds; behind
 * `> ` one of the dialog that is open.
 */
async function clickOn(page, name) {
  if (name.startsWith('> ')) return clickIn(page.getByRole('dialog'), name.slice(2));
  return clickIn(page.getByRole('main'), name);
}

async function clickIn(inside, name) {
  // The button of a menu is a summary.
  const named = inside.getByRole('button', {name: new RegExp(`^${name}`)}).or(inside.locator(`summary[aria-label^="${name}"]`));
  const found = name.startsWith('.') ? inside.locator(name) : named;
  await found.locator('visible=true').first().click();
}

/** What makes a view unpleasant: it scrolls sideways, or things move while it loads. */
const measure = (page) =>
  page.evaluate(() => ({
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll('main *')]
      .filter((element) => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.table-box, pre, svg, gw-chart'))
      .map((element) => `${element.localName}.${element.className?.baseVal ?? element.className}`)
      .slice(0, 5),
    shift: window.shifts.reduce((sum, {value}) => sum + value, 0),
    moved: window.shifts.flatMap(({moved}) => moved).slice(0, 5),
  }));

await browse(async (browser) => {
  const opened = [];
  for (const {name, token, views} of given.sessions) {
    for (const theme of given.themes) {
      const page = await openPage(browser, {theme, axe: given.axe});
      page.expected.push(...(given.expected ?? []).map((pattern) => new RegExp(pattern)));
      await signIn(page, token);
      const links = await page.getByRole('navigation', {name: 'Views', includeHidden: true}).locator('a').all();
      say('navigation', {name, views: await Promise.all(links.map((each) => each.getAttribute('href')))});
      opened.push({page, name, theme, views});
    }
  }
  await tell('signed in');
  for (const {page, ...about} of opened) {
    await lookAtAll(page, about);
    say('session', {name: about.name, theme: about.theme, faults: page.faults});
    await page.context().close();
  }
});
