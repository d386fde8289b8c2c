// Thresholds: precision, recall and specificity of a label, or coverage and accuracy of all answers.

import { button, capital, count, el, percent, table } from "./dom.js";
import { leastThreshold, split, splitByHighest, wilson } from "./out_of_fold.js";

// `noun` is the name of an input. `open` is called with a title, rows and the button that opens them.
export function thresholds(rows, labels, noun, open) {
  const label = el("select", { id: "threshold-label", onchange: choose },
    el("option", { value: "" }, "the predicted label"), labels.map((name) => el("option", { value: name }, name)));
  const slider = el("input", { id: "threshold", type: "range", max: 0.99, step: 0.01, oninput: show });
  const value = el("output", { htmlFor: "threshold" });
  const hint = el("p", { className: "soft small" });
  const result = el("div", { className: "measures" });

  function choose() {
    const least = label.value ? leastThreshold(labels) : 0;
    slider.min = least;
    hint.textContent = !label.value
      ? "Answers with a lower probability are left to a person: the coverage is the share of the others."
      : `${capital(noun)}s count as ${label.value} if that probability is above the threshold, whatever else is probable.${least ? ` Thresholds begin at ${least}: the stored probabilities are exact above.` : ""}`;
    show();
  }

  function show() {
    const threshold = Number(slider.value);
    value.textContent = threshold.toFixed(2);
    const [measures, lists] = label.value ? ofLabel(label.value, threshold) : ofAll(threshold);
    result.replaceChildren(
      table("At this threshold, out of fold", ["Measure", "Value (95 % interval)", `${capital(noun)}s`], measures.map(measure)),
      el("div", { className: "buttons" }, lists.filter(([, found]) => found.length).map(([text, found]) => {
        const made = button(`Show ${text}`, () => open(text, found, made));
        return made;
      })));
  }

  function ofLabel(name, threshold) {
    const { right, wrong, missed, rest } = split(rows, name, threshold);
    return [[
      ["Recall (sensitivity)", right.length, right.length + missed.length],
      ["Precision", right.length, right.length + wrong.length],
      ["Specificity", rest.length, rest.length + wrong.length],
    ], [
      [`${count(missed.length, `missed ${noun}`)} of ${name}`, missed],
      [`${count(wrong.length, noun)} of other labels`, wrong],
    ]];
  }

  function ofAll(threshold) {
    const { right, wrong, below } = splitByHighest(rows, threshold);
    const above = right.length + wrong.length;
    return [[["Coverage", above, rows.length], ["Accuracy of these", right.length, above]],
      [[`${count(wrong.length, "mistake")} above the threshold`, wrong], [`${count(below.length, noun)} below it`, below]]];
  }

  slider.min = 0;
  slider.value = 0.5;
  choose();
  return [
    el("div", { className: "buttons filters" },
      el("div", {}, el("label", { for: "threshold-label" }, "Probability of "), label),
      el("div", { className: "slider" }, el("label", { for: "threshold" }, "Threshold "), value, slider)),
    hint, result,
  ];
}

function measure([name, part, all]) {
  if (!all) return [name, "–", "0 of 0"];
  const [low, high] = wilson(part, all);
  return [name, `${percent(part / all)} (${(100 * low).toFixed(1)} to ${percent(high)})`, `${part} of ${all}`];
}
