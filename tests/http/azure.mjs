// Asks as Azure's class of the npm package `openai` does, and prints a line of JSON for each answer.
// Arguments: the endpoint, the key, a model, one that is not deployed. Run in the folder where the
// package is installed.
import { createRequire } from "node:module";

const { AzureOpenAI } = createRequire(`${process.cwd()}/`)("openai");
const [endpoint, apiKey, model, missing] = process.argv.slice(2);
const client = new AzureOpenAI({ endpoint, apiKey, apiVersion: "2025-04-01-preview", maxRetries: 0 });
const ask = (prompt, more = {}) => client.images.generate({ model, prompt, ...more });

async function say(answer) {
  try {
    console.log(JSON.stringify(await answer()));
  } catch (error) {
    const { status, code } = error;
    console.log(JSON.stringify({ error: error.constructor.name, status, code }));
  }
}

await say(async () => ({ length: (await ask("an otter of npm")).data[0].b64_json.length }));
await say(async () => ({ url: (await ask("an otter of npm", { model: "dall-e-3" })).data[0].url }));
await say(async () => {
  const types = [];
  for await (const event of await ask("a stream of npm", { stream: true, partial_images: 1 })) {
    types.push(event.type);
  }
  return { types };
});
await say(() => ask("[[sim:moderation]] an otter of npm"));
await say(() => ask("an otter of npm", { model: missing }));
