// Opens every view and every detail of a gateway whose texts were all chosen by an attacker. Says
// what a person reads in each, and what became an element or ran.
import {browse, given, openPage, openView, say, settled, signIn} from './browser.mjs';

/** Opens what `details` names one after the other: rows and cards whose details are a dialog. */
async function openDetails(page, view) {
  const texts = [];
  for (const opener of await page.locator(given.openers[view] ?? 'none').all()) {
    await opener.click();
    const dialog = page.getByRole('dialog');
    await dialog.waitFor();
    await page.waitForFunction(() => !document.querySelector('dialog .skeleton, dialog [aria-busy="true"]'));
    texts.push(await dialog.innerText());
    await page.keyboard.press('Escape');
    await dialog.waitFor({state: 'hidden'});
  }
  return texts;
}

/** Makes an image in the playground with each prompt; what is shown of it, or of its error. */
async function generate(page, prompts) {
  const texts = [];
  await page.getByLabel('Model', {exact: true}).selectOption('dall-e-3');
  for (const prompt of prompts) {
    await page.getByLabel('Prompt', {exact: true}).fill(prompt);
    await page.getByRole('button', {name: 'Generate'}).click();
    const shown = page.locator('.run.done, .run.failed');
    await shown.first().waitFor();
    const revised = shown.getByText('Revised prompt');
    if (await revised.count()) await revised.click();
    texts.push(await shown.first().innerText());
  }
  return texts;
}

/** Makes an SVG in the playground, which the page must not draw. */
async function makeVectors(page) {
  await page.getByLabel('Model', {exact: true}).selectOption(given.vectors);
  await page.locator('input[name="output_format"][value="svg"]').check({force: true});
  await page.getByLabel('Prompt', {exact: true}).fill('svg in the playground');
  await page.getByRole('button', {name: 'Generate'}).click();
  const shown = page.locator('.run.done');
  await shown.getByRole('img', {name: 'A file: svg'}).waitFor();
  const [drawn, placeholders] = await Promise.all(['img', '.undrawn'].map((name) => shown.locator(name).count()));
  const download = page.waitForEvent('download');
  await shown.locator('a[download]').click();
  const saved = (await download).suggestedFilename();
  // As "open in a new tab" does: it is saved there too.
  const address = await shown.locator('a[download]').getAttribute('href');
  // The browser closes a tab that has nothing but a download, perhaps before it is heard of.
  const again = new Promise((resolve) => {
    page.once('popup', (tab) => tab.once('download', () => resolve(true)).once('close', () => resolve(true)));
  });
  await page.evaluate((url) => void open(url), address);
  say('vectors', {drawn, placeholders, saved, again: await again});
}

/** Opens an address of an SVG as a page of its own: the name under which it is saved instead. */
async function openFile(page, url) {
  const tab = await page.context().newPage();
  const download = tab.waitForEvent('download');
  await tab.goto(url).catch(() => null); // a download ends the navigation
  say('file', {saved: (await download).suggestedFilename()});
  await tab.close();
}

/** Elements that only an attacker's text can have made, and links that run something. */
const strangers = (page) =>
  page.evaluate(() =>
    [...document.querySelectorAll('script:not([src]), iframe, object, embed, base, form[action], b, [style], a, img, svg *, [onerror], [onload], [onclick]')]
      .filter((element) => {
        const isHandler = element.getAttributeNames().some((name) => name.startsWith('on'));
        const address = element.getAttribute('href') ?? element.getAttribute('src') ?? '';
        const isElsewhere = address && !['http:', 'blob:', 'data:'].includes(new URL(address, location).protocol);
        const isOdd = ['script', 'iframe', 'object', 'embed', 'base'].includes(element.localName) && !element.src;
        const isForeign = element.localName === 'b' && element.textContent.includes('owned');
        const isOwned = new URL(address, location).pathname === '/owned';
        return isHandler || isElsewhere || isOdd || isForeign || isOwned;
      })
      .map((element) => element.outerHTML.slice(0, 200)),
  );

await browse(async (browser) => {
  for (const {name, token, views, files} of given.sessions) {
    const page = await openPage(browser);
    // Upstream refuses, and is broken.
    page.expected.push(/^(400|500|502) POST .*generations$/);
    await signIn(page, token);
    for (const view of views) {
      await openView(page, view);
      const text = await page.locator('body').innerText();
      const details = await openDetails(page, view.split('?')[0]);
      if (view === 'playground') details.push(...(await generate(page, given.prompts)));
      await settled(page);
      const title = await page.title();
      say('view', {session: name, view, text: [text, ...details].join('\n'), title, strangers: await strangers(page)});
    }
    if (views.includes('playground')) await makeVectors(page);
    for (const url of files) await openFile(page, url);
    say('session', {name, faults: page.faults, owned: await page.evaluate(() => window.owned === true)});
    await page.context().close();
  }
});
