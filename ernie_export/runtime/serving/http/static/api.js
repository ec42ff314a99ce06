// What the page asks of the server: OpenAI's interface, and the answers of it that went wrong in one line.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status; // 0: no answer at all
  }
}

/** Whether the server says that it works. */
export async function healthy() {
  try {
    return (await fetch("health")).ok;
  } catch {
    return false;
  }
}

/** The one model's card: {id, max_model_len}. Throws ApiError. */
export async function model(key) {
  const response = await request("v1/models", { headers: authorization(key) });
  return (await response.json()).data[0];
}

/**
 * Ask, and yield {text}, {thoughts} and {call} as they come, {reason} at the end and {usage} last. `fields`: further ones
 * of the request. Throws ApiError; ends early with what `signal` aborts it.
 */
export async function* answer(messages, fields, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify({ messages, ...fields, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let whole = false;
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") {
      whole = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk.error.message);
    if (chunk.usage) yield { usage: chunk.usage };
    for (const choice of chunk.choices) {
      const { content, reasoning_content: thoughts, tool_calls: calls } = choice.delta;
      if (thoughts) yield { thoughts };
      if (content) yield { text: content };
      for (const call of calls ?? []) yield { call };
      if (choice.finish_reason) yield { reason: choice.finish_reason };
    }
  }
  if (!whole) throw new ApiError(0, "The connection broke before the answer was whole.");
}

/** The data of each server-sent event. */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
        if (held.startsWith("data: ")) yield held.slice(6, end);
        held = held.slice(end + 2);
      }
    }
  } catch (error) {
    throw signal.aborted ? error : new ApiError(0, "The connection broke before the answer was whole.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "The server can't be reached, or took the files for too large.");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  const message = said?.error?.message ?? `the server answered ${response.status} ${response.statusText}`;
  throw new ApiError(response.status, `${message}${wait ? `; try again in ${wait} s` : ""}`);
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}
