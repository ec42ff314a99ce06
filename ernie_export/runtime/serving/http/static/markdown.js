// An answer's Markdown as nodes: tables, lists and code; no HTML of its own, no pictures, links that open elsewhere.

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.js";

const escaped = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escape = (text) => text.replace(/[&<>"]/g, (character) => escaped[character]);
const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: { html: ({ text }) => escape(text), image: ({ raw }) => escape(raw) },
});
const ALLOWED = {
  ALLOWED_TAGS: "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" "),
  ALLOWED_ATTR: ["align", "href", "start"],
  ALLOWED_URI_REGEXP: /^https?:/i,
  RETURN_DOM_FRAGMENT: true,
};

/** Nodes for a text. What the model writes is never markup of the page: it is escaped, then sanitised all the same. */
export function render(text) {
  const nodes = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const link of nodes.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const heading of nodes.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Math.min(Number(heading.tagName[1]) + 2, 6); // below the page's own
    const lower = document.createElement(`h${level}`);
    lower.append(...heading.childNodes);
    heading.replaceWith(lower);
  }
  for (const block of nodes.querySelectorAll("pre, table")) wide(block);
  return nodes;
}

/** Code and tables scroll by themselves, from the keyboard too; code can be copied. */
function wide(block) {
  const frame = document.createElement("div");
  frame.className = "wide";
  block.replaceWith(frame);
  const scroller = document.createElement("div");
  Object.assign(scroller, { className: "sideways", tabIndex: 0 });
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", block.tagName === "PRE" ? "Code" : "Table");
  scroller.append(block);
  frame.append(scroller);
  if (block.tagName === "PRE") frame.append(copyButton("Copy code", () => block.textContent));
}

/** A button that copies what `text` returns, and says so for a moment. */
export function copyButton(label, text) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "act", textContent: label });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Copying is not allowed here"; // a page over plain HTTP has no clipboard
    }
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}
