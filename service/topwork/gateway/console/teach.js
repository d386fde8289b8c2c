// Teach: inputs of new labels, or more of known ones; the gate's verdict; publishing.

import { upload } from "./api.js";
import { computed } from "./classify.js";
import { button, count, el, status } from "./dom.js";
import { kindOf, readText } from "./kinds.js";
import { dropZone } from "./photos.js";
import { progress } from "./progress.js";
import { verdict } from "./verdict.js";

export const title = "Teach";
export const needs = "train";

const PICTURES = 8;
const CHUNK = 200; // texts of a message

export function render({ model, signal, reload, fail }) {
  const kind = kindOf(model);
  const known = () => model.servingRevision?.labels ?? model.draft?.labels ?? [];
  const groups = []; // of one label each
  const list = el("div", {});
  const line = status();
  const bar = progress();
  const outcome = el("section", { "aria-label": "Verdict", className: "card", hidden: true, tabIndex: -1 });
  const check = button("Check", () => run(true), { className: "primary" });
  const publish = button("Publish", () => run(false));
  const actions = el("div", { hidden: true },
    el("p", { className: "soft small" }, "Check learns without publishing and shows the verdict of the gate. Publish lets the new revision serve if the gate accepts it."),
    el("div", { className: "buttons" }, check, publish, button("Start again", clear)));
  let expectedRevision = "0"; // the one that the verdict shown compares with

  const changed = () => {
    expectedRevision = "0";
    outcome.hidden = true;
    check.className = "primary";
    publish.className = "";
    actions.hidden = !groups.length;
  };

  function clear() {
    groups.splice(0).forEach((group) => group.element.remove());
    changed();
    bar.end();
    line.say("");
  }

  function take(found) {
    for (const { file, path } of found) {
      const folder = path.split("/").slice(-2, -1)[0] ?? "";
      let group = groups.find((one) => one.folder === folder);
      if (!group) {
        group = newGroup(folder, { kind, known, changed, remove: () => {
          groups.splice(groups.indexOf(group), 1);
          group.element.remove();
          changed();
        } });
        groups.push(group);
        list.append(group.element);
      }
      group.files.push(file);
    }
    for (const group of groups) group.show();
    changed();
    line.say(`${count(groups.reduce((sum, { files }) => sum + files.length, 0), kind.photo)} of ${count(groups.length, "label")}.`);
    if (groups.length === 1 && !groups[0].folder) groups[0].name.focus();
  }

  // Photos by label; two groups may have one name.
  function byLabel() {
    const found = new Map();
    for (const { name, files } of groups) {
      const label = name.value.trim();
      if (!label) {
        name.focus();
        throw new Error(`Give each group of ${kind.photo}s a label.`);
      }
      found.set(label, [...(found.get(label) ?? []), ...files]);
    }
    return found;
  }

  async function run(validateOnly) {
    const busy = [check, publish];
    for (const one of busy) one.disabled = true;
    outcome.hidden = true;
    try {
      line.say("");
      const made = kind.typed ? textRequest : request;
      const [method, form] = await made(byLabel(), known(), { validateOnly, expectedRevision });
      bar.set("Uploading", 0);
      const accepted = await upload(`/v1/${model.name}:${method}`, form,
        (share) => bar.set(`Uploading: ${Math.round(100 * share)} %`, share), signal);
      const operation = await bar.follow(accepted, signal);
      if (!validateOnly && !operation.error) model = await reload();
      show(operation, validateOnly);
    } catch (error) {
      bar.end();
      fail(error, line.say);
    } finally {
      for (const one of busy) one.disabled = false;
    }
  }

  function show(operation, validateOnly) {
    const passed = !operation.error && !operation.response.gateFailures?.length;
    if (!validateOnly && passed) clear();
    if (validateOnly && passed) {
      expectedRevision = operation.response.oldRevision;
      check.className = "";
      publish.className = "primary";
    }
    outcome.replaceChildren(el("h2", {}, validateOnly ? "Verdict of the check" : "Result"), ...verdict(operation));
    outcome.hidden = false;
    outcome.focus();
  }

  if (!kind.accept) return [computed(model)];
  return [
    dropZone({ kind, text: `Drop or choose ${kind.photo}s of one label, or a folder with a folder for each label.`,
      folders: true, signal, take, fail: (error) => fail(error, line.say) }),
    kind.typed && lines(take),
    line, list, actions, bar.element, outcome,
  ].filter(Boolean);
}

