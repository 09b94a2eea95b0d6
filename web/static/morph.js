// Make one piece of the page equal to another without replacing what has not changed: focus, selection, scroll
// positions and open <details> stay. Rows are recognised by data-key.

const ELEMENT = 1, TEXT = 3;

/** Patch `from` into `to`. Returns false if something had to wait because the pointer or a selection was on it. */
export function morph(from, to) {
  if (from.nodeType === TEXT) {
    if (from.data !== to.data) from.data = to.data;
    return true;
  }
  if (from.nodeType !== ELEMENT) return true;
  if (from.hasAttribute("data-keep")) return true;
  attributes(from, to);
  if (from.localName === "time" && from.dateTime === to.dateTime) return true; // its words are kept by times.js
  if (from.localName === "svg") {
    if (from.innerHTML !== to.innerHTML) from.replaceChildren(...to.childNodes);
    return true;
  }
  return children(from, to);
}

function attributes(from, to) {
  for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && name !== "open") from.removeAttribute(name);
  }
}

const same = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);
const key = (node) => node.nodeType === ELEMENT ? node.getAttribute("data-key") : null;

function children(from, to) {
  if (from.localName === "tbody" && inUse(from) && moves(from, to)) return resting(from, to);
  const keyed = new Map([...from.children].filter(key).map((child) => [key(child), child]));
  const grown = from.localName === "tbody" && keyed.size > 0;
  let whole = true, at = from.firstChild;
  for (const next of [...to.childNodes]) {
    const known = key(next) ? keyed.get(key(next)) : at && !key(at) && same(at, next) ? at : null;
    if (!known) {
      from.insertBefore(next, at);
      if (grown && next.nodeType === ELEMENT) next.classList.add("fresh");
      continue;
    }
    if (known === at) at = at.nextSibling;
    else from.insertBefore(known, at);
    whole = morph(known, next) && whole;
  }
  while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
  return whole;
}

/** Rows that are pointed at, selected or hold the focus must not slip away: patch those that stay, move none. */
function resting(from, to) {
  const wanted = new Map([...to.children].map((child) => [key(child), child]));
  for (const row of from.children) if (wanted.has(key(row))) morph(row, wanted.get(key(row)));
  return false;
}

const moves = (from, to) => [...from.children].map(key).join() !== [...to.children].map(key).join();

function inUse(body) {
  if (body.matches(":hover") || body.contains(document.activeElement)) return true;
  if (body.querySelector("input:checked")) return true;
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(body, true);
}
