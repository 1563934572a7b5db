// An admin signs in through a one-time link, makes a key, makes an image with it, and sees what it
// cost; raises the key's limit, rotates it, and revokes it. Its holder sees only their own.
import {readFile} from 'node:fs/promises';
import {browse, examine, given, openPage, say, settled, signIn, tell} from './browser.mjs';

const goTo = async (page, view) => {
  await page.getByRole('navigation', {name: 'Views'}).getByRole('link', {name: view, exact: true}).click();
  await page.getByRole('heading', {level: 1, name: view}).waitFor();
  await settled(page);
};

const dialogOf = (page) => page.getByRole('dialog');

async function signInByLink(page) {
  await page.goto(given.link);
  await page.getByRole('heading', {level: 1, name: 'Overview'}).waitFor();
  await settled(page);
  say('signed in', {address: page.url()});
}

/** Returns the secret, which is shown once. */
async function makeKey(page) {
  await goTo(page, 'Keys');
  await page.getByRole('button', {name: 'Make a key'}).first().click();
  const dialog = dialogOf(page);
  await dialog.getByLabel('Name', {exact: true}).fill('studio');
  await dialog.getByLabel(/^Dollars (a|per) month/).fill('2');
  await dialog.getByRole('button', {name: 'Make the key'}).click();
  const secret = await takeSecret(page);
  await page.getByRole('heading', {level: 1, name: 'studio'}).waitFor();
  await goTo(page, 'Keys');
  say('made a key', {secret, bar: await barOf(page, 'studio'), csv: await saveCsv(page)});
  return secret;
}

/** The file that the view saves. */
async function saveCsv(page) {
  const saving = page.waitForEvent('download');
  await page.getByRole('button', {name: 'CSV'}).click();
  const file = await saving;
  return {name: file.suggestedFilename(), text: await readFile(await file.path(), 'utf8')};
}

/** Of a list that is searched on the page. */
async function findASetting(page) {
  await goTo(page, 'Settings');
  await page.getByLabel('Search settings').fill('store_prompts');
  await page.getByText(/^1 of /).waitFor();
  say('found a setting', {csv: await saveCsv(page)});
}

async function takeSecret(page) {
  const dialog = dialogOf(page);
  const secret = await dialog.getByLabel('Secret', {exact: true}).innerText();
  await dialog.locator('.secret').getByRole('button', {name: 'Copy'}).click();
  await dialog.locator('.secret .copied', {hasText: 'Copied'}).waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  if (copied !== secret) throw new Error(`copied ${copied} instead of ${secret}`);
  await dialog.getByRole('button', {name: 'I have copied it'}).click();
  await dialog.waitFor({state: 'hidden'});
  await settled(page);
  return secret;
}

/** The text of a key's bar in the list, such as `$0.17 of $2.00`. */
const barOf = (page, key) =>
  page.getByRole('row').filter({has: page.getByRole('link', {name: key, exact: true})}).locator('.limit-text').first().innerText();

async function makeImage(page) {
  await goTo(page, 'Playground');
  await page.getByLabel('Key', {exact: true}).fill('studio');
  await page.keyboard.press('Tab');
  await page.getByLabel('Model', {exact: true}).selectOption('gpt-image-2');
  await page.getByLabel('Prompt', {exact: true}).fill('an otter in a studio');
  await page.getByRole('radiogroup', {name: /^Partial images/}).getByRole('radio', {name: '2'}).check();
  const estimate = page.locator('.estimate .price');
  await estimate.waitFor();
  const atMost = await estimate.innerText();
  await page.getByRole('button', {name: 'Generate'}).click();
  const partial = page.getByRole('img', {name: /^Partial image of/});
  await partial.waitFor();
  await tell('saw a partial image', {atMost, width: await widthOf(partial), axe: await examine(page)});
  const image = page.getByRole('img', {name: /^Image 1 of/});
  await image.waitFor();
  // The cost of a stream is known once it is settled; until then its bound is shown.
  await page.locator('.run-facts .price').filter({hasNotText: 'at most'}).waitFor();
  const [handling, cost] = await Promise.all([
    page.locator('.run-facts .badge').first().innerText(),
    page.locator('.run-facts .price').innerText(),
  ]);
  say('saw the image', {width: await widthOf(image), handling, cost, axe: await examine(page)});
  await page.getByRole('button', {name: 'Open large'}).click();
  await dialogOf(page).getByRole('img').waitFor();
  await page.keyboard.press('Escape');
}

