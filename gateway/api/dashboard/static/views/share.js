import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const share = {
  name: 'share',
  label: 'Your usage',
  icon: 'share',
  kind: 'key',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Your usage', view, content: () => empty({icon: 'share', title: 'Not there yet', text: 'This view is being built.'})}),
};
