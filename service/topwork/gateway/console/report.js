// Report of a revision, alive: matrix, map, thresholds and mistakes, with their photos.

import { all, get, post } from "./api.js";
import { csv } from "./csv.js";
import { button, confirm, count, download, el, status } from "./dom.js";
import { embeddingMap } from "./embedding_map.js";
import { kindOf } from "./kinds.js";
import { matrix } from "./matrix.js";
import { highest, isMistake, load, predicted } from "./out_of_fold.js";
import { panel, previews, tiles } from "./previews.js";
import { progress } from "./progress.js";
import { thresholds } from "./thresholds.js";
import { accuracy, verdict } from "./verdict.js";

export const title = "Report";
export const needs = "train";

const compare = new Intl.Collator(undefined, { numeric: true }).compare;
const SORTS = {
  doubt: ["doubt", (a, b) => a.doubt - b.doubt],
  label: ["label", (a, b) => compare(a.label, b.label) || a.doubt - b.doubt],
  predicted: ["predicted label", (a, b) => compare(predicted(a), predicted(b)) || a.doubt - b.doubt],
  name: ["name", (a, b) => compare(a.name, b.name) || a.doubt - b.doubt],
};

export function render({ model, signal, reload, fail }) {
  const noun = kindOf(model).photo;
  if (!model.servingRevision) return [el("p", {}, `${model.name} does not serve yet, so it has no report.`)];
  const id = model.name.replace(/^models\//, "");
  const line = status();
  const bar = progress();
  const body = el("div", {});
  const choice = el("select", { id: "report-revision", onchange: () => show() });
  let revisions = [];
  let shown = new AbortController(); // aborted when another revision is chosen
  signal.addEventListener("abort", () => shown.abort());

  async function start(chosen) {
    try {
      revisions = (await all(`/v1/${model.name}/revisions`, "revisions")).filter(({ metrics }) => metrics);
      const serving = model.servingRevision.revision;
      choice.replaceChildren(...revisions.map(({ revision, rejection = [] }) =>
        el("option", { value: revision, selected: revision === (chosen ?? serving) },
          `${revision}${revision === serving ? " (serves)" : rejection.length ? " (rejected)" : ""}`)));
      if (revisions.length) await show();
    } catch (error) {
      fail(error, line.say);
    }
  }

  async function show() {
    shown.abort();
    shown = new AbortController();
    const { signal: current } = shown;
    const { revision, metrics } = revisions.find((one) => one.revision === choice.value);
    body.replaceChildren(el("p", {}, accuracy(metrics)), section("Confusion matrix", matrix(metrics, noun)));
    try {
      const loading = load(model.name, revision, current);
      let step = await loading.next();
      for (; !step.done; step = await loading.next()) {
        const [done, total] = step.value;
        line.say(`Loading the predictions: ${done} of ${total} …`);
      }
      if (current.aborted) return;
      const rows = step.value;
      const judged = rows.filter(({ predictions }) => predictions.length);
      line.say(`${count(rows.length, "example")}, ${judged.length === rows.length ? "all" : judged.length || "none"} evaluated out of fold.`);
      if (!judged.length) body.prepend(missing(revision));
      else body.replaceChildren(el("p", {}, accuracy(metrics)), ...sections(revision, metrics, rows, judged, current));
    } catch (error) {
      fail(error, line.say);
    }
  }

  function sections(revision, metrics, rows, judged, current) {
    const preview = previews(model.name, revision, current);
    const labels = metrics.perLabel.map(({ label }) => label);
    const [ofMatrix, ofMap, ofThreshold] = [1, 2, 3].map(() => panel(model, preview, fail));
    return [
      section("Confusion matrix", [el("p", { className: "soft small" }, `A row has the ${noun}s of a label, a column those that were predicted as it. A cell shows its ${noun}s.`),
        ...matrix(metrics, noun, (cell, origin) => ofMatrix.open(`${cell.label} predicted as ${cell.predicted}`,
          judged.filter((row) => row.label === cell.label && predicted(row) === cell.predicted), origin)), ofMatrix.element]),
      rows.some(({ point }) => point) && section("Embedding map", [
        ...embeddingMap(rows, labels, noun, (near, origin) => ofMap.open(`The ${noun}, and those around it`, near, origin)), ofMap.element]),
      section("Thresholds", [...thresholds(judged, labels, noun, ofThreshold.open), ofThreshold.element]),
      section("Mistakes", mistakes(revision, judged, preview)),
    ].filter(Boolean);
  }

  function mistakes(revision, judged, preview) {
    const wrong = judged.filter(isMistake);
    if (!wrong.length) return [el("p", {}, `No evaluated ${noun} is misclassified.`)];
    const { elements, show: place } = tiles("Mistakes", model, preview, fail);
    const sorted = () => wrong.sort(SORTS[order.value][1]);
    const order = el("select", { id: "mistakes-order", onchange: () => place(sorted()) },
      Object.entries(SORTS).map(([key, [text]]) => el("option", { value: key }, text)));
    const save = () => download(`${id}-${revision}-mistakes.csv`, "text/csv", csv([
      ["name", "digest", "label", "label_probability", "predicted", "predicted_probability", "suspect"],
      ...sorted().map((row) => [row.name, row.digest, row.label, row.own, predicted(row), highest(row), String(row.suspect)]),
    ]));
    place(sorted());
    return [el("p", {}, `${count(wrong.length, noun)} of ${judged.length}: the label that is most probable, out of fold, is another one.`),
      el("div", { className: "buttons filters" },
        el("div", {}, el("label", { for: "mistakes-order" }, "Sort by "), order), button("Download as CSV", save)),
      ...elements];
  }

  // Shown for revisions that an earlier release published.
  function missing(revision) {
    const isServing = revision === model.servingRevision.revision;
    return el("div", { className: "card" },
      el("p", { className: "alarm" }, `An earlier release made revision ${revision} and stored neither the predictions nor the map, so there are no ${noun}s, thresholds and mistakes here. ${isServing ? "A retrain adds them: it makes a new revision from the same examples." : "Revisions that are made now have them."}`),
      isServing && button("Retrain", retrain), bar.element);
  }

  async function retrain() {
    if (!await confirm("Retrain the model?", "It learns from the same examples, and serves the new revision if the gate accepts it.", "Retrain")) return;
    try {
      const operation = await bar.follow(await post(`/v1/${model.name}:retrain`, {}, signal), signal);
      if (operation.error) return body.prepend(el("section", { className: "card" }, verdict(operation)));
      model = await reload();
      await start();
    } catch (error) {
      bar.end();
      fail(error, line.say);
    }
  }

  async function save() {
    try {
      const { html } = await get(`/v1/${model.name}/revisions/${choice.value}/report`, {}, signal);
      download(`${id}-${choice.value}.html`, "text/html", Uint8Array.from(atob(html), (byte) => byte.charCodeAt(0)));
    } catch (error) {
      fail(error, line.say);
    }
  }

  start();
  return [
    el("div", { className: "buttons filters" },
      el("div", {}, el("label", { for: "report-revision" }, "Revision "), choice),
      button("Download report.html", save)),
    line, body,
  ];
}

const section = (name, children) => el("section", { className: "part", "aria-label": name }, el("h2", { tabIndex: -1 }, name), children);
