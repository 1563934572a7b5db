// Reads one stream with the npm package `openai`, and prints each event as a line of JSON.
// Arguments: the base URL, the key, the prompt. Run in the folder where the package is installed.
import { createRequire } from "node:module";

const { OpenAI } = createRequire(`${process.cwd()}/`)("openai");
const [baseURL, apiKey, prompt] = process.argv.slice(2);
const say = (said) => console.log(JSON.stringify(said));
try {
  const client = new OpenAI({ baseURL, apiKey });
  const stream = await client.images.generate({
    model: "gpt-image-2",
    prompt,
    stream: true,
    partial_images: 3,
  });
  for await (const event of stream) {
    say({ ...event, b64_json: event.b64_json.length });
  }
} catch (error) {
  say({ error: error.constructor.name, code: error.code, message: error.message });
}
