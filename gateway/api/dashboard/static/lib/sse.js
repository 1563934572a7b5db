/** Server-sent events from the body of a `fetch`, as WHATWG's "event stream" says. */

/**
 * The events of a body, in order. A comment and an event without data yield nothing.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{event: string, data: string}>}
 */
export async function* readEvents(body) {
  let event = '',
    data = [];
  for await (const line of readLines(body)) {
    if (line === '') {
      if (data.length) yield {event: event || 'message', data: data.join('\n')};
      [event, data] = ['', []];
      continue;
    }
    const {name, value} = field(line);
    if (name === 'event') event = value;
    if (name === 'data') data.push(value);
  }
}

function field(line) {
  const colon = line.indexOf(':');
  if (colon === -1) return {name: line, value: ''};
  const value = line.slice(colon + 1);
  return {name: line.slice(0, colon), value: value.startsWith(' ') ? value.slice(1) : value};
}

/** A line ends with LF, CR or CRLF. What follows the last one is no complete line. */
async function* readLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  // An image is one line of megabytes in many chunks: join its parts once, at its end.
  let parts = [],
    endedWithCr = false;
  try {
    for (let read; !(read = await reader.read()).done;) {
      // The LF of a CRLF may come with the next chunk.
      const text = endedWithCr && read.value.startsWith('\n') ? read.value.slice(1) : read.value;
      endedWithCr = read.value.endsWith('\r');
      const lines = text.split(/\r\n|\n|\r/);
      parts.push(lines.shift());
      for (const next of lines) {
        yield parts.join('');
        parts = [next];
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the reader stopped early, or the body failed
  }
}
