// One beat for everything that is polled: 2 s while the page is seen, 60 s while it is hidden, slower after failures
// and where answers take long, so that an open page never keeps a small coordinator busy.

const SEEN = 2000, HIDDEN = 60000, LONGEST = 60000;
const badge = document.querySelector(".live");
const failing = new Map();

/** Say what the reader may rely on: live, held (rows wait under the pointer), stale, or off. */
function show(state, text) {
  if (!badge || badge.dataset.state === state && badge.textContent === text) return;
  badge.dataset.state = state;
  badge.textContent = text;
}

function report(task, error) {
  if (!error) failing.delete(task);
  else if (!failing.has(task)) failing.set(task, { since: new Date(), error });
  const [worst] = [...failing.values()].sort((a, b) => a.since - b.since);
  if (!worst) return show("live", "Live");
  const since = worst.since.toTimeString().slice(0, 8);
  show("stale", worst.error.status === 401 ? `Logged out at ${since}: load the page again` : `Stale since ${since}`);
}

/** Run `task` now and again for ever; it may be asynchronous and throws when it could not refresh. */
export function beat(task) {
  let wait = SEEN, timer;
  const again = () => {
    clearTimeout(timer);
    timer = setTimeout(run, document.visibilityState === "visible" ? wait : HIDDEN);
  };
  const run = async () => {
    const began = performance.now();
    try {
      await task();
      wait = Math.max(SEEN, 5 * (performance.now() - began));
      report(task, null);
    } catch (error) {
      wait = Math.min(LONGEST, wait * 2);
      report(task, error);
    }
    again();
  };
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") { clearTimeout(timer); run(); }
  });
  again();
}

/** Ask the server, telling what is known already, by the marks of pieces as well; null when nothing has changed. */
export async function ask(url, etag, known = []) {
  const headers = { "X-Live": "1" };
  if (known.length) headers["X-Known"] = known.join();
  if (etag) headers["If-None-Match"] = etag;
  const stop = AbortSignal.timeout(15000);
  const answer = await fetch(url, { headers, cache: "no-store", redirect: "error", signal: stop });
  if (answer.status === 304) return null;
  if (!answer.ok) throw Object.assign(new Error(`${answer.status} from ${url}`), { status: answer.status });
  return answer;
}
