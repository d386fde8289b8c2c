// Grid of tiles that are selected by click, range or keyboard, and the toolbar for those selected.

import { button, el } from "./dom.js";
import { shown } from "./kinds.js";

// `actions` are the elements of the toolbar; `changed` gets the selected items.
export function selection(name, model, actions, changed = () => {}) {
  const grid = el("ul", { className: `tiles ${model.inputKind}`, "aria-label": name, onkeydown: arrows, onclick: range });
  const number = el("span", { role: "status" });
  const toolbar = el("div", { className: "toolbar buttons", role: "group", "aria-label": `Selected ${name.toLowerCase()}`, hidden: true },
    number, actions, button("Select none", () => selectAll(false)));
  const boxes = () => [...grid.querySelectorAll("input")];
  const selected = () => boxes().filter((box) => box.checked).map((box) => box.item);
  let latest = null; // the box of the latest click

  function tell() {
    const chosen = selected();
    toolbar.hidden = !chosen.length;
    number.textContent = `${chosen.length} selected`;
    changed(chosen);
  }

  function clear() {
    grid.replaceChildren();
    latest = null;
    tell();
  }

  function selectAll(checked) {
    for (const box of boxes()) box.checked = checked && !box.disabled;
    tell();
  }

  // Adds an item with a `preview`, its name, and elements below the preview.
  function add(item, title, texts, disabled = false) {
    const box = el("input", { type: "checkbox", onchange: tell, disabled });
    box.item = item;
    grid.append(el("li", {}, el("label", { className: "tile", title },
      box,
      shown(model, item.preview, title, { loading: "lazy" }),
      texts)));
  }

  // The arrow keys move the focus through the grid, Home and End to its ends.
  function arrows(event) {
    const all = boxes().filter((box) => !box.disabled);
    const index = all.indexOf(event.target);
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: index + columns, ArrowUp: index - columns,
      Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || index < 0) return;
    event.preventDefault();
    all[next]?.focus();
  }

  // Shift and a click select all from the item that was clicked before.
  function range(event) {
    const box = event.target;
    if (!box.item) return;
    const all = boxes();
    if (event.shiftKey && latest) {
      const [from, to] = [all.indexOf(latest), all.indexOf(box)].sort((a, b) => a - b);
      for (const inner of all.slice(from, to + 1)) inner.checked = box.checked && !inner.disabled;
      tell();
    }
    latest = box;
  }

  return { grid, toolbar, add, clear, selectAll, selected };
}
