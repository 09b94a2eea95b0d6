// Keep "12 s ago" true between two answers of the server, by the server's clock.

const root = document.querySelector("[data-now]");
let ahead = root ? Date.now() - 1000 * root.dataset.now : 0;

/** Seconds since 1970 as the server's clock shows them. */
export const now = () => (Date.now() - ahead) / 1000;

/** The server's clock as of an answer that has just come. */
export function set(seconds) { if (seconds > 0) ahead = Date.now() - 1000 * seconds; }

// The same steps as web/wording.py.
function ago(seconds) {
  const text = span(Math.abs(seconds));
  return seconds < -1 ? `in ${text}` : `${text} ago`;
}

function span(seconds) {
  if (seconds < 90) return `${Math.floor(seconds)} s`;
  if (seconds < 5400) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

export function tick() {
  const moment = now();
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const seconds = moment - Date.parse(time.dateTime) / 1000;
    const text = time.dataset.ago === "for" ? span(Math.max(0, seconds)) : ago(seconds);
    if (time.textContent !== text) time.textContent = text;
  }
}

setInterval(tick, 1000);