// One label's inputs, with the name of their folder as the label that is proposed.
function newGroup(folder, { kind, known, changed, remove }) {
  const files = [];
  const id = `label-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const hint = el("p", { className: "soft small" });
  const pictures = el("div", { className: `strip ${kind.item}` });
  const name = el("input", { id, value: folder, autocomplete: "off", required: true, oninput: () => {
    changed();
    tell();
  } });
  const tell = () => {
    const is = known().includes(name.value.trim()) ? `a label of the model, which gets more ${kind.photo}s` : "a new label";
    hint.textContent = `${count(files.length, kind.photo)}${name.value.trim() ? ` · ${is}` : ""}`;
  };
  const show = () => {
    tell();
    const shown = pictures.children.length;
    pictures.append(...files.slice(shown, PICTURES).map((file) => kind.given(file)));
  };
  const element = el("div", { className: "card group" },
    el("div", { className: "buttons" },
      el("div", {}, el("label", { for: id }, "Label "), name),
      button("Remove", remove, { "aria-label": `Remove these ${kind.photo}s` })),
    hint, pictures);
  return { folder, files, name, element, show };
}

// Returns the method that adds photos by label, and its form; fields come before files.
function request(photos, known, { validateOnly, expectedRevision }) {
  const form = new FormData();
  const labels = [...photos.keys()];
  const single = labels.length === 1;
  for (const label of labels) form.append(single ? "label" : "labels", label);
  form.append("options.validateOnly", String(validateOnly));
  form.append("options.expectedRevision", expectedRevision);
  for (const [label, files] of photos) {
    for (const file of files) form.append(single ? "images" : label, file, file.name);
  }
  if (!single) return ["addClasses", form];
  return [known.includes(labels[0]) ? "addExamples" : "addClass", form];
}

// The same for texts, as a line of JSON for the fields and one for each CHUNK of texts.
async function textRequest(texts, known, { validateOnly, expectedRevision }) {
  const labels = [...texts.keys()];
  const single = labels.length === 1;
  const options = { validateOnly, expectedRevision };
  const messages = [{ config: single ? { label: labels[0], options } : { labels, options } }];
  for (const [label, files] of texts) {
    for (let first = 0; first < files.length; first += CHUNK) {
      const images = await Promise.all(files.slice(first, first + CHUNK).map(async (file) =>
        ({ displayName: file.name, input: { text: await readText(file) }, ...(single ? {} : { label }) })));
      messages.push({ images });
    }
  }
  const body = new Blob(messages.map((message) => `${JSON.stringify(message)}\n`), { type: "application/x-ndjson" });
  if (!single) return ["addClasses", body];
  return [known.includes(labels[0]) ? "addExamples" : "addClass", body];
}

// A field for several texts, one a line, which become a group without a label yet.
function lines(take) {
  const field = el("textarea", { id: "lines", rows: 4, required: true });
  let number = 0;
  return el("form", { className: "card", onsubmit: (event) => {
    event.preventDefault();
    const found = field.value.split(/\r?\n/).filter((text) => text.trim()).map((text) => {
      const name = `line ${++number}`;
      return { file: new File([text], name, { type: "text/plain" }), path: name };
    });
    if (found.length) take(found);
    field.value = "";
  } },
  el("label", { for: "lines" }, "Or paste texts of one label, one a line"), field,
  el("div", { className: "buttons" }, el("button", {}, "Add these lines")));
}
