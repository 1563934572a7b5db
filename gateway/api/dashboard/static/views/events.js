import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const events = {
  name: 'events',
  label: 'Events',
  icon: 'events',
  kind: 'admin',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Events', view, content: () => empty({icon: 'events', title: 'Not there yet', text: 'This view is being built.'})}),
};
