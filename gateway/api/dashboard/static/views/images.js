import {empty} from '../ui/feedback.js';
import {page} from '../ui/page.js';

export const images = {
  name: 'images',
  label: 'Images',
  icon: 'images',
  kind: 'any',
  defaults: {},
  load: async () => ({}),
  render: (view) =>
    page({title: 'Images', view, content: () => empty({icon: 'images', title: 'Not there yet', text: 'This view is being built.'})}),
};
