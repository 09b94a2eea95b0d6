// Refresh the living part of the page in place.

import { morph } from "./morph.js";
import { ask, beat } from "./pulse.js";
import * as times from "./times.js";

const root = document.getElementById("live");
const badge = document.querySelector(".live");
let etag = root?.dataset.etag;
let waiting = null;

/** Figures come along with the living part: whoever draws them puts the mark beside what is drawn. */
function deliver({ dataset: { piece, mark }, textContent }) {
  const place = document.querySelector(`[data-piece="${piece}"]`);
  place?.dispatchEvent(new CustomEvent("piece", { detail: { mark, data: JSON.parse(textContent) } }));
}

function apply(html) {
  const next = document.createElement("template");
  next.innerHTML = html;
  const fresh = next.content.getElementById("live");
  for (const piece of next.content.querySelectorAll("script[data-piece]")) deliver(piece);
  waiting = fresh && !morph(root, fresh) ? html : null;
  badge.title = waiting ? "New rows wait while a row of the table is pointed at, chosen, selected or focused" : "";
  times.tick();
}

if (root) {
  beat(async () => {
    const places = [...document.querySelectorAll("[data-piece]")];
    const known = places.map((place) => place.dataset.mark).filter(Boolean);
    const answer = await ask(location.href, known.length < places.length ? null : etag, known);
    if (!answer) return;
    const html = await answer.text();
    etag = answer.headers.get("ETag");
    times.set(answer.headers.get("X-Now"));
    apply(html);
  });
  root.addEventListener("pointerout", () => { if (waiting) setTimeout(() => waiting && apply(waiting), 300); });
  root.addEventListener("change", () => { if (waiting) setTimeout(() => waiting && apply(waiting), 300); });
  root.addEventListener("focusout", () => { if (waiting) setTimeout(() => waiting && apply(waiting), 300); });
}

// Selects in a filter act at once; without scripts there is the button.
for (const form of document.querySelectorAll("form.filter")) {
  form.addEventListener("change", (event) => { if (event.target.localName === "select") form.requestSubmit(); });
  // A clean URL: what is empty is not sent, nor that all columns are wanted.
  form.addEventListener("formdata", ({ formData }) => {
    if (!form.querySelector("input[name=column]:not(:checked)")) formData.delete("column");
    for (const [name, value] of [...formData]) if (value === "") formData.delete(name);
  });
}
for (const details of document.querySelectorAll("details.sure")) {
  details.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { details.open = false; details.querySelector("summary").focus(); }
  });
}
