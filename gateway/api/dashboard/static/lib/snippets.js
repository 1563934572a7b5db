/**
 * An image request as programs that a person can paste and run.
 *
 * A program makes the same image as the playground: same model, prompt, parameters and slots. How the
 * image arrives (`stream`, `partial_images`, `response_format`) is left out: the programs ask for
 * base64 in one answer.
 */

/** What programs have in place of a key. */
const KEY_PLACEHOLDER = 'YOUR_GATEWAY_KEY';

export const LANGUAGES = [
  {id: 'curl', label: 'curl', write: curl},
  {id: 'python', label: 'Python', write: python},
  {id: 'javascript', label: 'JavaScript', write: javascript},
];

/** Whether a model answers with links if the request has no `response_format`. */
export const needsBase64 = (model) => model.parameters.some(({name}) => name === 'response_format');

const DELIVERY = new Set(['stream', 'partial_images', 'response_format']);

/**
 * @param {{publicUrl: string, body: object, variation?: number, needsBase64?: boolean}} request
 *   `publicUrl` ends with `/v1`; `needsBase64`: the model answers with links unless told otherwise.
 */
function snippetBody({body, needsBase64}) {
  const kept = Object.entries(body).filter(([name]) => !DELIVERY.has(name));
  return Object.fromEntries(needsBase64 ? [...kept, ['response_format', 'b64_json']] : kept);
}

function gatewayHeaders({variation}) {
  return variation ? {'X-Gateway-Variation': String(variation)} : {};
}

// ── curl ──────────────────────────────────────────────────────────────────────────────────────

function curl(request) {
  const headers = {Authorization: 'Bearer $GATEWAY_KEY', 'Content-Type': 'application/json'};
  const own = Object.entries(gatewayHeaders(request));
  const options = [
    `curl -sS ${shellQuoted(`${request.publicUrl}/images/generations`)}`,
    // In double quotes, so that the shell puts the key in.
    ...Object.entries(headers).map(([name, value]) => `-H "${name}: ${value}"`),
    ...own.map(([name, value]) => `-H ${shellQuoted(`${name}: ${value}`)}`),
    `-d ${shellQuoted(JSON.stringify(snippetBody(request), null, 2))}`,
  ];
  return `export GATEWAY_KEY=${shellQuoted(KEY_PLACEHOLDER)}
${options.join(' \\\n  ')} \\
| python3 -c '
import base64, json, sys
answer = json.load(sys.stdin)
if "error" in answer:
    sys.exit(answer["error"]["message"])
for i, image in enumerate(answer["data"]):
    open(f"image-{i}.${extension(request)}", "wb").write(base64.b64decode(image["b64_json"]))
'
`;
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

// ── Python ────────────────────────────────────────────────────────────────────────────────────

/** The arguments that `images.generate` of the package `openai` has. Others go into `extra_body`. */
const PACKAGE_ARGUMENTS = new Set(
  (
    'background model moderation n output_compression output_format prompt quality response_format ' +
    'size style user'
  ).split(' '),
);

function python(request) {
  const entries = Object.entries(snippetBody(request));
  const named = entries.filter(([name]) => PACKAGE_ARGUMENTS.has(name));
  const more = {
    extra_body: Object.fromEntries(entries.filter(([name]) => !PACKAGE_ARGUMENTS.has(name))),
    extra_headers: gatewayHeaders(request),
  };
  const filled = Object.entries(more).filter(([, value]) => Object.keys(value).length);
  const lines = [...named, ...filled].map(([name, v]) => `    ${name}=${pythonLiteral(v)},\n`);
  return `import base64

from openai import OpenAI

client = OpenAI(
    base_url=${pythonLiteral(request.publicUrl)},
    api_key=${pythonLiteral(KEY_PLACEHOLDER)},
)
result = client.images.generate(
${lines.join('')})
for i, image in enumerate(result.data):
    with open(f"image-{i}.${extension(request)}", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
`;
}

function pythonLiteral(value) {
  if (value === true) return 'True';
  if (value === false) return 'False';
  if (typeof value === 'string') return pythonString(value);
  if (typeof value === 'number') return String(value);
  if (value === null) return 'None';
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(', ')}]`;
  const items = Object.entries(value).map(([k, v]) => `${pythonString(k)}: ${pythonLiteral(v)}`);
  return `{${items.join(', ')}}`;
}

/** JSON's escapes mean the same in Python but for surrogate pairs, which it never writes. */
function pythonString(text) {
  return JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/g, asEscape);
}

// ── JavaScript ────────────────────────────────────────────────────────────────────────────────

function javascript(request) {
  const headers = {
    Authorization: `Bearer ${KEY_PLACEHOLDER}`,
    'Content-Type': 'application/json',
    ...gatewayHeaders(request),
  };
  return `// Node 18 or newer; save it as image.mjs.
import { writeFile } from "node:fs/promises";

const response = await fetch(${scriptLiteral(`${request.publicUrl}/images/generations`)}, {
  method: "POST",
  headers: ${indented(scriptLiteral(headers))},
  body: JSON.stringify(${indented(scriptLiteral(snippetBody(request)))}),
});
const answer = await response.json();
if (!response.ok) throw new Error(answer.error.message);
for (const [i, image] of answer.data.entries()) {
  await writeFile(\`image-\${i}.${extension(request)}\`, Buffer.from(image.b64_json, "base64"));
}
`;
}

function scriptLiteral(value) {
  return JSON.stringify(value, null, 2).replace(/[\u007f-\u009f\u2028\u2029]/g, asEscape);
}

const indented = (text) => text.replaceAll('\n', '\n  ');

// ── shared ────────────────────────────────────────────────────────────────────────────────────

const asEscape = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;

function extension({body}) {
  return body.output_format ?? 'png';
}
