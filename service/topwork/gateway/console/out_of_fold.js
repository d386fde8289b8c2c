// Out-of-fold predictions of a revision: each example as a head saw it that was trained without it.

import { pages } from "./api.js";

// Yields the number of loaded examples and of all, and returns the rows, the most doubtful first.
export async function* load(model, revision, signal) {
  const rows = [];
  for await (const page of pages(`/v1/${model}/examples`, { revision }, signal)) {
    for (const { digest, displayName, label, labelProbability, predictions, mapPoint, suspect } of page.examples) {
      rows.push({ digest, name: displayName, label, own: labelProbability, predictions, point: mapPoint, suspect, doubt: rows.length });
    }
    yield [rows.length, page.totalSize];
  }
  return rows;
}

export const predicted = ({ predictions }) => predictions[0]?.label;
export const highest = ({ predictions }) => predictions[0]?.probability;
export const isMistake = (row) => row.predictions.length > 0 && predicted(row) !== row.label;

// Three probabilities are stored, and that of the own label; all others are at most a quarter.
const STORED = 3;
export const leastThreshold = (labels) => (labels.length > STORED ? 0.25 : 0);

function probability({ predictions, label, own }, wanted) {
  const found = predictions.find((one) => one.label === wanted);
  return found?.probability ?? (label === wanted ? own : 0);
}

// Sorts the examples by whether they have a label, and whether it is more probable than a threshold.
export function split(rows, label, threshold) {
  const found = { right: [], wrong: [], missed: [], rest: [] };
  for (const row of rows) {
    const isCalled = probability(row, label) > threshold;
    if (row.label === label) found[isCalled ? "right" : "missed"].push(row);
    else found[isCalled ? "wrong" : "rest"].push(row);
  }
  return found;
}

// Sorts the examples by whether the highest probability is above a threshold, and of the right label.
export function splitByHighest(rows, threshold) {
  const found = { right: [], wrong: [], below: [] };
  for (const row of rows) {
    if (highest(row) <= threshold) found.below.push(row);
    else found[isMistake(row) ? "wrong" : "right"].push(row);
  }
  return found;
}

const Z = 1.959963984540054;

// Returns the 95 % confidence interval of a proportion (Wilson 1927), as the report does.
export function wilson(successes, trials) {
  const share = successes / trials;
  const centre = (share + Z * Z / (2 * trials)) / (1 + Z * Z / trials);
  const spread = Math.sqrt(share * (1 - share) / trials + (Z / (2 * trials)) ** 2);
  const half = Z / (1 + Z * Z / trials) * spread;
  return [Math.min(share, Math.max(0, centre - half)), Math.max(share, Math.min(1, centre + half))];
}
