// Teach: photos of new labels, or more photos of known ones; the gate's verdict; publishing.

import { upload } from "./api.js";
import { button, count, el, status } from "./dom.js";
import { dropZone, picture } from "./photos.js";
import { progress } from "./progress.js";
import { verdict } from "./verdict.js";

export const title = "Teach";
export const needs = "train";

const PICTURES = 8;

export function render({ model, signal, reload, fail }) {
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
        group = newGroup(folder, { known, changed, remove: () => {
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
    line.say(`${count(groups.reduce((sum, { files }) => sum + files.length, 0), "photo")} of ${count(groups.length, "label")}.`);
    if (groups.length === 1 && !groups[0].folder) groups[0].name.focus();
  }

  // Photos by label; two groups may have one name.
  function byLabel() {
    const found = new Map();
    for (const { name, files } of groups) {
      const label = name.value.trim();
      if (!label) {
        name.focus();
        throw new Error("Give each group of photos a label.");
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
      const [method, form] = request(byLabel(), known(), { validateOnly, expectedRevision });
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

  return [
    dropZone({ text: "Drop or choose photos of one label, or a folder with a folder for each label.",
      folders: true, signal, take, fail: (error) => fail(error, line.say) }),
    line, list, actions, bar.element, outcome,
  ];
}

// One label's photos, with the name of their folder as the label that is proposed.
function newGroup(folder, { known, changed, remove }) {
  const files = [];
  const id = `label-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const hint = el("p", { className: "soft small" });
  const pictures = el("div", { className: "strip" });
  const name = el("input", { id, value: folder, autocomplete: "off", required: true, oninput: () => {
    changed();
    tell();
  } });
  const tell = () => {
    const is = known().includes(name.value.trim()) ? "a label of the model, which gets more photos" : "a new label";
    hint.textContent = `${count(files.length, "photo")}${name.value.trim() ? ` · ${is}` : ""}`;
  };
  const show = () => {
    tell();
    const shown = pictures.children.length;
    pictures.append(...files.slice(shown, PICTURES).map((file) => picture(file)));
  };
  const element = el("div", { className: "card group" },
    el("div", { className: "buttons" },
      el("div", {}, el("label", { for: id }, "Label "), name),
      button("Remove", remove, { "aria-label": "Remove these photos" })),
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
