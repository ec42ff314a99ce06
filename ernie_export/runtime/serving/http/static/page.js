// The page: a conversation with the server's model. State is here; the document only shows it.

import { answer, ApiError, healthy, model } from "./api.js";
import { Medium } from "./media.js";

const $ = (id) => document.getElementById(id);
const KEY = "api-key"; // in the tab's storage

let turns = []; // {role, text, media, node}
let attached = []; // Medium, for the next question
let running = null; // AbortController of the answer that comes
let pinned = true; // whether the end of the conversation is to stay in view

function begin() {
  $("composer").addEventListener("submit", submit);
  $("question").addEventListener("keydown", typed);
  $("question").addEventListener("input", grow);
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    attach($("files").files);
    $("files").value = ""; // the same file may be chosen again
  });
  $("new").addEventListener("click", anew);
  $("key").addEventListener("submit", useKey);
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    attach(event.clipboardData.files);
  });
  acceptDrops();
  keepEndInView();
  connect();
}

/** Show which model there is, and whether it works. */
async function connect() {
  health(await healthy());
  try {
    const { id, max_model_len } = await model(sessionStorage.getItem(KEY));
    $("model").textContent = document.title = id;
    $("model").title = `${max_model_len} tokens of context`;
    $("key").hidden = true;
    say("");
  } catch (error) {
    complain(error);
    $("error").hidden ||= error.status === 401 && !sessionStorage.getItem(KEY); // being asked for one is no failure
  }
}

function health(works) {
  $("health").textContent = works ? "ready" : "away";
  $("health").dataset.state = works ? "ready" : "away";
}

/* What is asked. */

function attach(files) {
  say("");
  for (const file of files) {
    try {
      attached.push(new Medium(file));
    } catch (error) {
      complain(error);
    }
  }
  showAttached();
  $("question").focus();
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((medium) => medium.element(() => detach(medium))));
}

function detach(medium) {
  attached = attached.filter((other) => other !== medium);
  medium.forget();
  showAttached();
  $("question").focus();
}

function acceptDrops() {
  const root = document.documentElement;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      root.dataset.dragging = "";
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget || delete root.dataset.dragging);
  document.addEventListener("drop", (event) => {
    delete root.dataset.dragging;
    if (!hasFiles(event)) return;
    event.preventDefault();
    attach(event.dataTransfer.files);
  });
}

function typed(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) $("composer").requestSubmit();
}

function grow() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

function submit(event) {
  event.preventDefault();
  const text = $("question").value.trim();
  if (running) running.abort();
  else if (text) ask(text);
  else $("question").focus();
}

/* What is answered. */

async function ask(text) {
  const question = addTurn("user", text, attached);
  const reply = addTurn("assistant", "", []);
  [attached, running] = [[], new AbortController()];
  write("");
  busy(true);
  const clock = { asked: performance.now(), first: 0 };
  let failure = null;
  try {
    const messages = await Promise.all(turns.filter((turn) => turn !== reply).map(message));
    const { signal } = running;
    for await (const { text: piece, reason, usage } of answer(messages, sessionStorage.getItem(KEY), signal)) {
      if (piece) {
        clock.first ||= performance.now();
        append(reply, piece);
      }
      if (reason === "length") reply.cut = true;
      if (usage) measured(reply, usage, clock);
    }
    say("", "The answer is complete.");
    health(true);
  } catch (error) {
    failure = error;
  }
  // A new conversation may have begun meanwhile: then nothing here concerns it.
  if (turns.includes(reply)) settle(question, reply, failure);
}

/** The answer has come, or ended early: what was not answered at all goes back to where it was written. */
function settle(question, reply, failure) {
  running = null;
  busy(false);
  reply.node.setAttribute("aria-busy", "false");
  if (!failure) return;
  const stopped = failure.name === "AbortError";
  if (reply.text) {
    showFigures(reply, ["Stopped"]);
  } else {
    withdraw(question, reply);
  }
  if (stopped) say("", "The answer was stopped.");
  else complain(failure);
}

