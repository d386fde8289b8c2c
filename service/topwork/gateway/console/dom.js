// Elements and texts. All data becomes text nodes or properties, never markup.

const ATTRIBUTES = /^(aria-|data-|role$|for$|list$|colspan$|scope$|dir$|webkitdirectory$|capture$)/;

// Returns an element with properties (or attributes), listeners ("onclick") and children.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (ATTRIBUTES.test(name)) made.setAttribute(name, value === true ? "" : value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// Returns an SVG element; its properties are attributes.
export function svg(tag, properties = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits).replace("-", "\u2212")}\u00a0%`;

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

export const time = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "");

export const seconds = (duration) => (duration ? `${parseFloat(duration).toFixed(1)} s` : "");

export const capital = (text) => text[0].toUpperCase() + text.slice(1);

// "add_class" and "CHANGE_KIND_ADD_CLASS" -> "add class"
export const words = (name) => name.replace(/^CHANGE_(KIND|STAGE)_/, "").toLowerCase().replaceAll("_", " ");

// A value of a filter.
export const quoted = (text) => `"${text.replace(/["\\]/g, "\\$&")}"`;

export function button(text, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, text);
}

// Saves a file that the page has made.
export function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// A paragraph that screen readers announce when its text changes.
export function status(properties = {}) {
  const made = el("p", { className: "status", role: "status", ...properties });
  made.say = (text, failed = false) => {
    made.textContent = text;
    made.classList.toggle("error", failed);
  };
  return made;
}

// A table with a caption, column heads, and rows whose first cell is their head.
export function table(caption, heads, rows) {
  return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    el("table", {},
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.map(([first, ...others]) =>
        el("tr", {}, el("th", { scope: "row" }, first), others.map((cell) => el("td", {}, cell)))))));
}

// Asks in a modal dialog; resolves to the key of the chosen action, or "". `fields` are elements of its form.
export function ask(question, explanation, actions, fields = []) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-labelledby": "question", onclose: () => {
      dialog.remove();
      resolve(dialog.returnValue);
    } },
    el("form", { method: "dialog" },
      el("h2", { id: "question" }, question),
      el("p", {}, explanation),
      fields,
      el("div", { className: "buttons" },
        Object.entries(actions).map(([value, text], index) => el("button", { value, className: index ? "" : "primary" }, text)),
        el("button", { value: "", formNoValidate: true, autofocus: !fields.length }, "Cancel"))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Resolves to true if the user agrees.
export const confirm = async (question, explanation, action) => await ask(question, explanation, { yes: action }) === "yes";
