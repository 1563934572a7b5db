// openai (npm) 4 and later: OpenAI, AzureOpenAI.
import * as openai from "openai";
import { NotOffered, asReport, run, wanted } from "./calls.mjs";

await run(async (baseURL, flavour, call) => {
  const client =
    flavour === "AzureOpenAI"
      ? new openai.AzureOpenAI({
          endpoint: baseURL,
          apiKey: call.key,
          apiVersion: "2025-04-01-preview",
        })
      : new openai.OpenAI({ baseURL, apiKey: call.key });
  const body = { prompt: call.prompt, ...wanted(call, "model", "n", "size", "response_format") };
  if (!call.stream) return asReport(await client.images.generate(body));
  const stream = await client.images.generate({ ...body, stream: true, partial_images: 2 });
  if (typeof stream[Symbol.asyncIterator] !== "function") throw new NotOffered();
  const report = { images: [], partials: 0, usage: 0 };
  for await (const event of stream) {
    if (event.type === "image_generation.completed") {
      report.images.push(event.b64_json);
      report.usage += event.usage.total_tokens;
    } else {
      report.partials += 1;
    }
  }
  return report;
});
