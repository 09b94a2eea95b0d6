// Charts: the figure once, then only its data. The server draws with Bokeh's models, this page with Bokeh itself.

import { ask, beat } from "./pulse.js";
import { now } from "./times.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

function address(chart, more) {
  const url = new URL(chart.dataset.chart, location.href);
  url.searchParams.set("theme", dark.matches ? "dark" : "light");
  if (more) url.searchParams.set("data", "1");
  return url;
}

/** A chart with data-piece gets what has changed together with the page; others, and those panned away, ask themselves. */
class Chart {
  constructor(element) {
    this.element = element;
    element.addEventListener("piece", ({ detail }) => this.take(detail));
  }

  get alone() { return !this.element.dataset.piece; }

  take({ mark, data }) {
    if (!this.document) return;
    this.show(data);
    this.element.dataset.mark = mark;
  }

  async draw() {
    const answer = await ask(address(this.element));
    const { item } = await answer.json();
    this.etag = answer.headers.get("ETag");
    this.element.replaceChildren();
    const views = await Bokeh.embed.embed_item(item, this.element);
    this.document = (views.roots ?? [...views])[0].model.document;
    this.window = this.document.get_model_by_name("window");
    this.shown = this.window && [this.window.start, this.window.end];
    this.window?.change.connect(() => this.panned());
  }

  /** The reader has moved the window: once they pause, ask for the work that lies in it now. */
  panned() {
    clearTimeout(this.pause);
    if (this.following()) return;
    this.pause = setTimeout(() => this.look().catch(() => {}), 300); // the beat tells of what fails, and tries again
  }

  async look() {
    const { start, end } = this.window, url = new URL(this.element.dataset.chart, location.href);
    url.searchParams.set("window", Math.min(86400, Math.max(1, Math.ceil((end - start) / 1000))));
    url.searchParams.set("until", (end / 1000).toFixed(3));
    this.element.dataset.chart = url.pathname + url.search;
    delete this.element.dataset.sliding;
    delete this.element.dataset.piece;
    this.etag = null;
    await this.refresh();
  }

  async refresh() {
    if (!this.document) return this.draw();
    if (!this.alone) return this.slide();
    const answer = await ask(address(this.element, true), this.etag);
    if (!answer) return this.slide();
    this.etag = answer.headers.get("ETag");
    this.show(await answer.json());
  }

  show({ sources, properties }) {
    for (const [name, data] of Object.entries(sources)) this.document.get_model_by_name(name).data = data;
    for (const [name, values] of Object.entries(properties)) {
      if (name !== "window") this.document.get_model_by_name(name).setv(values);
    }
    if (properties.window && this.element.dataset.sliding) this.move(properties.window.start, properties.window.end);
  }

  /** Nothing new: the work that is open goes on, and the window with it. */
  slide() {
    if (!this.element.dataset.sliding) return;
    const bars = this.document.get_model_by_name("bars"), moment = 1000 * now();
    const { right, open } = bars.data;
    if (open.includes(true)) bars.data = { ...bars.data, right: right.map((end, i) => open[i] ? moment : end) };
    this.move(moment - (this.shown[1] - this.shown[0]), moment);
  }

  /** Follow, unless the reader has panned or zoomed away. */
  move(start, end) {
    if (!this.following()) return;
    this.shown = [start, end];
    this.window.setv({ start, end, reset_start: start, reset_end: end });
  }

  following() {
    const { window, shown } = this;
    return Math.abs(window.start - shown[0]) <= 1 && Math.abs(window.end - shown[1]) <= 1;
  }
}

const charts = [...document.querySelectorAll("[data-chart]")].map((element) => new Chart(element));
for (const chart of charts) {
  try { await chart.draw(); } catch (error) { chart.element.textContent = "The chart could not be loaded; it is tried again."; }
  beat(() => chart.refresh());
}
dark.addEventListener("change", () => charts.forEach((chart) => chart.draw()));
