import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const keys = {
  name: 'keys',
  label: 'Keys',
  icon: 'key',
  kind: 'admin',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Keys', view, content: () => empty({icon: 'key', title: 'Not there yet', text: 'This view is being built.'})}),
};
