// The gate's verdict on a change: recall and accuracy before and after, with 95 % intervals.

import { count, el, percent, table } from "./dom.js";

// Returns elements for a finished operation, dry run or not.
export function verdict(operation) {
  const { response, error } = operation;
  if (error) return rejected(error);
  const { revision, comparison, gateFailures = [], skippedImages = [], conflicts = [], findings = [] } = response;
  const isDry = operation.metadata.validateOnly;
  return [
    headline(response, isDry),
    reasons(gateFailures),
    ...(comparison ? compared(comparison) : []),
    skippedImages.length > 0 && listed(`${count(skippedImages.length, "example")} left out`,
      skippedImages.map((image) => `${image.displayName}: ${image.error.message}`)),
    conflicts.length > 0 && listed(`${count(conflicts.length, "example")} that other labels have, too`,
      conflicts.map((one) => `${one.displayName} ${one.exact ? "equals" : "nearly equals"} ${one.otherName || "an example"} of ${one.label}`)),
    findings.length > 0 && listed(`${count(findings.length, "finding")} of the audit`, findings.map(({ message }) => message)),
    revision?.metrics && el("p", { className: "soft small" }, accuracy(revision.metrics)),
  ].filter(Boolean);
}

function headline({ revision, missingLabels, gateFailures = [], comparison }, isDry) {
  if (gateFailures.length) return el("p", { className: "alarm" }, "The gate would reject this revision.");
  if (missingLabels) return el("p", { className: "good" }, `Done. The model serves once it has ${count(missingLabels, "more label", "more labels")}.`);
  if (!comparison && !isDry) return el("p", { className: "good" }, "Done.");
  return el("p", { className: "good" }, isDry ? "The gate would let this revision serve." : `Revision ${revision.revision} serves.`);
}

// A failed operation; the gate's details have the comparison.
function rejected({ message, details = [] }) {
  const comparison = details.find((detail) => detail["@type"]?.endsWith("topwork.v1.Comparison"));
  const isGate = details.some((detail) => detail.reason === "GATE_FAILED");
  return [
    el("p", { className: "alarm" }, isGate ? `Rejected; the old revision serves. ${message}` : message),
    ...(comparison ? compared(comparison) : []),
  ];
}

const reasons = (failures) => failures.length > 0 && el("ul", { className: "reasons" }, failures.map((text) => el("li", {}, text)));

const listed = (summary, texts) => el("details", {}, el("summary", {}, summary), el("ul", { className: "reasons small" }, texts.map((text) => el("li", {}, text))));

export const accuracy = ({ accuracy: share, accuracyLow, accuracyHigh, images }) =>
  `Accuracy ${percent(share)} (95 % interval ${percent(accuracyLow)} to ${percent(accuracyHigh)}) by cross-validation on ${count(images, "example")}.`;

export function compared(comparison) {
  const { accuracyBefore, accuracyAfter, drop, dropLow, dropHigh, images, labels, taught, taughtLabels = [] } = comparison;
  const learnt = taughtLabels.length ? taughtLabels : [taught].filter(Boolean);
  const isTaught = new Set(learnt.map(({ label }) => label));
  const rows = [
    ...learnt.map((row) => {
      const before = labels.find(({ label }) => label === row.label);
      return [row.label, row.images, before ? percent(before.recallBefore) : "new",
        percent(row.recall), `${percent(row.recallLow)} to ${percent(row.recallHigh)}`];
    }),
    ...labels.filter(({ label }) => !isTaught.has(label)).map((row) =>
      [row.label, row.images, percent(row.recallBefore), percent(row.recallAfter), ""]),
  ];
  return [
    images > 0 && el("p", {}, `Accuracy on the old labels: ${percent(accuracyBefore)} before, ${percent(accuracyAfter)} after. Loss: ${percent(drop)} (95 % interval ${percent(dropLow)} to ${percent(dropHigh)}).`),
    table("Recall by label", ["Label", "Examples", "Before", "After", "95 % interval"], rows),
  ].filter(Boolean);
}
