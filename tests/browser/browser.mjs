// Chromium on the dashboard, and a list of what may never happen there: an error, a report of the
// content security policy, a request to another host, an answer that no step expects.
//
// A script runs in the folder where playwright-core and axe-core are installed. Its argument is a
// JSON object, `given`; it prints a line of JSON for each step that it has done.
import {createRequire} from 'node:module';
import {createInterface} from 'node:readline';

const need = createRequire(`${process.cwd()}/`);
const {chromium} = need('playwright-core');

export const given = JSON.parse(process.argv[2]);
export const say = (step, found = {}) => console.log(JSON.stringify({step, ...found}));

const answers = createInterface({input: process.stdin})[Symbol.asyncIterator]();

/** As `say`; waits until the test has done what it does at this step. */
export async function tell(step, found) {
  say(step, found);
  await answers.next();
}

export const WIDE = {width: 1440, height: 900};
export const NARROW = {width: 360, height: 740};

const ARGUMENTS = [
  '--disable-gpu',
  // Not even the browser itself asks for anything else.
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
  '--no-proxy-server',
];

/** Runs `steps(browser)`. If they fail, the page is in `given.folder` as it was then. */
export async function browse(steps) {
  const browser = await chromium.launch({executablePath: given.chromium, args: ARGUMENTS});
  try {
    await steps(browser);
  } catch (error) {
    await keepPages(browser);
    throw error;
  } finally {
    await browser.close();
    process.stdin.destroy();
  }
}

async function keepPages(browser) {
  const pages = browser.contexts().flatMap((context) => context.pages());
  for (const [number, page] of pages.entries()) {
    const path = `${given.folder}/failed-${number}.png`;
    await page.screenshot({path}).catch(() => {});
    console.error(`${page.url()} is in ${path}`);
    console.error((await page.locator('body').innerText().catch(() => '')).slice(0, 300));
  }
}

/** A page of its own session. `page.faults` lists what happened that may not. */
export async function openPage(browser, {theme = 'light', viewport = WIDE, axe = false} = {}) {
  const context = await browser.newContext({
    colorScheme: theme,
    viewport,
    permissions: ['clipboard-read', 'clipboard-write'],
    reducedMotion: 'reduce',
    locale: 'en-GB',
  });
  const faults = [];
  await context.exposeBinding('tellFault', (_, fault) => void faults.push(fault));
  await context.addInitScript(observe);
  if (axe) await context.addInitScript({path: need.resolve('axe-core/axe.min.js')});
  const page = await context.newPage();
  page.setDefaultTimeout(given.timeout ?? 30_000);
  watch(page, faults);
  return Object.assign(page, {faults, expected: []});
}

/** Runs in the page, before its own scripts. */
function observe() {
  addEventListener('securitypolicyviolation', ({effectiveDirective, blockedURI, sample}) =>
    tellFault({csp: effectiveDirective, blockedURI, sample}),
  );
  const tell = (reports) => reports.forEach(({type, body}) => tellFault({report: type, body: body?.toJSON()}));
  new ReportingObserver(tell, {buffered: true}).observe();
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const {value, hadRecentInput, sources} of list.getEntries()) {
      const moved = sources.map(({node, previousRect: from, currentRect: to}) => {
        const {className, nodeName} = node?.nodeType === 1 ? node : (node?.parentElement ?? {});
        return `${nodeName}.${className?.baseVal ?? className} ${from.x},${from.y} → ${to.x},${to.y}`;
      });
      if (!hadRecentInput) window.shifts.push({value, moved});
    }
  }).observe({type: 'layout-shift', buffered: true});
}

function watch(page, faults) {
  page.on('pageerror', (error) => faults.push({error: error.stack ?? error.message}));
  page.on('console', (message) => {
    // Chromium writes one for each answer of 400 and above too: `response` sees those.
    const isAnswer = message.text().startsWith('Failed to load resource: the server responded');
    if (['error', 'warning'].includes(message.type()) && !isAnswer) faults.push({console: message.text()});
  });
  page.on('request', (request) => {
    const {protocol, origin} = new URL(request.url());
    if (protocol.startsWith('http') && origin !== given.url) faults.push({elsewhere: request.url()});
  });
  page.on('requestfailed', (request) => {
    // A view that is left ends its requests.
    const {errorText} = request.failure();
    if (errorText !== 'net::ERR_ABORTED') faults.push({failed: request.url(), errorText});
  });
  page.on('response', (response) => {
    if (response.status() < 400) return;
    const answer = `${response.status()} ${response.request().method()} ${new URL(response.url()).pathname}`;
    if (!page.expected.some((pattern) => pattern.test(answer))) faults.push({answer});
  });
}

/** Opens a view by its address, and waits until its data are there. */
export async function openView(page, view, {query = ''} = {}) {
  await page.goto(`${given.url}/dashboard/${view}${query}`);
  await settled(page);
}

/** Waits until a view shows data, an empty state or an error instead of skeletons. */
export async function settled(page) {
  await page.locator('main[aria-busy="false"] h1').first().waitFor();
  await page.waitForFunction(() => !document.querySelector('main .skeleton, main [aria-busy="true"]'));
  // Thumbnails have their place before they arrive, but screenshots are better with them.
  await page.waitForFunction(() => [...document.images].every((image) => image.complete || image.loading === 'lazy'));
}

/** Signs in by the form. */
export async function signIn(page, token) {
  // Whether somebody is signed in is asked first.
  page.expected.push(/^401 GET \/dashboard\/api\/session$/);
  await page.goto(`${given.url}/dashboard`);
  await page.getByLabel('Admin token or gateway key').fill(token);
  await page.getByRole('button', {name: 'Sign in'}).click();
  await page.getByRole('navigation').waitFor({state: 'attached'});
  await settled(page);
}

/** The serious and critical findings of axe-core in an element; with `rules` only of these. */
export const examine = (page, inside = 'html', rules = []) =>
  page.evaluate(async ([inside, rules]) => {
    const only = rules.length ? {runOnly: rules} : {};
    const {violations} = await axe.run(inside, {resultTypes: ['violations'], preload: false, ...only});
    return violations
      .filter(({impact}) => impact === 'serious' || impact === 'critical')
      .map(({id, nodes}) => ({id, nodes: nodes.slice(0, 4).map(({html, failureSummary}) => `${html.slice(0, 160)} ${failureSummary}`)}));
  }, [inside, rules]);
