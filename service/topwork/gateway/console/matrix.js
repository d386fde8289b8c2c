// Confusion matrix, whose cells open their photos; of many labels the most confused pairs.

import { button, count, el, percent } from "./dom.js";

const FULL = 20; // labels up to which all cells are shown
const PAIRS = 30; // the most confused ones, of more labels
const DEEPEST = 45; // percent of colour behind a number

// `noun` is the name of an input. `open` is called with a cell and its button; without it the cells open nothing.
export function matrix({ perLabel, confusion }, noun, open) {
  const size = perLabel.length;
  const cells = perLabel.map(({ label, images: all }, row) => perLabel.map((other, column) => {
    const images = confusion[row * size + column];
    return { label, predicted: other.label, images, share: images / Math.max(all, 1), isRight: row === column };
  }));
  const wrong = cells.flat().filter(({ images, isRight }) => images && !isRight);
  const worst = Math.max(...wrong.map(({ share }) => share), 0);
  const named = (cell) => `${count(cell.images, noun)} of ${cell.label} predicted as ${cell.predicted}`;

  function shown(cell, heat) {
    const box = el("td", { className: cell.images ? (cell.isRight ? "right" : "wrong") : "none" });
    box.style.setProperty("--heat", `${(DEEPEST * heat).toFixed()}%`);
    const texts = [el("b", {}, String(cell.images)), cell.images > 0 && el("small", {}, ` ${percent(cell.share, 0)}`)].filter(Boolean);
    if (open && cell.images) box.append(opener(cell, texts));
    else box.append(...texts);
    return box;
  }

  function opener(cell, texts) {
    const made = button([], () => open(cell, made), { "aria-label": named(cell), title: named(cell) });
    made.append(...texts);
    return made;
  }

  if (size > FULL) {
    const pairs = wrong.sort((a, b) => b.images - a.images).slice(0, PAIRS);
    return [el("p", { className: "soft small" }, `${count(wrong.length, "pair")} of labels are confused.${wrong.length > PAIRS ? ` The ${PAIRS} with the most ${noun}s:` : ""}`),
      el("ul", { className: "pairs" }, pairs.map((cell) => el("li", {}, open ? opener(cell, [named(cell)]) : named(cell))))];
  }
  return [el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Labels and predicted labels" },
    el("table", { className: "matrix" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Label, and predicted as"),
        perLabel.map(({ label }) => el("th", { scope: "col", title: label }, el("span", {}, label))))),
      el("tbody", {}, cells.map((row) => el("tr", {},
        el("th", { scope: "row", title: row[0].label }, el("span", {}, row[0].label)),
        row.map((cell) => shown(cell, cell.isRight ? cell.share : Math.sqrt(cell.share / (worst || 1)))))))))];
}
