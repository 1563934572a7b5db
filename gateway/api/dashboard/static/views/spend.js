import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const spend = {
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Spend', view, content: () => empty({icon: 'spend', title: 'Not there yet', text: 'This view is being built.'})}),
};
