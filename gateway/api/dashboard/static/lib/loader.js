/**
 * Loads the data of the current view. On a refresh the old data stay until the new ones arrive, so
 * that nothing jumps; a newer load cancels an older one. Pages in the background do not refresh.
 */

const RETRY_SECONDS = 10;

export class Loader {
  #changed;
  #aborter = new AbortController();
  #timer = 0;
  #due = false;
  data;
  error = null;
  loading = false;
  loadedAt = null;

  /** @param {() => void} changed is called whenever data, error or loading change */
  constructor(changed) {
    this.#changed = changed;
    document.addEventListener('visibilitychange', () => this.#refreshIfDue());
  }

  /** Forgets the data, as for another view. */
  reset() {
    this.#aborter.abort();
    clearTimeout(this.#timer);
    this.#due = false;
    Object.assign(this, {data: undefined, error: null, loading: false, loadedAt: null});
  }

  /** @param {() => Promise<any>} load called with {signal} */
  async run(load, refreshSeconds) {
    this.#aborter.abort();
    clearTimeout(this.#timer);
    const {signal} = (this.#aborter = new AbortController());
    this.loading = true;
    this.#changed();
    try {
      const data = await load({signal});
      if (signal.aborted) return;
      Object.assign(this, {data, error: null, loadedAt: Date.now() / 1000});
    } catch (error) {
      if (signal.aborted) return;
      this.error = error;
    }
    this.loading = false;
    this.#changed();
    const seconds = this.error?.passes ? RETRY_SECONDS : refreshSeconds;
    if (seconds) this.#schedule(() => this.run(load, refreshSeconds), seconds);
  }

  #schedule(refresh, seconds) {
    this.#due = false;
    this.refresh = refresh;
    this.#timer = setTimeout(() => {
      this.#due = true;
      this.#refreshIfDue();
    }, seconds * 1000);
  }

  #refreshIfDue() {
    if (!this.#due || document.hidden) return;
    this.#due = false;
    this.refresh();
  }
}
