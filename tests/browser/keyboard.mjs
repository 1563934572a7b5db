// A person who has no mouse: keys go to what has the focus, which must always be visible.

const MAX_TABS = 120;

/** Presses Tab (or Shift+Tab) until the only element of `locator` has the focus. */
export async function tabTo(page, locator, {key = 'Tab'} = {}) {
  for (let pressed = 0; pressed < MAX_TABS; pressed += 1) {
    if (pressed) await page.keyboard.press(key);
    const focused = await look(page);
    if (pressed && !focused.visible) throw new Error(`the focus is not to be seen at ${focused.html}`);
    if (await hasFocus(locator)) return;
  }
  throw new Error(`${MAX_TABS} × ${key} did not reach ${locator}`);
}

export async function hasFocus(locator) {
  const [element] = await locator.elementHandles();
  return element ? element.evaluate((each) => each === document.activeElement) : false;
}

/** Goes there with Tab, and presses a key. */
export async function press(page, locator, key = 'Enter') {
  await tabTo(page, locator);
  await page.keyboard.press(key);
}

/** Goes to a field with Tab, and replaces its text. */
export async function type(page, locator, text) {
  await tabTo(page, locator);
  await page.keyboard.press('Control+A');
  await page.keyboard.type(text);
}

/** What has the focus, and whether a person sees that: an outline, a shadow, or a mark beside it. */
const look = (page) =>
  page.evaluate(async () => {
    // A transition moves it into view with the next frames.
    for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
    const element = document.activeElement;
    if (!element || element === document.body) return {html: '<body>', visible: true};
    const shown = [element, element.nextElementSibling, element.closest('label'), element.closest('dialog')];
    const isMarked = (each) => {
      const {outlineStyle, outlineWidth, boxShadow} = getComputedStyle(each);
      return (outlineStyle !== 'none' && parseFloat(outlineWidth) > 0) || boxShadow !== 'none';
    };
    const {right, bottom, left, top} = element.getBoundingClientRect();
    const isInside = right > 0 && bottom > 0 && left < innerWidth && top < innerHeight;
    return {
      html: element.outerHTML.slice(0, 200),
      visible: isInside && shown.some((each) => each && isMarked(each)),
    };
  });
