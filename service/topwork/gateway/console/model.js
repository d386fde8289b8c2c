// Model: renaming and removal of labels; creation, copy, deletion and restoration of models.

import { all, post, remove } from "./api.js";
import { ask, button, confirm, count, el, percent, status } from "./dom.js";
import { progress } from "./progress.js";
import { verdict } from "./verdict.js";

export const title = "Model";
export const needs = "train";
export const withoutModel = true;

const GATE = "The gate compares the new revision with the old one, which goes on serving if the gate rejects it.";

const short = (name) => name.replace(/^models\//, "");

// `deleted` is the name of the model that was deleted just now.
export function render({ model, role, signal, reload, open, fail, deleted = "" }) {
  const line = status({ tabIndex: -1 });
  const report = (error) => {
    fail(error, line.say);
    line.focus();
  };
  if (deleted) {
    line.say(`${short(deleted)} is deleted, and can be restored until its files are removed. `);
    line.append(button("Restore it", () => restore(deleted)));
  }

  async function restore(name) {
    try {
      await post(`/v1/${name}:undelete`, {}, signal);
      await open(name, "model");
    } catch (error) {
      report(error);
    }
  }

  const restoration = () => {
    const name = nameField("restored");
    return card("Restore a deleted model", (event) => {
      event.preventDefault();
      restore(`models/${name.value}`);
    },
    el("p", { className: "soft" }, "A deleted model can be restored under its name until topwork gc has removed its files."),
    el("div", { className: "buttons" }, el("div", {}, el("label", { for: "restored" }, "Name "), name), el("button", {}, "Restore")));
  };

  return [
    line,
    ...(model ? labels({ model, signal, reload, line, report }) : []),
    creation({ model, signal, open, report }),
    ...(role === "admin" ? [model && deletion({ model, signal, open, report }), restoration()] : []),
  ].filter(Boolean);
}

// The labels with their images, and the operation that changes one of them.
function labels({ model, signal, reload, line, report }) {
  const bar = progress();
  const outcome = el("section", { className: "card", "aria-label": "Verdict", tabIndex: -1, hidden: true });
  const list = el("ul", { className: "rows" });
  const titleLine = el("h2", {});

  function show() {
    const { labels: names, metrics } = model.servingRevision ?? model.draft;
    const quality = new Map((metrics?.perLabel ?? []).map((row) => [row.label, row]));
    titleLine.textContent = `${count(names.length, "label")} of ${short(model.name)}`;
    list.replaceChildren(...names.map((label) => {
      const found = quality.get(label);
      return el("li", {},
        el("span", {}, label, " ",
          found && el("span", { className: "soft small" }, `${count(found.images, "image")}, recall ${percent(found.recall)}`)),
        el("div", { className: "buttons" },
          button("Rename", () => rename(label), { "aria-label": `Rename ${label}` }),
          button("Remove", () => drop(label, found), { "aria-label": `Remove ${label}` })));
    }));
  }

  async function rename(label) {
    const name = el("input", { id: "new-label", value: label, required: true, autocomplete: "off" });
    const chosen = await ask(`Rename ${label}?`,
      `Its images get the new name in a new revision, and answers have it from then on. Programs that read the answers must know it. ${GATE}`,
      { rename: "Rename" }, [el("label", { for: "new-label" }, "New name "), name]);
    if (chosen) await change("renameClass", { label, newLabel: name.value.trim() });
  }

  async function drop(label, found) {
    const images = found ? `Its ${count(found.images, "image")} go, too: the` : "The";
    const chosen = await ask(`Remove ${label}?`,
      `${images} new revision is as if they had never been added. Earlier revisions still have them, so that a rollback brings them back. ${GATE}`,
      { remove: "Remove", check: "Only check" });
    if (chosen) await change("removeClass", { label }, chosen === "check");
  }

  async function change(method, tree, validateOnly = false) {
    line.say("");
    outcome.hidden = true;
    list.inert = true;
    try {
      const options = { validateOnly, expectedRevision: model.servingRevision?.revision ?? "0" };
      const operation = await bar.follow(await post(`/v1/${model.name}:${method}`, { ...tree, options }, signal), signal);
      outcome.replaceChildren(el("h2", {}, validateOnly ? "Verdict of the check" : "Result"), ...verdict(operation));
      // The verdict appears with the labels that it leads to, or with the error of reading them.
      model = await reload().finally(() => { outcome.hidden = false; });
      show();
      outcome.focus();
    } catch (error) {
      bar.end();
      report(error);
    }
    list.inert = false;
  }

  show();
  return [bar.element, outcome, el("section", { className: "card", "aria-label": "Labels" }, titleLine, list)];
}

function creation({ model, signal, open, report }) {
  const name = nameField("new-model");
  const source = el("select", { id: "source", required: true });
  const choices = []; // [text, make] of each option
  const choice = (text, make) => {
    source.append(el("option", { value: choices.push(make) - 1 }, text));
  };
  if (model?.servingRevision) {
    choice(`Copy of ${short(model.name)}, revision ${model.servingRevision.revision}`, async (made) => {
      await post(`/v1/${model.name}:copy`, { model: made }, signal);
      return "model";
    });
  }
  all("/v1/backbones", "backbones").then((backbones) => {
    for (const { backbone } of backbones) {
      choice(`Without labels, on ${backbone.name} (${backbone.precision}, ${backbone.digest.slice(0, 8)})`, async (made) => {
        await post("/v1/models", { model: made, backbone: backbone.digest }, signal);
        return "teach";
      });
    }
  }).catch(report);
  return card("New model", async (event) => {
    event.preventDefault();
    const made = `models/${name.value}`;
    try {
      await open(made, await choices[source.value](made));
    } catch (error) {
      report(error);
    }
  },
  el("div", { className: "buttons" },
    el("div", {}, el("label", { for: "new-model" }, "Name "), name),
    el("div", {}, el("label", { for: "source" }, "Made as "), source),
    el("button", {}, "Create")));
}

function deletion({ model, signal, open, report }) {
  const name = short(model.name);

  async function run(force) {
    try {
      await remove(`/v1/${model.name}?force=${force}`, signal);
    } catch (error) {
      if (error.reason !== "MODEL_IN_USE") throw error;
      if (await confirm(`${name} is in use. Delete it all the same?`, "It answered a request within the last minute. Calls for it will fail.", "Delete")) await run(true);
      return;
    }
    await open("", "model", { deleted: model.name });
  }

  async function start() {
    const typed = el("input", { id: "typed", required: true, autocomplete: "off", spellcheck: false, oninput: () =>
      typed.setCustomValidity(typed.value === name ? "" : `Type ${name} to confirm.`) });
    const chosen = await ask(`Delete ${name}?`,
      "All its revisions stop serving at once, and calls for it fail. An administrator can restore it until topwork gc has removed its files.",
      { delete: "Delete" }, [el("label", { for: "typed" }, `Type ${name} to confirm `), typed]);
    if (chosen) await run(false).catch(report);
  }

  return el("section", { className: "card" },
    el("h2", {}, `Delete ${name}`),
    el("p", { className: "soft" }, "It stops serving. Its files are kept for a while, so that it can be restored."),
    button(`Delete ${name}`, start));
}

const nameField = (id) => el("input", { id, required: true, autocomplete: "off", spellcheck: false, autocapitalize: "off" });

const card = (heading, onsubmit, ...children) => el("form", { className: "card", onsubmit }, el("h2", {}, heading), children);
