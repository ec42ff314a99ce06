// The openai package of npm: chat, images, streams, structured output, tools, thoughts and its other interfaces.
import { deepEqual, equal, ok } from "node:assert/strict";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { check, called, IMAGE_URI, MINI, SCRIPTED } from "./probe.mjs";

const client = new OpenAI({ baseURL: `${MINI}/v1`, apiKey: "none", maxRetries: 0 });
const scripted = new OpenAI({ baseURL: `${SCRIPTED}/v1`, apiKey: "none", maxRetries: 0 });
const model = "mini";
const asked = [
  {
    role: "user",
    content: [
      { type: "image_url", image_url: { url: IMAGE_URI } },
      { type: "text", text: "What colour is the triangle?" },
    ],
  },
];
const Shape = z.object({ colour: z.enum(["red", "green", "blue"]), large: z.boolean() });
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather of a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

await check("models", async () => {
  equal((await client.models.list()).data[0].id, model);
});
await check("images", async () => {
  const answer = await client.chat.completions.create({ model, messages: asked });
  equal(answer.choices[0].message.content, "red");
});
await check("streaming", async () => {
  const stream = client.chat.completions.stream({ model, messages: asked, stream_options: { include_usage: true } });
  equal(await stream.finalContent(), "red");
  ok((await stream.totalUsage()).total_tokens > 0);
});
await check("structured output", async () => {
  const answer = await client.chat.completions.parse({
    model,
    messages: [{ role: "user", content: "Describe a triangle." }],
    response_format: zodResponseFormat(Shape, "shape"),
  });
  Shape.parse(answer.choices[0].message.parsed);
});
await check("tools", async () => {
  const cities = [];
  const runner = scripted.chat.completions.runTools({
    model,
    messages: [{ role: "user", content: `say:${called("weather", '{"city": "Lima"}')}` }],
    max_completion_tokens: 512,
    tools: [
      {
        type: "function",
        function: {
          ...weather.function,
          parse: JSON.parse,
          function: ({ city }) => {
            cities.push(city);
            return "say:It is dry.";
          },
        },
      },
    ],
  });
  ok((await runner.finalContent()).startsWith("It is dry."));
  deepEqual(cities, ["Lima"]);
});
await check("required tools", async () => {
  const answer = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: "Weather?" }],
    tools: [
      {
        type: "function",
        function: { name: "sky", parameters: { type: "object", properties: { clear: { type: "boolean" } }, required: ["clear"] } },
      },
    ],
    tool_choice: "required",
    parallel_tool_calls: false,
  });
  equal(typeof JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments).clear, "boolean");
});
await check("reasoning", async () => {
  const answer = await scripted.chat.completions.create({
    model,
    messages: [{ role: "user", content: "say:It has corners.</think>red" }],
    reasoning_effort: "low",
  });
  equal(answer.choices[0].message.reasoning_content, "It has corners.");
  equal(answer.choices[0].message.content, "red");
});
await check("responses", async () => {
  const content = [
    { type: "input_image", image_url: IMAGE_URI, detail: "auto" },
    { type: "input_text", text: "What colour is the triangle?" },
  ];
  const answer = await client.responses.create({ model, input: [{ role: "user", content }] });
  equal(answer.output_text, "red");
  const stream = client.responses.stream({ model, input: [{ role: "user", content }] });
  equal((await stream.finalResponse()).output_text, "red");
  const parsed = await client.responses.parse({
    model,
    input: "Describe a triangle.",
    text: { format: zodTextFormat(Shape, "shape") },
  });
  Shape.parse(parsed.output_parsed);
});
await check("completions", async () => {
  const answer = await client.completions.create({ model, prompt: "What is red?", max_tokens: 4 });
  equal(typeof answer.choices[0].text, "string");
});
