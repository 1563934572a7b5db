// Vercel's AI SDK: generateImage with @ai-sdk/openai or @ai-sdk/openai-compatible.
import * as ai from "ai";
import { NotOffered, run, wanted } from "./calls.mjs";

const generateImage = ai.generateImage ?? ai.experimental_generateImage;

async function imageModel(baseURL, flavour, call) {
  if (flavour === "openai") {
    const { createOpenAI } = await import("@ai-sdk/openai");
    return createOpenAI({ baseURL, apiKey: call.key }).image(call.model);
  }
  const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
  const provider = createOpenAICompatible({ name: "gateway", baseURL, apiKey: call.key });
  return provider.imageModel(call.model);
}

await run(async (baseURL, flavour, call) => {
  if (call.stream || call.model === null || call.response_format === "url") throw new NotOffered();
  const provider = flavour === "openai" ? "openai" : "gateway";
  const asked =
    call.response_format === null
      ? {}
      : { providerOptions: { [provider]: { response_format: call.response_format } } };
  const { images, usage } = await generateImage({
    model: await imageModel(baseURL, flavour, call),
    prompt: call.prompt,
    ...wanted(call, "n", "size"),
    ...asked,
  });
  return { images: images.map((image) => image.base64), usage: usage?.totalTokens ?? null };
});
