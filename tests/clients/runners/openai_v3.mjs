// openai (npm) before 4: OpenAIApi on axios, no streams of images.
import openai from "openai";
import { NotOffered, asReport, run, wanted } from "./calls.mjs";

await run(async (basePath, flavour, call) => {
  if (call.stream) throw new NotOffered();
  const client = new openai.OpenAIApi(new openai.Configuration({ basePath, apiKey: call.key }));
  const body = { prompt: call.prompt, ...wanted(call, "model", "n", "size", "response_format") };
  return asReport((await client.createImage(body)).data);
});
