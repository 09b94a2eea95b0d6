// Saved views: an address has all of a view in it, so a view is a name for an address. This browser keeps them.

const KEY = "shoal-device-views";
const place = document.querySelector("[data-views]");
const read = () => {
  try { return JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { return {}; }
};

function made(tag, text, more = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...more });
}

function store(views) {
  localStorage.setItem(KEY, JSON.stringify(views));
  show();
}

function show() {
  const views = read();
  const chips = Object.entries(views).map(([name, search]) => {
    const link = made("a", name, { href: location.pathname + search });
    if (search === location.search) link.setAttribute("aria-current", "true");
    return link;
  });
  const [current] = Object.entries(views).find(([, search]) => search === location.search) ?? [];
  if (current) {
    const forget = made("button", "Forget this view", { type: "button", className: "link" });
    forget.addEventListener("click", () => { const { [current]: _, ...rest } = read(); store(rest); });
    chips.push(forget);
  } else if (location.search) {
    const keep = made("button", "Save this view …", { type: "button", className: "link" });
    keep.addEventListener("click", () => keep.replaceWith(naming()));
    chips.push(keep);
  }
  place.replaceChildren(...chips);
}

function naming() {
  const form = made("form", "", { className: "inline" });
  const name = made("input", "", { size: 14, maxLength: 30, required: true });
  name.setAttribute("aria-label", "Name of the view");
  form.append(name, made("button", "Save", { className: "small" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    store({ ...read(), [name.value.trim() || "view"]: location.search });
  });
  setTimeout(() => name.focus());
  return form;
}

if (place) show();
