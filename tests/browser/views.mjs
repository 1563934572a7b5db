// Opens views in themes and widths, and says of each what is wrong with it, and what axe-core finds.
//
// `views` are addresses below /dashboard. All sessions sign in first: at the step `signed in` the test
// may take the store away.
import {writeFile} from 'node:fs/promises';
import {browse, given, openPage, openView, say, signIn, tell} from './browser.mjs';

const HEIGHTS = {360: 740, 1440: 900};

async function lookAtAll(page, {name, theme, views}) {
  for (const width of given.widths) {
    await page.setViewportSize({width, height: HEIGHTS[width]});
    for (const view of views) {
      await openView(page, view);
      const about = {session: name, view, theme, width};
      say('view', {...about, ...(await measure(page)), axe: given.axe ? await examine(page) : []});
      if (given.save) await save(page, `${given.save}/${view.replaceAll(/\W+/g, '-')}-${name}-${theme}-${width}.png`);
    }
  }
}

/** What makes a view unpleasant: it scrolls sideways, or things move while it loads. */
const measure = (page) =>
  page.evaluate(() => ({
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll('main *')]
      .filter((element) => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.table-box, pre, svg, .u-wrap'))
      .map((element) => `${element.localName}.${element.className?.baseVal ?? element.className}`)
      .slice(0, 5),
    shift: window.shifts.reduce((sum, {value}) => sum + value, 0),
    moved: window.shifts.flatMap(({moved}) => moved).slice(0, 5),
  }));

/** The serious and critical findings of axe-core. */
const examine = (page) =>
  page.evaluate(async () => {
    const {violations} = await axe.run(document, {resultTypes: ['violations']});
    return violations
      .filter(({impact}) => impact === 'serious' || impact === 'critical')
      .map(({id, nodes}) => ({id, nodes: nodes.slice(0, 4).map(({html, failureSummary}) => `${html.slice(0, 160)} ${failureSummary}`)}));
  });

async function save(page, path) {
  // The whole page, whatever scrolls inside of it.
  await writeFile(path, await page.screenshot({fullPage: true, animations: 'disabled'}));
}

await browse(async (browser) => {
  const opened = [];
  for (const {name, token, views} of given.sessions) {
    for (const theme of given.themes) {
      const page = await openPage(browser, {theme, axe: given.axe});
      page.expected.push(...(given.expected ?? []).map((pattern) => new RegExp(pattern)));
      await signIn(page, token);
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
