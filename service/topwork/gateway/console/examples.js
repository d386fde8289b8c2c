// Examples: the training inputs, the most doubtful first; moving and removing them.

import { get, post } from "./api.js";
import { button, confirm, count, el, percent, quoted, status } from "./dom.js";
import { progress } from "./progress.js";
import { selection } from "./selection.js";
import { verdict } from "./verdict.js";

export const title = "Examples";
export const needs = "train";

const PAGE = 60;

export function render({ model, signal, reload, fail }) {
  let labels = [];
  const line = status();
  const bar = progress();
  const outcome = el("section", { className: "card", "aria-label": "Verdict", tabIndex: -1, hidden: true });
  const label = el("select", { id: "label-filter", onchange: () => start() });
  const proposals = el("datalist", { id: "labels" });
  const suspect = el("input", { type: "checkbox", id: "suspect-filter", onchange: () => start() });
  const more = button("Show more", () => load());
  const target = el("input", { id: "target", list: "labels", autocomplete: "off" });
  const { grid, toolbar, add, clear, selected } = selection("Examples", model, [
    el("div", {}, el("label", { for: "target" }, "Move to "), target, proposals),
    button("Move", move), button("Remove", remove)]);
  let pageToken = "";
  let starts = 0; // a page that was asked for before the latest start is dropped
  let revision = "0";

  function setLabels(found) {
    const kept = label.value;
    labels = found;
    label.replaceChildren(el("option", { value: "" }, "All labels"),
      ...labels.map((name) => el("option", { value: name, selected: name === kept }, name)));
    proposals.replaceChildren(...labels.map((name) => el("option", { value: name })));
  }

  async function start() {
    clear();
    pageToken = "";
    starts++;
    await load();
  }

  async function load() {
    const terms = [label.value && `label = ${quoted(label.value)}`, suspect.checked && "suspect = true"];
    const wanted = { filter: terms.filter(Boolean).join(" AND "), view: "EXAMPLE_VIEW_FULL", pageSize: PAGE, pageToken };
    more.disabled = true;
    const asked = starts;
    try {
      const page = await get(`/v1/${model.name}/examples`, wanted, signal);
      if (asked !== starts) return;
      pageToken = page.nextPageToken;
      revision = page.revision;
      page.examples.forEach(tile);
      line.say(`${count(grid.children.length, "example")} of ${page.totalSize}, the most doubtful first.`);
    } catch (error) {
      fail(error, line.say);
    }
    more.disabled = false;
    more.hidden = !pageToken;
  }

  function tile(example) {
    const { suggestedLabel, suggestedProbability, labelProbability, displayName } = example;
    const doubt = example.suspect
      ? `looks like ${suggestedLabel} (${percent(suggestedProbability, 0)})`
      : labelProbability === undefined ? "not evaluated" : `${percent(labelProbability, 0)} ${example.label}`;
    add(example, displayName, [el("span", {}, example.label),
      el("span", { className: `small ${example.suspect ? "error" : "soft"}` }, doubt)]);
  }

  async function move() {
    const name = target.value.trim();
    if (!name) {
      line.say("Name the label to which the examples shall move.", true);
      target.focus();
      return;
    }
    const kind = labels.includes(name) ? "" : " This is a new label.";
    await change(`Move ${count(selected().length, "example")} to ${name}?`, `They get this label in place of all that they have.${kind}`,
      "Move", "moveExamples", { label: name });
  }

  async function remove() {
    const given = [...new Set(selected().map((example) => example.label))];
    const only = given.length === 1 ? { label: given[0] } : {};
    await change(`Remove ${count(selected().length, "example")}?`,
      "The new revision is as if they had never been added. Earlier revisions still have them.", "Remove", "removeExamples", only);
  }

  // Changes the selected examples in one operation.
  async function change(question, explanation, action, method, tree) {
    if (!await confirm(question, explanation, action)) return;
    const digests = [...new Set(selected().map(({ digest }) => digest))];
    outcome.hidden = true;
    toolbar.inert = true;
    try {
      const request = { ...tree, digests, options: { expectedRevision: revision } };
      const operation = await bar.follow(await post(`/v1/${model.name}:${method}`, request, signal), signal);
      outcome.replaceChildren(el("h2", {}, "Result"), ...verdict(operation));
      outcome.hidden = false;
      setLabels((await reload()).servingRevision?.labels ?? []);
      await start();
      outcome.focus();
    } catch (error) {
      bar.end();
      fail(error, line.say);
    }
    toolbar.inert = false;
  }

  setLabels(model.servingRevision?.labels ?? []);
  start();
  return [
    el("div", { className: "buttons filters" },
      el("div", {}, el("label", { for: "label-filter" }, "Label "), label),
      el("label", { className: "check", for: "suspect-filter" }, suspect, "Only suspected wrong labels")),
    line, bar.element, outcome, grid, el("div", { className: "buttons" }, more), toolbar,
  ];
}