function withdraw(question, reply) {
  turns = turns.filter((turn) => turn !== question && turn !== reply);
  question.node.remove();
  reply.node.remove();
  $("welcome").hidden = turns.length > 0;
  attached = [...question.media, ...attached];
  showAttached();
  write([question.text, $("question").value].filter(Boolean).join("\n"));
}

async function message({ role, text, media }) {
  const parts = await Promise.all(media.map((medium) => medium.part()));
  return { role, content: role === "assistant" ? text : [...parts, { type: "text", text }] };
}

function measured(reply, usage, clock) {
  const { prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details } = usage;
  const now = performance.now();
  const seconds = (now - clock.first) / 1000;
  const parts = [`${prompt} prompt tokens`];
  if (details?.cached_tokens) parts[0] += ` (${details.cached_tokens} reused)`;
  if (clock.first) parts.push(`first text after ${((clock.first - clock.asked) / 1000).toFixed(2)} s`);
  parts.push(`${tokens} answer ${tokens === 1 ? "token" : "tokens"} in ${((now - clock.asked) / 1000).toFixed(2)} s`);
  if (tokens >= 10 && seconds > 0.1) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`); // else it is noise
  if (reply.cut) parts.push("cut at the longest answer");
  showFigures(reply, parts);
  const numbers = { image: 0, video: 0 };
  const media = turns.flatMap((turn) => turn.media);
  (details?.media ?? []).forEach((facts, place) => media[place]?.measured(++numbers[facts.type], facts));
}

/* What is shown. */

function addTurn(role, text, media) {
  const template = $(role === "user" ? "question-turn" : "answer-turn");
  const node = template.content.cloneNode(true).firstElementChild;
  node.querySelector(".text").textContent = text;
  node.querySelector(".media")?.append(...media.map((medium) => medium.element(null)));
  const turn = { role, text, media, node };
  turns.push(turn);
  $("welcome").hidden = true;
  $("log").append(node);
  pinned = true;
  return turn;
}

function append(turn, piece) {
  turn.text += piece;
  turn.node.querySelector(".text").textContent = turn.text;
}

function showFigures(turn, parts) {
  const spans = parts.map((part) => Object.assign(document.createElement("span"), { textContent: part }));
  turn.node.querySelector(".figures").replaceChildren(...spans);
}

/** As text and pictures come, and as the box below grows; unless the reader has gone elsewhere. */
function keepEndInView() {
  const scroller = $("scroller");
  const observer = new ResizeObserver(() => pinned && scroller.scrollTo(0, scroller.scrollHeight));
  observer.observe($("log"));
  observer.observe(scroller);
  let last = 0;
  scroller.addEventListener("scroll", () => {
    // More may have come since: only who scrolls up has gone elsewhere.
    if (scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40) pinned = true;
    else if (scroller.scrollTop < last) pinned = false;
    last = scroller.scrollTop;
  });
}

function write(text) {
  $("question").value = text;
  $("attached").replaceChildren(...attached.map((medium) => medium.element(() => detach(medium))));
  grow();
}

function busy(is) {
  const [send, label] = [$("send"), is ? "Stop" : "Send"];
  send.toggleAttribute("data-busy", is);
  send.setAttribute("aria-label", label);
  send.title = label;
  if (is) say("", "The answer is coming.");
}

/** Show an error, or none; `progress` is for those who listen. */
function say(error, progress = "") {
  $("error").textContent = error;
  $("error").hidden = !error;
  $("progress").textContent = progress;
}

function complain(error) {
  say(error.message);
  if (!(error instanceof ApiError)) return;
  if (error.status === 401) {
    $("key").hidden = false;
    $("secret").focus();
  }
  if (error.status === 0) healthy().then(health);
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("secret").value.trim());
  $("secret").value = "";
  connect().then(() => $("key").hidden && $("question").focus());
}

function anew() {
  running?.abort();
  running = null;
  busy(false);
  for (const medium of turns.flatMap((turn) => turn.media)) medium.forget();
  turns = [];
  $("log").replaceChildren();
  $("welcome").hidden = false;
  say("");
  $("question").focus();
}

begin();
