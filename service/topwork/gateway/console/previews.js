// Tiles of examples with their predictions; a preview is loaded when its tile comes into view.

import { get } from "./api.js";
import { button, el, percent } from "./dom.js";
import { kindOf, shown } from "./kinds.js";
import { highest, isMistake, predicted } from "./out_of_fold.js";

const PAGE = 48;
const AHEAD = "400px";

// Returns a function that loads the preview of a row, once; after a failure again.
export function previews(model, revision, signal) {
  const known = new Map();
  return ({ digest, label }) => {
    if (!known.has(digest)) {
      const loading = get(`/v1/${model}/examples/${digest}`, { label, revision }, signal).then((found) => found.preview);
      loading.catch(() => known.delete(digest));
      known.set(digest, loading);
    }
    return known.get(digest);
  };
}

// A list of rows, a page at first. `show` gives it other rows.
export function tiles(name, model, load, fail) {
  let rest = [];
  const list = el("ul", { className: `tiles ${model.inputKind}`, "aria-label": name });
  const more = el("div", { className: "buttons" }, button("Show more", () => next()));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      fill(target);
    }
  }, { rootMargin: AHEAD });

  async function fill(box) {
    try {
      const found = await load(box.row);
      box.replaceChildren(shown(model, found, found ? box.row.name : ""));
    } catch (error) {
      fail(error, (text) => box.replaceChildren(el("span", { className: "no-picture" }, text)));
    }
  }

  function tile(row) {
    const box = el("div", { className: "picture" });
    box.row = row;
    seen.observe(box);
    return el("li", { title: row.name }, box, el("span", {}, row.label),
      el("span", { className: `small ${isMistake(row) ? "error" : "soft"}` },
        row.predictions.length ? [isMistake(row) && ["predicted as ", el("bdi", {}, predicted(row)), ", "], percent(highest(row), 0)].flat() : "not evaluated"),
      row.name && el("span", { className: "small soft name" }, row.name));
  }

  function next() {
    const first = list.children.length;
    list.append(...rest.splice(0, PAGE).map(tile));
    more.hidden = !rest.length;
    if (first) {
      list.children[first].tabIndex = -1;
      list.children[first].focus();
    }
  }

  const show = (rows) => {
    seen.disconnect();
    list.replaceChildren();
    rest = [...rows];
    next();
  };
  return { elements: [list, more], show };
}

// A panel of photos, or other inputs, that a click opens; it takes the focus, and gives it back.
export function panel(model, load, fail) {
  const name = `${kindOf(model).photo}s`;
  const { elements, show } = tiles(`${name[0].toUpperCase()}${name.slice(1)}`, model, load, fail);
  const heading = el("h3", { tabIndex: -1 });
  let origin = null;
  const close = () => {
    made.hidden = true;
    (origin?.isConnected ? origin : made.parentElement.querySelector("h2")).focus();
  };
  const made = el("section", { className: "card photos", hidden: true, "aria-label": name,
    onkeydown: (event) => { if (event.key === "Escape") close(); } },
  el("div", { className: "buttons" }, heading, button("Close", close, { "aria-label": `Close the ${name}` })), elements);
  const open = (title, rows, from) => {
    origin = from;
    heading.textContent = title;
    made.hidden = false;
    show(rows);
    heading.focus();
    made.scrollIntoView({ block: "nearest" });
  };
  return { element: made, open };
}
