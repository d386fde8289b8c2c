// Operations of the model, newest first, live.

import { all } from "./api.js";
import { button, el, seconds, status, time, words } from "./dom.js";
import { cancel, stage } from "./progress.js";
import { verdict } from "./verdict.js";

export const title = "Operations";
export const needs = "train";

const POLL_MS = 1500;
const SHOWN = 100;

export function render({ model, signal, fail }) {
  const line = status();
  const list = el("ol", {});
  const entries = new Map(); // by name, so that what has not changed stays, and keeps the focus

  async function poll() {
    try {
      const operations = (await all("/v1/operations", "operations", { filter: `model = "${model.name}"` })).slice(-SHOWN).reverse();
      if (signal.aborted) return;
      const running = operations.filter(({ done }) => !done).length;
      const text = operations.length ? `${running || "None"} running, ${operations.length} in all.` : "There are none.";
      if (line.textContent !== text) line.say(text);
      for (const [name, { element }] of entries) {
        if (!operations.some((one) => one.name === name)) element.remove();
      }
      operations.forEach((operation, index) => {
        const known = entries.get(operation.name);
        const state = JSON.stringify([operation.done, operation.metadata.stage, operation.metadata.done]);
        if (known?.state === state) return;
        const element = entry(operation);
        if (known) known.element.replaceWith(element);
        else list.insertBefore(element, list.children[index] ?? null);
        entries.set(operation.name, { element, state });
      });
      setTimeout(poll, POLL_MS);
    } catch (error) {
      if (!signal.aborted) fail(error, line.say);
    }
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
