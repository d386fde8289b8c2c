// Operations of the model, newest first, live.

import { all } from "./api.js";
import { button, el, seconds, status, time, words } from "./dom.js";
import { cancel, stage } from "./progress.js";
import { verdict } from "./verdict.js";

export const title = "Operations";
export const needs = "train";

const POLL_MS = 1500;
const FULL_EVERY = 10;
const SHOWN = 100;

export function render({ model, signal, fail }) {
  const line = status();
  const list = el("ol", {});
  const entries = new Map(); // by name, so that what has not changed stays, and keeps the focus
  const found = (more) => all("/v1/operations", "operations", { filter: `model = "${model.name}"${more}` });
  let polls = 0;
  let before = "";

  // Asks for the running operations, and for all when others run than before, or now and then.
  async function poll() {
    try {
      const running = await found(" AND done = false");
      const names = running.map(({ name }) => name).join();
      const isFull = names !== before || polls++ % FULL_EVERY === 0;
      const shown = isFull ? (await found("")).slice(-SHOWN).reverse() : running;
      before = names;
      if (signal.aborted) return;
      if (isFull) place(shown);
      else shown.forEach(update);
      const text = entries.size ? `${running.length || "None"} running.` : "There are none.";
      if (line.textContent !== text) line.say(text);
    } catch (error) {
      if (signal.aborted) return;
      fail(error, line.say);
    }
    setTimeout(() => signal.aborted || poll(), POLL_MS);
  }

  function update(operation) {
    const known = entries.get(operation.name);
    const state = JSON.stringify([operation.done, operation.metadata.stage, operation.metadata.done]);
    if (known?.state === state) return;
    const element = entry(operation);
    known?.element.replaceWith(element);
    entries.set(operation.name, { element, state });
  }

  function place(operations) {
    operations.forEach(update);
    const names = new Set(operations.map(({ name }) => name));
    for (const [name, { element }] of entries) {
      if (names.has(name)) continue;
      element.remove();
      entries.delete(name);
    }
    operations.forEach(({ name }, index) => {
      const { element } = entries.get(name);
      if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
    });
  }

  function entry(operation) {
    const { metadata, done, error, response, name } = operation;
    const subject = [metadata.label, ...(metadata.labels ?? [])].filter(Boolean).join(", ");
    const outcome = done ? (error ? "failed" : metadata.validateOnly ? "checked" : "done") : stage(metadata);
    return el("li", { className: "card" },
      el("h2", {}, `${words(metadata.kind)}${metadata.validateOnly ? " (check)" : ""}${subject ? `: ${subject}` : ""}${metadata.newLabel ? ` to ${metadata.newLabel}` : ""}`,
        el("span", { className: `badge ${done ? (error ? "error" : "good") : ""}` }, outcome)),
      el("p", { className: "soft small" }, [time(metadata.createTime), seconds(metadata.elapsed), name.replace("operations/", "")].filter(Boolean).join(" · ")),
      !done && el("div", { className: "buttons" }, button("Cancel", () => cancel(name).catch((failure) => fail(failure, line.say)),
        { "aria-label": `Cancel ${words(metadata.kind)} ${subject}` })),
      error && el("p", { className: "error" }, error.message),
      (response || error?.details?.length > 0) && el("details", {}, el("summary", {}, "Result"), verdict(operation)));
  }

  poll();
  return [line, list];
}
