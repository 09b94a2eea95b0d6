// What forms can do beyond sending themselves: copy a text, show a field only for one choice, send by Ctrl and Enter.

for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch { // without https browsers give no clipboard: mark the text, ready for Ctrl and C
      getSelection().selectAllChildren(source);
      button.textContent = "Marked: press Ctrl and C";
    }
  });
}

for (const part of document.querySelectorAll("[data-when]")) {
  const [name, value] = part.dataset.when.split("=");
  const field = part.closest("form").elements[name];
  const show = () => { part.hidden = field.value !== value; };
  field.addEventListener("change", show);
  show();
}

for (const button of document.querySelectorAll("[data-shortcut=ctrl-enter]")) {
  button.form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) button.click();
  });
}

document.querySelector("[aria-invalid=true]")?.focus();
