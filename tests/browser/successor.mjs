// Two holders of keys, one after the other in the same tab: the second sees nothing of the first, and
// learns that a sign-out without an answer was none.
import {browse, given, openPage, say, settled, signIn} from './browser.mjs';

const goTo = async (page, view) => {
  await page.getByRole('navigation', {name: 'Views'}).getByRole('link', {name: view, exact: true}).click();
  await page.getByRole('heading', {level: 1, name: view}).waitFor();
  await settled(page);
};

const galleryOf = (page) =>
  page.locator('.gallery-item img').evaluateAll((images) => images.map(({alt}) => alt));

await browse(async (browser) => {
  const page = await openPage(browser);
  await signIn(page, given.first);
  await goTo(page, 'Images');
  say('first', {images: await galleryOf(page)});
  await goTo(page, 'Your share');
  await page.getByRole('button', {name: 'Sign out'}).click();
  await page.getByLabel('Admin token or gateway key').fill(given.second);
  await page.getByRole('button', {name: 'Sign in'}).click();
  await page.getByRole('navigation').waitFor({state: 'attached'});
  await settled(page);
  // Opens the gallery at one image, whose list is that of the first holder.
  await page.locator('main a[href*="image="]').first().click();
  await page.getByRole('dialog').getByRole('img').waitFor();
  say('second', {images: await galleryOf(page)});
  say('end', {faults: page.faults});
  await page.keyboard.press('Escape');
  // Without an answer the cookie is still there.
  await page.route('**/dashboard/api/session', (route) =>
    route.request().method() === 'DELETE' ? route.abort() : route.continue(),
  );
  await page.getByRole('button', {name: 'Sign out'}).click();
  await page.getByLabel('Admin token or gateway key').waitFor();
  say('no answer', {said: await page.locator('main').innerText()});
});
