// The settings sheet: what goes with every question. Kept in this browser, all empty at first.

const $ = (id) => document.getElementById(id);
const STORED = "settings";
const FIELDS = ["system", "temperature", "max_tokens", "thinking"];

export function beginSettings() {
  const stored = JSON.parse(localStorage.getItem(STORED) ?? "{}");
  for (const name of FIELDS) $(name).value = stored[name] ?? "";
  $("settings").addEventListener("click", () => $("sheet").showModal());
  $("sheet").addEventListener("close", keep);
  $("reset").addEventListener("click", () => FIELDS.forEach((name) => ($(name).value = "")));
  mark();
}

function keep() {
  localStorage.setItem(STORED, JSON.stringify(Object.fromEntries(FIELDS.map((name) => [name, $(name).value]))));
  mark();
}

/** Show on the button whether anything is set. */
function mark() {
  $("settings").toggleAttribute("data-set", FIELDS.some((name) => $(name).value));
}

/** The system prompt as a message, if there is one. */
export function systemMessages() {
  const text = $("system").value.trim();
  return text ? [{ role: "system", content: text }] : [];
}

/** The request's fields that are set. */
export function requestFields() {
  const fields = {};
  if ($("temperature").value) fields.temperature = Number($("temperature").value);
  if ($("max_tokens").value) fields.max_tokens = Number($("max_tokens").value);
  if ($("thinking").value) fields.chat_template_kwargs = { enable_thinking: $("thinking").value === "on" };
  return fields;
}
