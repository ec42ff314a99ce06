// Vercel's AI SDK, by its provider for OpenAI-compatible servers.
import { deepEqual, equal, ok } from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { check, called, IMAGE, MINI, SCRIPTED } from "./probe.mjs";

const options = { name: "ernie", includeUsage: true, supportsStructuredOutputs: true };
const model = createOpenAICompatible({ ...options, baseURL: `${MINI}/v1` })("mini");
const scripted = createOpenAICompatible({ ...options, baseURL: `${SCRIPTED}/v1` })("mini");
const messages = [
  {
    role: "user",
    content: [
      { type: "image", image: IMAGE },
      { type: "text", text: "What colour is the triangle?" },
    ],
  },
];

await check("images", async () => {
  equal((await generateText({ model, messages })).text, "red");
});
await check("streaming", async () => {
  const stream = streamText({ model, messages });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  equal(text, "red");
  ok((await stream.usage).inputTokens > 0);
});
await check("structured output", async () => {
  const schema = z.object({ colour: z.enum(["red", "green", "blue"]), large: z.boolean() });
  const { object } = await generateObject({ model, schema, prompt: "Describe a triangle." });
  schema.parse(object);
});
for (const [what, run] of [["tools", generateText], ["streamed tools", streamText]]) {
  await check(what, async () => {
    const cities = [];
    const answer = await run({
      model: scripted,
      prompt: `say:${called("weather", '{"city": "Lima"}')}`,
      maxOutputTokens: 512,
      stopWhen: stepCountIs(3),
      tools: {
        weather: tool({
          description: "The weather of a city.",
          inputSchema: z.object({ city: z.string() }),
          execute: async ({ city }) => {
            cities.push(city);
            return "say:It is dry.";
          },
        }),
      },
    });
    ok((await answer.text).startsWith("It is dry."));
    deepEqual(cities, ["Lima"]);
  });
}
await check("reasoning", async () => {
  const answer = await generateText({
    model: scripted,
    prompt: "say:It has corners.</think>red",
    providerOptions: { ernie: { reasoningEffort: "low" } },
  });
  equal(answer.reasoningText, "It has corners.");
  equal(answer.text, "red");
});
