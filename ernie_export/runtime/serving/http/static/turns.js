// The turns of a conversation, and how each is shown.

import { copyButton, render } from "./markdown.js";
import { Medium } from "./media.js";

export class Turn {
  /** `media`: Medium of a question. `acts`: [label, function of the turn] of what can be done with it. */
  constructor(role, text, media, acts) {
    Object.assign(this, { role, text, media, thoughts: "", calls: [], cut: false });
    const template = document.getElementById(role === "user" ? "question-turn" : "answer-turn");
    this.node = template.content.cloneNode(true).firstElementChild;
    this.find(".media")?.append(...media.map((medium) => medium.element(null)));
    if (role === "user") this.find(".text").textContent = text;
    this.acts = acts;
  }

  find(selector) {
    return this.node.querySelector(selector);
  }

  /** Take a piece of an answer: {text}, {thoughts} or {call}. It is shown at the next frame. */
  append({ text = "", thoughts = "", call = null }) {
    this.text += text;
    this.thoughts += thoughts;
    if (call) {
      const known = (this.calls[call.index] ??= { name: "", arguments: "" });
      known.name += call.function?.name ?? "";
      known.arguments += call.function?.arguments ?? "";
    }
    this.frame ??= requestAnimationFrame(() => this.show());
  }

  show() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.find(".text").replaceChildren(render(this.text));
    this.find(".thoughts").hidden = !this.thoughts;
    this.find(".thought").textContent = this.thoughts;
    this.find(".calls").hidden = !this.calls.length;
    this.find(".calls").replaceChildren(...this.calls.map(({ name, arguments: given }) => callItem(name, given)));
  }

  /** The answer is whole, or was stopped: show it, and what can be done with it. */
  settle() {
    this.show();
    this.node.setAttribute("aria-busy", "false");
    if (this.text || this.thoughts || this.calls.length) return;
    const empty = Object.assign(document.createElement("p"), { className: "empty", textContent: "The answer is empty." });
    this.find(".text").replaceChildren(empty);
  }

  showFigures(parts) {
    const spans = parts.map((part) => Object.assign(document.createElement("span"), { textContent: part }));
    this.find(".figures").replaceChildren(...spans);
  }

  /** Buttons for what can be done; none while an answer comes. */
  offerActs(free) {
    const buttons = this.acts.map(([label, act]) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "act", textContent: label });
      button.addEventListener("click", () => act(this));
      return button;
    });
    if (this.text) buttons.unshift(copyButton("Copy", () => this.text));
    this.find(".acts").replaceChildren(...(free ? buttons : []));
  }

  /** Its message in a request. */
  async message() {
    const { role, text } = this;
    if (role === "assistant") return { role, content: text };
    return { role, content: [...(await Promise.all(this.media.map((medium) => medium.part()))), { type: "text", text }] };
  }

  /** What is kept over a reload. */
  stored() {
    const { role, text, thoughts, calls } = this;
    return { role, text, thoughts, calls, files: this.media.map((medium) => medium.file) };
  }

  static restored({ role, text, thoughts, calls, files }, acts) {
    const turn = new Turn(role, text, files.map((file) => new Medium(file)), acts);
    if (role === "user") return turn;
    Object.assign(turn, { thoughts, calls });
    turn.settle();
    return turn;
  }
}

function callItem(name, given) {
  const item = document.createElement("li");
  item.append("calls ", Object.assign(document.createElement("code"), { textContent: `${name}(${given})` }));
  return item;
}