const widthOf = (image) => image.evaluate(async (each) => (await each.decode(), each.naturalWidth));

async function seeTheCost(page) {
  await goTo(page, 'Spend');
  await page.locator('figure.chart').first().getByText('Show table').click();
  const table = page.locator('figure.chart').first().getByRole('table');
  await table.waitFor();
  say('saw the spend', {rows: await table.getByRole('row').allInnerTexts()});
  await goTo(page, 'Keys');
  say('saw the bar', {bar: await barOf(page, 'studio')});
  await goTo(page, 'Images');
  say('saw the gallery', {images: await page.locator('.gallery-item').allInnerTexts()});
}

async function act(page, action) {
  await goTo(page, 'Keys');
  await page.getByLabel('Actions for studio').click();
  await page.getByRole('button', {name: action}).click();
  return dialogOf(page);
}

async function raise(page) {
  const dialog = await act(page, 'Raise a limit');
  await dialog.getByLabel('Add').fill('3');
  await dialog.getByLabel('Reason').fill('a launch');
  await dialog.getByRole('button', {name: 'Raise'}).click();
  await dialog.waitFor({state: 'hidden'});
  await page.getByText(/\$3\.00 more until/).waitFor();
  await settled(page);
  say('raised', {bar: await barOf(page, 'studio')});
}

async function rotate(page) {
  const dialog = await act(page, 'Rotate the secret');
  await dialog.getByLabel('The former secret stops working').selectOption({label: 'At once'});
  await dialog.getByRole('button', {name: 'Rotate'}).click();
  const secret = await takeSecret(page);
  say('rotated', {secret});
  return secret;
}

async function beHolder(page, {former, secret}) {
  page.expected.push(/^401 (POST|GET) \/dashboard\/api\/session$/);
  await page.goto(`${given.url}/dashboard`);
  await page.getByLabel('Admin token or gateway key').fill(former);
  await page.getByRole('button', {name: 'Sign in'}).click();
  await page.getByRole('alert').filter({hasText: /\w/}).waitFor();
  say('refused the former secret', {said: await page.getByRole('alert').first().innerText()});
  await signIn(page, secret);
  const views = await page.getByRole('navigation', {name: 'Views'}).getByRole('link').allInnerTexts();
  say('signed in as holder', {views, text: await page.locator('main').innerText()});
  await goTo(page, 'Images');
  say('saw own images', {images: await page.locator('.gallery-item').allInnerTexts()});
}

async function revoke(page, holder) {
  const dialog = await act(page, 'Revoke');
  await dialog.getByRole('button', {name: 'Revoke studio'}).click();
  await dialog.waitFor({state: 'hidden'});
  await settled(page);
  await page.getByRole('link', {name: 'studio', exact: true}).waitFor({state: 'hidden'});
  holder.expected.push(/^401 /);
  await holder.getByRole('button', {name: 'Refresh'}).click();
  await holder.getByLabel('Admin token or gateway key').waitFor();
  say('revoked', {said: await holder.locator('main').innerText()});
}

async function signOut(page) {
  await page.getByRole('button', {name: 'Sign out'}).click();
  await page.getByLabel('Admin token or gateway key').waitFor();
  page.expected.push(/^401 (POST|GET) \/dashboard\/api\/session$/);
  await page.goto('about:blank');
  await page.goto(given.link);
  await page.getByLabel('Admin token or gateway key').waitFor();
  say('signed out', {said: await page.locator('main').innerText()});
}

await browse(async (browser) => {
  const [admin, holder] = [await openPage(browser, {axe: true}), await openPage(browser)];
  await signInByLink(admin);
  const former = await makeKey(admin);
  await findASetting(admin);
  await makeImage(admin);
  await seeTheCost(admin);
  await raise(admin);
  const secret = await rotate(admin);
  await beHolder(holder, {former, secret});
  await revoke(admin, holder);
  await signOut(admin);
  say('end', {faults: [...admin.faults, ...holder.faults]});
});
