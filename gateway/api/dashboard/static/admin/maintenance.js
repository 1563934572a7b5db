/** The dialogs that purge the cache and rotate the keys that sign links. */

import {html, nothing} from '../vendor/lit-html.js';
import {plural} from '../lib/format.js';
import {get, post} from '../lib/http.js';
import {confirm, dialog} from '../ui/dialog.js';
import {choice, onSubmit, selectField, textField} from '../ui/form.js';

const WHAT = [
  {value: 'tag', label: 'A tag'},
  {value: 'model', label: 'A model'},
  {value: 'fingerprint', label: 'One entry'},
  {value: 'all', label: 'Everything'},
];

export async function purgeCache({app, refresh}) {
  let what = 'tag';
  const models = await get('/models').then(({data}) => data.map(({id}) => id), () => []);
  const choose = (value) => {
    what = value;
    app.update();
  };
  const run = onSubmit(async (values) => {
    if (what === 'all' && !values.confirmed) throw new Error('Tick the box: this empties the whole cache.');
    const purge = await post('/admin/cache/purge', what === 'all' ? {all: true} : {[what]: values[what]});
    app.closeDialog();
    app.toast(`Purged ${plural(purge.images, 'image')}${purge.done ? '.' : ' so far; the rest follows, and is not served meanwhile.'}`);
    refresh();
  });
  app.dialog(() => dialog({
    title: 'Purge the cache',
    lead: 'What is purged is bought again when it is next requested. Links that clients have keep working.',
    body: html`${choice({label: 'What', name: 'what', value: what, options: WHAT, onChange: choose})} ${fieldOf(what, models)}`,
    onSubmit: run,
    submit: 'Purge',
    danger: true,
    close: app.closeDialog,
  }));
}

const FIELDS = {
  tag: () => textField({label: 'Tag', name: 'tag', required: true, hint: 'As clients sent it in X-Gateway-Tags.'}),
  model: (models) => selectField({label: 'Model', name: 'model', value: models[0], options: models}),
  fingerprint: () => textField({label: 'Fingerprint', name: 'fingerprint', required: true, hint: 'It is in the header Cache-Status of answers, and in records.'}),
  all: () => html`
    <label class="check-line"><input type="checkbox" name="confirmed" /> Empty the whole cache: every image is bought again</label>
  `,
};

const fieldOf = (what, models) => FIELDS[what]?.(models) ?? nothing;

export function rotateSigningKeys({app, refresh}) {
  confirm(app, {
    title: 'Rotate the signing keys?',
    text: 'A new key signs links from now on, in every worker. Links that were signed before stay valid until they expire.',
    action: 'Rotate',
    danger: false,
    run: async () => {
      const {kid} = await post('/admin/signing-keys/rotate');
      app.toast(`Key ${kid} signs now.`);
      refresh();
    },
  });
}
