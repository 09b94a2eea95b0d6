// Rows of a table that are chosen: how many, all of the page at once, and with Shift all between two.

const root = document.getElementById("live");
const boxes = () => [...root.querySelectorAll("input[name=device]")];
let last = null;

function count() {
  const chosen = boxes().filter((box) => box.checked).length, all = root.querySelector("[data-all]");
  const label = root.querySelector("[data-chosen]");
  if (!label) return;
  const text = chosen ? `${chosen} chosen` : "those chosen";
  if (label.textContent !== text) label.textContent = text; // the observer below sees what is written here
  all.hidden = false;
  all.checked = chosen > 0 && chosen === boxes().length;
  all.indeterminate = chosen > 0 && !all.checked;
}

function between(a, b) {
  const row = boxes(), [from, to] = [row.indexOf(a), row.indexOf(b)].sort((x, y) => x - y);
  return from < 0 ? [] : row.slice(from, to + 1);
}

root.addEventListener("click", ({ target, shiftKey }) => {
  if (target.matches("[data-all]")) for (const box of boxes()) box.checked = target.checked;
  else if (!target.matches("input[name=device]")) return;
  else {
    if (shiftKey && last) for (const box of between(last, target)) box.checked = target.checked;
    last = target;
  }
  root.querySelector("input[name=every][value='']").checked = true;
  count();
});
new MutationObserver(count).observe(root, { childList: true, subtree: true });
count();
