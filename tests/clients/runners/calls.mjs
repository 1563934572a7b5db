// What the runners of npm packages share, see calls.py. A runner is copied to where its package is.
export class NotOffered extends Error {}

const [baseURL, calls, flavour] = process.argv.slice(2);

export async function run(make) {
  for (const call of JSON.parse(calls)) {
    let got;
    try {
      got = await make(baseURL, flavour, call);
    } catch (error) {
      got = error instanceof NotOffered ? { not_offered: true } : { error: describe(error) };
    }
    process.stdout.write(`${JSON.stringify({ call: call.name, ...got })}\n`);
  }
}

// The error as a program that catches it sees it.
function describe(error) {
  const last = error.lastError ?? error; // the AI SDK's RetryError
  const body = last.response?.data?.error ?? last.data?.error ?? {}; // axios; the AI SDK
  return {
    class: last.constructor.name,
    status: last.status ?? last.statusCode ?? last.response?.status ?? null,
    code: body.code ?? (typeof last.code === "string" ? last.code : null),
    message: String(body.message ?? last.message).slice(0, 1000),
  };
}

// The parameters of a call that are set, of those that the API has by these names.
export function wanted(call, ...names) {
  const pairs = names.map((name) => [name, call[name]]);
  return Object.fromEntries(pairs.filter(([, value]) => value !== null));
}

export function asReport(response) {
  return {
    images: response.data.map((item) => item.url ?? item.b64_json),
    usage: response.usage?.total_tokens ?? null,
  };
}
