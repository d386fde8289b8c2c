// Progress of an operation, live, and its end.

import { post, watch } from "./api.js";
import { button, el, status } from "./dom.js";

const STAGES = {
  CHANGE_STAGE_QUEUED: "Waiting",
  CHANGE_STAGE_EMBEDDING: "Embedding the images",
  CHANGE_STAGE_SOLVING: "Learning, and comparing with the old revision",
  CHANGE_STAGE_PUBLISHING: "Publishing",
  CHANGE_STAGE_DONE: "Done",
};

export function stage({ stage: name, done, total }) {
  const text = STAGES[name] ?? "Working";
  return total ? `${text}: ${done} of ${total}` : text;
}

// A bar with a line of text, hidden until it is used.
export function progress() {
  const bar = el("progress", { max: 1, "aria-label": "Progress" });
  const line = status();
  const actions = el("div", { className: "buttons" });
  const made = el("div", { className: "progress", hidden: true }, bar, line, actions);
  const set = (text, share) => {
    made.hidden = false;
    bar.hidden = false;
    if (share === undefined) bar.removeAttribute("value");
    else bar.value = share;
    if (line.textContent !== text) line.say(text);
  };
  const end = (text = "", failed = false) => {
    made.hidden = !text;
    bar.hidden = true;
    actions.replaceChildren();
    line.say(text, failed);
  };
  // Shows an operation until it is done, and returns its last state.
  const follow = async (operation, signal) => {
    actions.replaceChildren(button("Cancel the operation", () => cancel(operation.name).catch((error) => line.say(error.message, true))));
    let last = operation;
    for await (last of watch(operation.name, signal)) {
      const { done, total } = last.metadata;
      set(stage(last.metadata), total ? done / total : undefined);
    }
    end();
    return last;
  };
  return { element: made, set, end, follow };
}

export const cancel = (name) => post(`/v1/${name}:cancel`, {});
