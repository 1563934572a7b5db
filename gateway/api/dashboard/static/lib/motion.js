/** How to scroll to a place: at once, where less motion is asked for. */
export const scrolling = () => (matchMedia('(prefers-reduced-motion: reduce)').matches ? 'instant' : 'smooth');
