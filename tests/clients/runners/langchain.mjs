// LangChain (JS): DallEAPIWrapper, which calls n times for n images.
import { DallEAPIWrapper } from "@langchain/openai";
import { NotOffered, run, wanted } from "./calls.mjs";

await run(async (baseUrl, flavour, call) => {
  if (call.stream) throw new NotOffered();
  const options = wanted(call, "model", "n", "size");
  if (call.response_format !== null) options.dallEResponseFormat = call.response_format;
  const tool = new DallEAPIWrapper({ baseUrl, apiKey: call.key, ...options });
  const got = await tool.invoke(call.prompt);
  if (typeof got === "string") return { images: [got] };
  return { images: got.map((item) => item.image_url.url ?? item.image_url) };
});
