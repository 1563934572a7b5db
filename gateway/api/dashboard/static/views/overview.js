import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const overview = {
  name: 'overview',
  label: 'Overview',
  icon: 'overview',
  kind: 'admin',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Overview', view, content: () => empty({icon: 'overview', title: 'Not there yet', text: 'This view is being built.'})}),
};
