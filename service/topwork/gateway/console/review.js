// Review queue: images that the model answers badly, to be labelled or discarded; its policy.

import { all, get, patch, post } from "./api.js";
import { button, confirm, count, el, percent, quoted, status, time } from "./dom.js";
import { kindOf, shown } from "./kinds.js";
import { progress } from "./progress.js";
import { selection } from "./selection.js";
import { verdict } from "./verdict.js";

export const title = "Review";
export const needs = "train";
export const needsRevision = true;

const PAGE = 60;
const PICTURES = 8;
const MIB = 2 ** 20;
const DAY = 86_400;

const REASONS = { unknown: "Unknown", far: "Far from all examples", uncertain: "Uncertain", random: "Drawn at random", corrected: "Corrected" };

export function render({ model, signal, reload, fail }) {
  const noun = kindOf(model).item;
  const line = status({ tabIndex: -1 });
  const bar = progress();
  const outcome = el("section", { className: "card", "aria-label": "Verdict", tabIndex: -1, hidden: true });
  const policy = el("section", { className: "card", "aria-label": "Policy" });
  const groups = el("section", { "aria-label": "Groups" });
  const filter = el("select", { id: "candidate-filter", onchange: () => start() });
  const labels = el("datalist", { id: "labels" });
  const more = button("Show more", () => load());
  const every = button("Select all shown", () => candidates.selectAll(true));
  const target = el("input", { id: "target", list: "labels", autocomplete: "off" });
  const corrections = button("Teach the corrections", teachCorrections);
  const candidates = selection("Candidates", model,
    [el("div", {}, el("label", { for: "target" }, "Label "), target), button("Teach", teach), corrections, button("Discard", discard)],
    (chosen) => { corrections.hidden = !chosen.some(({ suggestedLabel }) => suggestedLabel); });
  let pageToken = "";
  let starts = 0; // a page that was asked for before the latest start is dropped

  // Loads the policy, the groups and the candidates.
  async function refresh() {
    labels.replaceChildren(...model.servingRevision.labels.map((value) => el("option", { value })));
    try {
      const [state, found] = await Promise.all([
        get(`/v1/${model.name}/reviewPolicy`, {}, signal),
        get(`/v1/${model.name}/candidateGroups`, { examples: PICTURES }, signal),
      ]);
      showPolicy(state);
      showGroups(found.groups);
    } catch (error) {
      fail(error, line.say);
      return;
    }
    await start();
  }

  function showPolicy(state) {
    const number = (id, value, least, most) =>
      el("input", { id, type: "number", value, min: least, max: most, step: "any", required: true });
    const perDay = number("per-day", state.imagesPerDay, 1, 2000);
    const mib = number("most-mib", Math.round(state.maxBytes / MIB), 1, 2 ** 20);
    const days = number("days", Math.round(100 * parseFloat(state.ttl) / DAY) / 100, 0.01, 3650);
    const save = async (enabled) => {
      try {
        await patch(`/v1/${model.name}/reviewPolicy`, { policy: { enabled, imagesPerDay: Math.round(perDay.value),
          maxBytes: String(Math.round(mib.value * MIB)), ttl: `${Math.round(days.value * DAY)}s` } }, signal);
        await refresh();
        policy.querySelector("summary").focus();
      } catch (error) {
        fail(error, line.say);
      }
    };
    const form = el("form", { onsubmit: (event) => {
      event.preventDefault();
      save(true);
    } },
    el("div", { className: "buttons" },
      el("div", {}, el("label", { for: "per-day" }, `${noun[0].toUpperCase()}${noun.slice(1)}s a day `), perDay),
      el("div", {}, el("label", { for: "most-mib" }, "MiB at most "), mib),
      el("div", {}, el("label", { for: "days" }, "Days until deletion "), days)),
    el("div", { className: "buttons" },
      el("button", { className: state.enabled ? "" : "primary" }, state.enabled ? "Save" : "Turn on"),
      state.enabled && button("Turn off", () => save(false))));
    policy.replaceChildren(
      el("p", {}, state.enabled
        ? `The queue is on. Kept today: ${state.keptToday} of at most ${count(state.imagesPerDay, noun)}; in all ${(state.bytes / MIB).toFixed(1)} of ${mib.value} MiB.`
        : `The queue is off: no ${noun} is kept.`),
      el("details", { open: !state.enabled && !state.candidates },
        el("summary", {}, state.enabled ? "Settings" : "Turn it on"),
        el("p", { className: "soft small" }, `While it is on, the server keeps some of the ${noun}s that it is unsure about, whoever sent them. All who may teach this model see them here.`),
        form));
  }

  function showGroups(found) {
    const kept = filter.value;
    const options = [["", "All"], ...Object.entries(REASONS).map(([value, text]) => [`reason = ${value}`, text]),
      ...found.map(({ id, size }, index) => [inGroup(id), `Group ${index + 1}: ${count(size, noun)}`])];
    filter.replaceChildren(...options.map(([value, text]) => el("option", { value, selected: value === kept }, text)));
    groups.replaceChildren(...found.map(groupCard));
  }

  function groupCard({ id, size, unknown, nearestLabel, examples }, index) {
    const name = el("input", { id: `group-${index}`, list: "labels", required: true, autocomplete: "off" });
    return el("form", { className: "card group", onsubmit: (event) => {
      event.preventDefault();
      teachGroup(id, name.value.trim());
    } },
    el("h2", {}, `${count(size, noun)} that look alike, ${unknown} of them unknown`),
    el("p", { className: "soft small" }, `Nearest label: ${nearestLabel}. A few may be of other kinds: look at all before you name them.`),
    el("div", { className: "strip" }, examples.map((candidate) => shown(model, candidate.preview, best(candidate)))),
    el("div", { className: "buttons" },
      button("Look at all", () => look(id), { "aria-label": `Look at all ${noun}s of group ${index + 1}` }),
      el("div", {}, el("label", { for: `group-${index}` }, "Label "), name),
      el("button", {}, "Teach all")));
  }

  async function look(id) {
    filter.value = inGroup(id);
    await start();
    filter.focus();
    filter.scrollIntoView({ block: "start" });
  }

  async function start() {
    candidates.clear();
    pageToken = "";
    starts++;
    await load();
  }

  async function load() {
    more.disabled = true;
    const asked = starts;
    try {
      const page = await get(`/v1/${model.name}/candidates`,
        { filter: filter.value, view: "CANDIDATE_VIEW_PREVIEW", pageSize: PAGE, pageToken }, signal);
      if (asked !== starts) return;
      pageToken = page.nextPageToken;
      for (const candidate of page.candidates) {
        candidates.add(candidate, `Classified ${time(candidate.createTime)}`, [
          el("span", {}, best(candidate)), el("span", { className: "soft small" }, why(candidate)),
        ], candidate.operation !== "");
      }
      line.say(page.totalSize
        ? `${candidates.grid.children.length} of ${count(page.totalSize, noun)}, the most useful first.`
        : `No ${noun} waits for a label.`);
      every.hidden = !page.totalSize;
    } catch (error) {
      fail(error, line.say);
    }
    more.disabled = false;
    more.hidden = !pageToken;
  }

  async function teach() {
    const label = target.value.trim();
    if (!label) {
      line.say(`Name the label of the selected ${noun}s.`, true);
      target.focus();
      return;
    }
    await decide(candidates.selected().map(({ digest }) => ({ digest, label })), ...asking(label));
  }

  async function teachCorrections() {
    const corrected = candidates.selected().filter(({ suggestedLabel }) => suggestedLabel);
    await decide(corrected.map(({ digest, suggestedLabel }) => ({ digest, label: suggestedLabel })), ...asking("their corrections"));
  }

  async function teachGroup(id, label) {
    try {
      const found = await all(`/v1/${model.name}/candidates`, "candidates", { filter: `${inGroup(id)} AND claimed = false` });
      if (found.length) await decide(found.map(({ digest }) => ({ digest, label })), ...asking(label));
      else await refresh(); // the groups have changed
    } catch (error) {
      fail(error, line.say);
    }
  }

  const asking = (label) => [(number) => `Teach ${number} as ${label}?`,
    "They become examples in a new revision, which serves if the gate accepts it; otherwise they return to the queue.", "Teach"];

  async function discard() {
    await decide(candidates.selected().map(({ digest }) => ({ digest, discard: true })),
      (number) => `Discard ${number}?`, "They are deleted, and the model does not learn them.", "Discard");
  }

  // Labels or discards candidates in one operation.
  async function decide(decisions, question, explanation, action) {
    if (!await confirm(question(count(decisions.length, noun)), explanation, action)) return;
    outcome.hidden = true;
    candidates.toolbar.inert = true;
    try {
      const { operations, discarded } = await post(`/v1/${model.name}:labelCandidates`, { labels: decisions }, signal);
      if (operations.length) {
        const operation = await bar.follow(operations[0], signal);
        outcome.replaceChildren(el("h2", {}, "Result"), ...verdict(operation));
        model = await reload();
      } else outcome.replaceChildren(el("p", { className: "good" }, `${count(discarded, noun)} discarded.`));
      outcome.hidden = false;
      await refresh();
      outcome.focus();
    } catch (error) {
      bar.end();
      fail(error, line.say);
      line.focus();
    }
    candidates.toolbar.inert = false;
  }

  refresh();
  return [
    policy, bar.element, outcome, groups,
    el("div", { className: "buttons filters" },
      el("div", {}, el("label", { for: "candidate-filter" }, "Show "), filter), every, button("Refresh", refresh)),
    line, labels, candidates.grid, el("div", { className: "buttons" }, more), candidates.toolbar,
  ];
}

const inGroup = (id) => `group = ${quoted(id)}`;

function best({ classification: { predictions: [{ label, probability }] } }) {
  return `${label} ${percent(probability, 0)}`;
}

function why({ operation, label, reason, suggestedLabel, classification: { predictions, unknownProbability } }) {
  if (operation) return `is learnt as ${label}`;
  if (suggestedLabel) return `corrected to ${suggestedLabel}`;
  const name = reason.replace("CANDIDATE_REASON_", "").toLowerCase();
  if (name === "uncertain" && predictions.length > 1) return `or ${predictions[1].label} ${percent(predictions[1].probability, 0)}`;
  return unknownProbability === undefined || name === "random" ? (REASONS[name] ?? "") : `unknown ${percent(unknownProbability, 0)}`;
}
