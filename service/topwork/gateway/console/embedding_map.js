// Embedding map as in the report, whose marks are photos: a click or Enter shows them.

import { capital, el, svg } from "./dom.js";
import { isMistake, predicted } from "./out_of_fold.js";

const WIDTH = 640;
const HEIGHT = 460;
const MARGIN = 24;
const COLOURED = 8; // labels with a colour and a shape of their own: those with the most mistakes
const NEAR = 12; // photos that a click shows
const LONGEST = 18;
const LINE = 24;

const SHAPES = [ // of about equal area, around the photo's place
  "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "m-3.6-3.6h7.2v7.2h-7.2z", "m0-5l4.8 8.4h-9.6z", "m0-5.6l5 5.6l-5 5.6l-5-5.6z",
  "m0 5l4.8-8.4h-9.6z", "m-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z", "m-5.4-2.2h10.8v4.4h-10.8z", "m-2.2-5.4h4.4v10.8h-4.4z",
];
const REST = "m-2.4 0a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0-4.8 0";
const RING = "m-7 0a7 7 0 1 0 14 0a7 7 0 1 0-14 0";
const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

// `noun` is the name of an input. `open` is called with rows, the clicked one first, and the element that opens them.
export function embeddingMap(rows, labels, noun, open) {
  const mistakes = new Map(labels.map((label) => [label, 0]));
  for (const row of rows) if (isMistake(row)) mistakes.set(row.label, mistakes.get(row.label) + 1);
  const coloured = [...labels].sort((a, b) => mistakes.get(b) - mistakes.get(a)).slice(0, COLOURED);
  const styles = new Map(labels.filter((label) => coloured.includes(label)).map((label, style) => [label, style]));
  const marks = rows.filter(({ point }) => point).map((row) => {
    const [x, y] = [MARGIN + row.point.x * (WIDTH - 2 * MARGIN), MARGIN + row.point.y * (HEIGHT - 2 * MARGIN)];
    const style = styles.get(row.label);
    const element = svg("path", { class: style === undefined ? "mark rest" : `mark k${style}`, d: `M${x.toFixed(1)} ${y.toFixed(1)}${SHAPES[style] ?? REST}`,
      role: "button", tabindex: -1, "aria-label": described(row), onfocus: () => point(mark) });
    const mark = { row, x, y, style: style ?? -1, element };
    return mark;
  }).sort((a, b) => a.style - b.style);
  const line = el("p", { className: "status" });
  let current = marks[0];
  current.element.setAttribute("tabindex", 0);

  function point(mark) {
    current.element.setAttribute("tabindex", -1);
    current = mark;
    mark.element.setAttribute("tabindex", 0);
    line.textContent = described(mark.row);
  }

  const byDistance = (x, y, from = marks) => from.map((mark) => [Math.hypot(mark.x - x, mark.y - y), mark]).sort(([a], [b]) => a - b).map(([, mark]) => mark);

  function show(mark) {
    const near = byDistance(mark.x, mark.y).filter((other) => other !== mark);
    open([mark, ...near].slice(0, NEAR).map(({ row }) => row), mark.element);
  }

  // A finger is larger than a mark: the nearest one is meant.
  function click(event) {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    const [mark] = byDistance(place.x, place.y);
    point(mark);
    show(mark);
  }

  // An arrow key goes to the nearest photo in its direction.
  function keys(event) {
    if (event.key === "Enter" || event.key === " ") show(current);
    else if (DIRECTIONS[event.key]) {
      const [right, down] = DIRECTIONS[event.key];
      const ahead = marks.filter((mark) => {
        const [x, y] = [mark.x - current.x, mark.y - current.y];
        return right * x + down * y > Math.max(1e-6, Math.abs(down * x + right * y));
      });
      byDistance(current.x, current.y, ahead)[0]?.element.focus();
    } else return;
    event.preventDefault();
  }

  const picture = svg("svg", { class: "embedding-map", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "Embedding map", onclick: click, onkeydown: keys },
    ...marks.map(({ element }) => element),
    svg("path", { class: "ring", d: marks.filter(({ row }) => isMistake(row)).map(({ x, y }) => `M${x.toFixed(1)} ${y.toFixed(1)}${RING}`).join("") }),
    ...names(marks, styles));
  return [picture, line,
    el("ul", { className: "legend" },
      [...styles].map(([label, style]) => el("li", {}, sample(`k${style}`, SHAPES[style]), el("span", {}, label))),
      labels.length > styles.size && el("li", {}, sample("rest", REST), "all others"),
      el("li", {}, sample("ring", RING), "misclassified")),
    el("p", { className: "soft small" }, `${marks.length < rows.length ? `A sample of ${marks.length} of ${rows.length} ${noun}s. ` : ""}${capital(noun)}s that the backbone finds similar are near each other. A click shows the nearest ${noun} and those around it; with the keyboard, the arrow keys go from ${noun} to ${noun}, and Enter shows them.`)];
}

function described(row) {
  const name = row.name ? `, ${row.name}` : "";
  return isMistake(row) ? `${row.label}, predicted as ${predicted(row)}${name}` : `${row.label}${name}`;
}

const sample = (style, shape) => svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": true }, svg("path", { class: style, d: `M0 0${shape}` }));

// Names of the coloured labels at the medians of their photos, moved down where they would overlap.
function names(marks, styles) {
  const taken = [];
  return [...styles].map(([label, style]) => {
    const own = marks.filter((mark) => mark.style === style);
    if (!own.length) return null;
    const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
    const text = label.length > LONGEST ? `${label.slice(0, LONGEST - 1)}…` : label;
    const half = Math.min(WIDTH / 2, 8 * text.length);
    const x = Math.min(Math.max(median(own.map((mark) => mark.x)), half), WIDTH - half);
    let y = median(own.map((mark) => mark.y));
    while (taken.some((other) => Math.abs(other.y - y) < LINE && Math.abs(other.x - x) < other.half + half)) y += LINE;
    taken.push({ x, y, half });
    return svg("text", { class: `k${style}`, x, y, "aria-hidden": true }, text);
  }).filter(Boolean);
}
