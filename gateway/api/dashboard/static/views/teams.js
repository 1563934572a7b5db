import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const teams = {
  name: 'teams',
  label: 'Teams',
  icon: 'teams',
  kind: 'admin',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Teams', view, content: () => empty({icon: 'teams', title: 'Not there yet', text: 'This view is being built.'})}),
};
