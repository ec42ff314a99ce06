// Where a question is written: its text, and the pictures and clips that are attached to it.

import { Medium } from "./media.js";

const $ = (id) => document.getElementById(id);

let attached = []; // Medium, for the next question
let report = null; // shows an error, or none

/** `submit`: called for Enter. `say`: called with a line that went wrong, or "". */
export function beginComposer(submit, say) {
  report = say;
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  $("question").addEventListener("input", grow);
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    attach($("files").files);
    $("files").value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    attach(event.clipboardData.files);
  });
  for (const button of document.querySelectorAll("#samples button")) button.addEventListener("click", trySample);
  acceptDrops();
}

/** What is written, which is taken away: {text, media}; null if there is no text. */
export function take() {
  const text = $("question").value.trim();
  if (!text) return null;
  const media = attached;
  attached = [];
  write("");
  return { text, media };
}

/** Put a question back, before what is written. */
export function giveBack({ text, media }) {
  attached = [...media, ...attached];
  write([text, $("question").value].filter(Boolean).join("\n"));
}

function attach(files) {
  report("");
  for (const file of files) {
    try {
      attached.push(new Medium(file));
    } catch (error) {
      report(error.message);
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

function grow() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

/** Attach one of the server's own samples, and write a question about it. */
async function trySample({ currentTarget: { dataset } }) {
  const response = await fetch(`static/samples/${dataset.file}`);
  const blob = await response.blob();
  write(dataset.question);
  attach([new File([blob], dataset.file, { type: blob.type })]);
}

function write(text) {
  $("question").value = text;
  showAttached();
  grow();
}
