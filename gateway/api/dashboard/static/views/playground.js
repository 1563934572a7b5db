import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const playground = {
  name: 'playground',
  label: 'Playground',
  icon: 'playground',
  kind: 'any',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Playground', view, content: () => empty({icon: 'playground', title: 'Not there yet', text: 'This view is being built.'})}),
};
