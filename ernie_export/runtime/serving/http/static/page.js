// The page: a conversation with the server's model. State is here; the document only shows it.

import { answer, ApiError, healthy, model } from "./api.js";
import { beginComposer, giveBack, take } from "./composer.js";
import { beginSettings, requestFields, systemMessages } from "./settings.js";
import { keep, kept } from "./store.js";
import { Turn } from "./turns.js";

const $ = (id) => document.getElementById(id);
const KEY = "api-key"; // in the tab's storage

const ACTS = { user: [["Edit", edit]], assistant: [["Regenerate", regenerate]] };

let turns = [];
let away = []; // turns of the conversation before, until the next question
let running = null; // AbortController of the answer that comes
let pinned = true; // whether the end of the conversation is to stay in view

function begin() {
  $("composer").addEventListener("submit", submit);
  $("new").addEventListener("click", anew);
  $("key").addEventListener("submit", useKey);
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  $("undo").addEventListener("click", undo);
  $("export").addEventListener("click", save);
  beginComposer(() => running || $("composer").requestSubmit(), say);
  beginSettings();
  keepEndInView();
  connect();
  kept().then(restore);
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

/* What is asked, and what is answered. */

function submit(event) {
  event.preventDefault();
  if (running) return running.abort();
  const written = take();
  if (written) ask(written);
  else $("question").focus();
}

function ask({ text, media }) {
  forgetAway();
  addTurn(new Turn("user", text, media, ACTS.user));
  reply();
}

/** Let the model answer the last question. */
async function reply() {
  const question = turns.at(-1);
  const turn = addTurn(new Turn("assistant", "", [], ACTS.assistant));
  const controller = (running = new AbortController());
  busy(true);
  const clock = { asked: performance.now(), first: 0 };
  let failure = null;
  try {
    const messages = [...systemMessages(), ...(await messagesOf(turns.slice(0, -1)))];
    const pieces = answer(messages, requestFields(), sessionStorage.getItem(KEY), controller.signal);
    for await (const { reason, usage, ...piece } of pieces) {
      if (piece.text || piece.thoughts || piece.call) {
        clock.first ||= performance.now();
        turn.append(piece);
      }
      if (reason === "length") turn.cut = true;
      if (usage) measured(turn, usage, clock);
    }
    say("", "The answer is complete.");
    health(true);
  } catch (error) {
    failure = error;
  }
  // A new conversation may have begun meanwhile: then nothing here concerns it.
  if (turns.includes(turn)) settle(question, turn, failure);
}

/** The answer has come, or ended early: what was not answered at all goes back to where it was written. */
function settle(question, turn, failure) {
  running = null;
  const nothing = failure && !turn.text && !turn.thoughts;
  if (nothing) takeBack(question);
  else turn.settle();
  if (failure && !nothing) turn.showFigures(["Stopped"]);
  busy(false);
  store();
  if (!failure) return;
  if (failure.name === "AbortError") say("", "The answer was stopped.");
  else complain(failure);
}

/** Write a question again where it was written, and drop it with all that follows. */
function takeBack(question) {
  drop(turns.indexOf(question));
  giveBack(question);
}

function edit(question) {
  takeBack(question);
  busy(false);
  store();
  $("question").focus();
}

function regenerate(turn) {
  drop(turns.indexOf(turn));
  reply();
}

/** Remove the turns from a place on. */
function drop(place) {
  for (const { node } of turns.splice(place)) node.remove();
  $("welcome").hidden = turns.length > 0;
}

async function messagesOf(some) {
  return Promise.all(some.map((turn) => turn.message()));
}

function measured(turn, usage, clock) {
  const { prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details } = usage;
  const now = performance.now();
  const seconds = (now - clock.first) / 1000;
  const parts = [`${prompt} prompt tokens`];
  if (details?.cached_tokens) parts[0] += ` (${details.cached_tokens} reused)`;
  if (clock.first) parts.push(`first text after ${((clock.first - clock.asked) / 1000).toFixed(2)} s`);
  parts.push(`${tokens} answer ${tokens === 1 ? "token" : "tokens"} in ${((now - clock.asked) / 1000).toFixed(2)} s`);
  if (tokens >= 10 && seconds > 0.1) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`); // else it is noise
  if (turn.cut) parts.push("cut at the longest answer");
  turn.showFigures(parts);
  const numbers = { image: 0, video: 0 };
  const media = turns.flatMap((other) => other.media);
  (details?.media ?? []).forEach((facts, place) => media[place]?.measured(++numbers[facts.type], facts));
}

/* What is shown. */

function addTurn(turn) {
  turns.push(turn);
  $("welcome").hidden = true;
  $("log").append(turn.node);
  pinned = true;
  return turn;
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

function busy(is) {
  const [send, label] = [$("send"), is ? "Stop" : "Send"];
  send.toggleAttribute("data-busy", is);
  send.setAttribute("aria-label", label);
  send.title = label;
  for (const turn of turns) turn.offerActs(!is);
  $("export").disabled = is || !turns.length;
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

/* The conversation as a whole. */

function anew() {
  running?.abort();
  running = null;
  forgetAway();
  away = turns.slice(0, turns.findLastIndex((turn) => turn.node.getAttribute("aria-busy") === "false") + 1);
  drop(0);
  busy(false);
  store();
  $("cleared").hidden = !away.length;
  say("");
  $("question").focus();
}

function undo() {
  const back = away;
  away = [];
  $("cleared").hidden = true;
  back.forEach(addTurn);
  busy(false);
  store();
  $("question").focus();
}

function forgetAway() {
  for (const medium of away.flatMap((turn) => turn.media)) medium.forget();
  away = [];
  $("cleared").hidden = true;
}

function store() {
  keep(turns.map((turn) => turn.stored()));
}

function restore(stored) {
  if (turns.length) return; // a question was asked before they were read
  for (const turn of stored) addTurn(Turn.restored(turn, ACTS[turn.role]));
  busy(false);
}

/** Save the conversation as a file that `ernie-run --messages` takes. */
async function save() {
  const messages = [...systemMessages(), ...(await messagesOf(turns))];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(messages, null, 1)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

begin();
