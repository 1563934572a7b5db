import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const settings = {
  name: 'settings',
  label: 'Settings',
  icon: 'settings',
  kind: 'admin',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Settings', view, content: () => empty({icon: 'settings', title: 'Not there yet', text: 'This view is being built.'})}),
};
