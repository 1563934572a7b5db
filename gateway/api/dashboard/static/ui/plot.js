/** Loads uPlot, a classic script that sets the global `uPlot`, when the first chart needs it. */

const SOURCE = '/dashboard/assets/vendor/uPlot.iife.min.js';

// The page's Content-Security-Policy allows this policy by its name. It yields one URL only.
const policy = globalThis.trustedTypes?.createPolicy('uplot', {createScriptURL: () => SOURCE});

let loading;

export function loadPlot() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.addEventListener('load', resolve);
    script.addEventListener('error', reject);
    script.src = policy ? policy.createScriptURL('') : SOURCE;
    document.head.append(script);
  });
  return loading;
}
