// Revisions: their quality beside the serving one; rollback; pins.

import { all, get, post } from "./api.js";
import { button, confirm, count, el, percent, status, table, time, words } from "./dom.js";
import { accuracy, compared } from "./verdict.js";

export const title = "Revisions";
export const needs = "classify";

export function render({ model, role, signal, reload, fail }) {
  const line = status({ tabIndex: -1 });
  const list = el("ol", {});
  const isAdmin = role === "admin";

  async function load() {
    try {
      const [state, revisions] = await Promise.all([
        get(`/v1/${model.name}`, {}, signal), all(`/v1/${model.name}/revisions`, "revisions"),
      ]);
      const last = state.moves.length ? `Serving since ${time(state.moves[0].time)}.` : "";
      if (!line.textContent) line.say(`${count(revisions.length, "revision")}. ${last}`);
      list.replaceChildren(...revisions.map((revision) => entry(revision, state, revisions)));
    } catch (error) {
      fail(error, line.say);
    }
  }

  async function change(question, explanation, action, method, tree, done) {
    if (!await confirm(question, explanation, action)) return;
    try {
      await post(`/v1/${model.name}:${method}`, tree, signal);
      await reload();
      await load();
      line.say(done);
      line.focus(); // the button that had it is a new one
    } catch (error) {
      fail(error, line.say);
    }
  }

  function entry(revision, { servingRevision, pinnedRevisions }, revisions) {
    const { revision: number, rejection = [], metrics, comparison, head, backbone } = revision;
    const serves = servingRevision?.revision === number;
    const isPinned = pinnedRevisions.includes(number);
    const actions = isAdmin ? [
      !serves && !rejection.length && metrics && button("Let it serve", () => change(
        `Let revision ${number} serve?`,
        `It replaces revision ${servingRevision.revision}, to which you can roll back in the same way.`,
        "Let it serve", "rollback", { revision: number, expectedRevision: servingRevision.revision },
        `Revision ${number} serves.`)),
      button(isPinned ? "Unpin" : "Pin", () => change(
        `${isPinned ? "Unpin" : "Pin"} revision ${number}?`,
        "A pinned revision is never deleted and can always be asked for by its number.",
        isPinned ? "Unpin" : "Pin", "pinRevision", { revision: number, unpin: isPinned },
        `Revision ${number} is ${isPinned ? "no longer " : ""}pinned.`)),
    ] : [];
    return el("li", { className: "card" },
      el("h2", {}, `Revision ${number}`,
        serves && el("span", { className: "badge good" }, "serves"),
        isPinned && el("span", { className: "badge" }, "pinned"),
        rejection.length > 0 && el("span", { className: "badge error" }, "rejected")),
      metrics
        ? el("p", {}, `${count(revision.labels.length, "label")}: ${revision.labels.join(", ")}`)
        : el("p", { className: "error" }, "It is damaged."),
      metrics && el("p", { className: "soft small" }, accuracy(metrics)),
      el("p", { className: "soft small" }, [words(revision.change), time(revision.createTime),
        revision.parentRevision !== "0" && `from revision ${revision.parentRevision}`].filter(Boolean).join(" · ")),
      rejection.length > 0 && el("ul", { className: "reasons" }, rejection.map((text) => el("li", {}, text))),
      metrics && el("details", {}, el("summary", {}, "Details, and comparison with another revision"),
        beside(revision, serves ? undefined : servingRevision.revision, revisions),
        comparison && [el("h3", {}, `Before and after, on the same images (revision ${revision.parentRevision} and ${number})`), compared(comparison)],
        el("p", { className: "soft small" }, `${backbone?.name ?? ""} · ${head.kind} on ${head.normalisation}, strength ${head.strength}`)),
      el("div", { className: "buttons" }, actions));
  }

  load();
  return [line, list];
}

// A choice of the revision to compare with, and the table.
function beside(revision, chosen, revisions) {
  const others = revisions.filter((one) => one.metrics && one !== revision);
  const id = `beside-${revision.revision}`;
  const place = el("div", {});
  const choice = el("select", { id, onchange: show },
    el("option", { value: "" }, "none"),
    others.map((one) => el("option", { value: one.revision, selected: one.revision === chosen }, `Revision ${one.revision}`)));
  function show() {
    const other = others.find((one) => one.revision === choice.value);
    place.replaceChildren(...[other && el("p", { className: "soft small" }, `Revision ${other.revision}: ${accuracy(other.metrics)}`), labels(revision, other)].filter(Boolean));
  }
  show();
  return [others.length > 0 && el("p", {}, el("label", { for: id }, "Compare with "), choice), place];
}

// Precision and recall of each label, beside those of another revision.
function labels({ revision, metrics }, other) {
  const before = new Map((other?.metrics?.perLabel ?? []).map((row) => [row.label, row]));
  const names = [...new Set([...metrics.perLabel.map(({ label }) => label), ...before.keys()])];
  const rows = names.map((label) => {
    const row = metrics.perLabel.find((one) => one.label === label);
    const cells = (found) => (found ? [found.images, percent(found.precision), percent(found.recall)] : ["–", "–", "–"]);
    return [label, ...cells(row), ...(other ? cells(before.get(label)) : [])];
  });
  const heads = (number) => [`Images ${number}`, `Precision ${number}`, `Recall ${number}`];
  return other
    ? table(`Revisions ${revision} and ${other.revision}, each on its own images`,
      ["Label", ...heads(`(${revision})`), ...heads(`(${other.revision})`)], rows)
    : table("Quality by label", ["Label", "Examples", "Precision", "Recall"], rows);
}
