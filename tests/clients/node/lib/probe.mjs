// What a client's script says of each thing that it tries: probe.py for Node.
import { appendFileSync, readFileSync } from "node:fs";

const LONGEST_ERROR = 300;

export const MINI = process.env.ERNIE_CLIENTS_MINI;
export const SCRIPTED = process.env.ERNIE_CLIENTS_SCRIPTED;
export const IMAGE = readFileSync("examples/media/shapes.png");
export const IMAGE_URI = `data:image/png;base64,${IMAGE.toString("base64")}`;

export const called = (name, text) => `<tool_call>\n{"name": "${name}", "arguments": ${text}}\n</tool_call>`;

export async function check(what, work) {
  try {
    await work();
    say(what, "yes", "");
  } catch (error) {
    console.error(error);
    say(what, "failed", `${error?.name}: ${error?.message}`.replace(/\s+/g, " ").slice(0, LONGEST_ERROR));
  }
}

function say(what, state, detail) {
  appendFileSync(process.env.ERNIE_CLIENTS_RESULTS, JSON.stringify({ what, state, detail }) + "\n");
}
