// The story of `story.mjs` by keyboard alone, in one window.
import {browse, given, openPage, say, settled} from './browser.mjs';
import {hasFocus, press, tabTo, type} from './keyboard.mjs';

const TOKEN = 'Admin token or gateway key';

const button = (page, name) => page.getByRole('button', {name, exact: true});
const dialogOf = (page) => page.getByRole('dialog');

async function signIn(page, token) {
  await type(page, page.getByLabel(TOKEN), token);
  await page.keyboard.press('Enter');
  await page.getByRole('navigation', {name: 'Views'}).waitFor();
  await settled(page);
}

async function signOut(page) {
  await press(page, button(page, 'Sign out'));
  await page.getByLabel(TOKEN).waitFor();
}

async function goTo(page, view) {
  await press(page, page.getByRole('navigation', {name: 'Views'}).getByRole('link', {name: view, exact: true}));
  const heading = page.getByRole('heading', {level: 1, name: view});
  await heading.waitFor();
  await settled(page);
  // Where a screen reader goes on.
  await must(hasFocus(heading), `the heading of ${view} has the focus`);
}

async function must(promise, what) {
  if (!(await promise)) throw new Error(`not so: ${what}`);
}

/** Opens a dialog with `opener`, which has the focus again after `leave`. */
async function inDialog(page, opener, leave) {
  const dialog = dialogOf(page);
  await dialog.waitFor();
  const isInside = await dialog.evaluate((each) => each.contains(document.activeElement));
  await must(isInside, 'the focus is in the dialog');
  await leave(dialog);
  await dialog.waitFor({state: 'hidden'});
  await settled(page);
  await must(hasFocus(opener), `the focus is back at ${opener}`);
}

async function skipToContent(page) {
  await page.reload();
  await settled(page);
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press('Tab');
  const skip = page.getByRole('link', {name: 'Skip to the content'});
  await must(hasFocus(skip), 'the skip link is first');
  await must(skip.isVisible(), 'the skip link is visible');
  await page.keyboard.press('Enter');
  await must(hasFocus(page.getByRole('main')), 'the focus is in the content');
  say('skipped to the content');
}

async function makeKey(page) {
  await goTo(page, 'Keys');
  const opener = button(page, 'Make a key').first();
  await press(page, opener);
  await inDialog(page, opener, () => page.keyboard.press('Escape'));
  await page.keyboard.press('Enter');
  const dialog = dialogOf(page);
  await type(page, dialog.getByLabel('Name', {exact: true}), 'typist');
  await type(page, dialog.getByLabel(/^Dollars (a|per) month/), '2');
  await page.keyboard.press('Enter');
  await takeSecret(page);
  const heading = page.getByRole('heading', {level: 1, name: 'typist'});
  await heading.waitFor();
  await must(hasFocus(heading), 'the heading of the new key has the focus');
  say('made a key');
}

async function takeSecret(page) {
  const shown = dialogOf(page).getByLabel('Secret', {exact: true});
  await shown.waitFor();
  await press(page, dialogOf(page).locator('.secret').getByRole('button', {name: 'Copy'}));
  await dialogOf(page).locator('.secret .copied', {hasText: 'Copied'}).waitFor();
  const secret = await shown.innerText();
  await press(page, button(page, 'I have copied it'));
  return secret;
}

async function makeImage(page) {
  await goTo(page, 'Playground');
  await type(page, page.getByLabel('Key', {exact: true}), 'typist');
  await tabTo(page, page.getByLabel('Model', {exact: true}));
  await page.keyboard.type('gpt-image-2');
  await type(page, page.getByLabel('Prompt', {exact: true}), 'an otter that types');
  await page.locator('.estimate .price').waitFor();
  await press(page, button(page, 'Generate'));
  await page.getByRole('img', {name: /^Image 1 of/}).waitFor();
  const opener = button(page, 'Open large');
  await press(page, opener);
  await inDialog(page, opener, () => page.keyboard.press('Escape'));
  say('made an image');
}

async function readTheChart(page) {
  await goTo(page, 'Spend');
  const figure = page.locator('figure.chart').first();
  await tabTo(page, figure.locator('gw-chart'));
  await page.keyboard.press('ArrowRight');
  await figure.locator('gw-chart .tooltip, .chart-tip, [role=status]').first().waitFor();
  await press(page, figure.locator('summary'));
  await figure.getByRole('table').waitFor();
  say('read the chart');
}

/** Opens the menu of the key, and the dialog of an action in it. */
async function act(page, action, leave) {
  const menu = page.locator('summary[aria-label="Actions for typist"]');
  await press(page, menu);
  await press(page, page.getByRole('button', {name: action}));
  await inDialog(page, menu, leave);
}

async function raiseAndRotate(page) {
  await goTo(page, 'Keys');
  await act(page, 'Raise a limit', async (dialog) => {
    await type(page, dialog.getByLabel('Add'), '3');
    await type(page, dialog.getByLabel('Reason'), 'a launch');
    await page.keyboard.press('Enter');
  });
  let secret = '';
  await act(page, 'Rotate the secret', async (dialog) => {
    await press(page, dialog.getByRole('button', {name: 'Rotate'}));
    secret = await takeSecret(page);
  });
  say('raised and rotated');
  return secret;
}

async function beHolder(page, secret) {
  await signIn(page, secret);
  const opener = button(page, 'Ask for more').first();
  await press(page, opener);
  await inDialog(page, opener, async (dialog) => {
    await type(page, dialog.getByLabel('How much more'), '5');
    await press(page, dialog.getByRole('button', {name: 'Send'}));
  });
  await goTo(page, 'Images');
  const image = page.locator('.gallery-item').first();
  await press(page, image);
  await inDialog(page, image, () => page.keyboard.press('Escape'));
  say('was the holder');
}

async function chooseTheme(page) {
  await tabTo(page, page.locator('input[name=theme]:checked'));
  await page.keyboard.press('ArrowRight');
  const light = await page.evaluate(() => document.documentElement.dataset.theme);
  await page.keyboard.press('ArrowRight');
  const dark = await page.evaluate(() => document.documentElement.dataset.theme);
  say('chose themes', {themes: [light, dark]});
}

async function revoke(page) {
  await goTo(page, 'Keys');
  const menu = page.locator('summary[aria-label="Actions for typist"]');
  await press(page, menu);
  await press(page, page.getByRole('button', {name: 'Revoke'}));
  await dialogOf(page).waitFor();
  await press(page, dialogOf(page).getByRole('button', {name: 'Revoke typist'}));
  await menu.waitFor({state: 'hidden'});
  say('revoked');
}

await browse(async (browser) => {
  const page = await openPage(browser);
  page.expected.push(/^401 GET \/dashboard\/api\/session$/);
  await page.goto(`${given.url}/dashboard`);
  await page.getByLabel(TOKEN).waitFor();
  await signIn(page, given.token);
  await skipToContent(page);
  await makeKey(page);
  await makeImage(page);
  await readTheChart(page);
  const secret = await raiseAndRotate(page);
  await signOut(page);
  await beHolder(page, secret);
  await chooseTheme(page);
  await signOut(page);
  await signIn(page, given.token);
  await revoke(page);
  say('end', {faults: page.faults});
});
