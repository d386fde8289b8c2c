// Shell of the console: sign-in, choice of the model, and one view a task.

import { ApiError, all, hasToken, roleFor, setToken } from "./api.js";
import * as classify from "./classify.js";
import { button, el, status } from "./dom.js";
import * as examples from "./examples.js";
import * as model from "./model.js";
import * as operations from "./operations.js";
import * as report from "./report.js";
import * as review from "./review.js";
import * as revisions from "./revisions.js";
import * as teach from "./teach.js";

const VIEWS = { classify, teach, review, examples, report, revisions, model, operations };
const ROLES = ["classify", "train", "admin"];

const main = document.querySelector("#main");
const nav = document.querySelector("#views");
const modelField = document.querySelector("#model-field");
const modelSelect = document.querySelector("#model");
const signOut = document.querySelector("#sign-out");

let models = [];
let role = "classify";
let leaving = new AbortController(); // aborted when the view is left

const current = () => models.find((model) => model.name === modelSelect.value);
const permits = (view) => ROLES.indexOf(role) >= ROLES.indexOf(view.needs);

// What a view gets: the model, the caller's role for it, a signal that ends with the view, and
// functions that load the models again, that open a view of a model, and that report an error.
function context() {
  return { model: current(), role, signal: leaving.signal, reload, open, fail };
}

function fail(error, say) {
  if (error.name === "AbortError") return;
  if (error.status === "UNAUTHENTICATED") askForToken(hasToken() ? error.message : "");
  else {
    say(error.message, true);
    if (!(error instanceof ApiError)) console.error(error);
  }
}

async function reload(chosen = modelSelect.value) {
  models = await all("/v1/models", "models");
  modelSelect.replaceChildren(...models.map(({ name }) =>
    el("option", { value: name, selected: name === chosen }, name.replace(/^models\//, ""))));
  modelField.hidden = !models.length;
  signOut.hidden = !hasToken();
  return current();
}

async function start() {
  try {
    await reload();
    await chooseModel();
  } catch (error) {
    const line = status();
    if (error.status !== "UNAUTHENTICATED") main.replaceChildren(line, button("Try again", start));
    fail(error, line.say);
  }
}

async function chooseModel(options) {
  const name = current()?.name;
  main.inert = nav.inert = true; // until the role is known, which decides on what is shown
  try {
    const found = await roleFor(current());
    if (current()?.name !== name) return; // another choice is under way
    role = found;
  } finally {
    main.inert = nav.inert = false;
  }
  show(options);
}

// Opens a view, whose `render` gets `state`, too.
async function open(name, view, state = {}) {
  await reload(name);
  history.replaceState(null, "", `#${view}`);
  await chooseModel({ focus: true, state });
}

// Returns elements in place of a view that cannot be shown.
function missing(view) {
  if (!current() && !view.withoutModel) {
    return [el("p", {}, "There is no model yet that you may use."),
      permits(model) && el("p", {}, el("a", { href: "#model" }, "Create one"), ".")].filter(Boolean);
  }
  if (view.needsRevision && !current().servingRevision) {
    return [el("p", {}, `${current().name} does not serve yet: it has too few labels. Teach it some.`)];
  }
  return null;
}

function show({ focus = false, state = {} } = {}) {
  leaving.abort();
  leaving = new AbortController();
  const wanted = location.hash.slice(1);
  const permitted = Object.entries(VIEWS).filter(([, view]) => permits(view));
  const [name, view] = permitted.find(([key]) => key === wanted) ?? permitted[0];
  nav.replaceChildren(...permitted.map(([key, { title }]) =>
    el("a", { href: `#${key}`, "aria-current": key === name && "page" }, title)));
  document.title = `${view.title} · Topwork`;
  const heading = el("h1", { tabIndex: -1 }, view.title);
  main.replaceChildren(heading, ...(missing(view) ?? view.render({ ...context(), ...state })));
  if (focus) heading.focus();
}

function askForToken(message) {
  leaving.abort();
  setToken("");
  models = [];
  nav.replaceChildren();
  modelField.hidden = signOut.hidden = true;
  document.title = "Sign in · Topwork";
  const line = status();
  const token = el("input", { id: "token", type: "password", required: true, autocomplete: "off", spellcheck: false });
  main.replaceChildren(el("form", { className: "card sign-in", onsubmit: async (event) => {
    event.preventDefault();
    setToken(token.value.trim());
    await start();
  } },
  el("h1", {}, "Sign in"),
  el("label", { for: "token" }, "Token"), token,
  el("p", { className: "soft small" }, "It stays in this page's memory: a reload forgets it."),
  line,
  el("div", { className: "buttons" }, el("button", { className: "primary" }, "Sign in"))));
  token.focus();
  if (message) line.say(message, true);
}

modelSelect.addEventListener("change", () => chooseModel().catch((error) => fail(error, (text) => main.prepend(text))));
signOut.addEventListener("click", () => askForToken(""));
addEventListener("hashchange", () => {
  if (location.hash === "#main") main.focus();
  else if (nav.firstChild) show({ focus: true });
});
// A file that is dropped beside a drop zone must not replace the page.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
start();
