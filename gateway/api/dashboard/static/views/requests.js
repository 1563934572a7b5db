import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const requests = {
  name: 'requests',
  label: 'Requests',
  icon: 'requests',
  kind: 'admin',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Requests', view, content: () => empty({icon: 'requests', title: 'Not there yet', text: 'This view is being built.'})}),
};
