// Classify: labels of an input, why the model says so, and the training examples that are nearest.

import { ApiError, post, upload } from "./api.js";
import { button, capital, el, percent, status } from "./dom.js";
import { kindOf, readText, shown } from "./kinds.js";
import { dropZone } from "./photos.js";

export const title = "Classify";
export const needs = "classify";
export const needsRevision = true;

const FOR = [230, 60, 0];
const AGAINST = [0, 90, 230];
const MOST_ALPHA = 200;

export function render({ model, role, signal, fail }) {
  const kind = kindOf(model);
  const line = status();
  const strip = el("ul", { className: "strip", "aria-label": `${capital(kind.item)}s` });
  const result = el("section", { className: "columns", "aria-label": "Result", hidden: true });

  async function send(method, file, fields = {}) {
    if (kind.typed) {
      const input = { text: await readText(file) };
      const tree = method === "classify" ? { inputs: [input] } : { input };
      return post(`/v1/${model.name}:${method}`, { ...tree, ...fields }, signal);
    }
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("image", file);
    return upload(`/v1/${model.name}:${method}`, form, () => {}, signal);
  }

  async function take(found) {
    for (const { file } of found) {
      if (signal.aborted) return;
      line.say(`Classifying ${file.name} …`);
      try {
        const answer = await send("classify", file);
        const [{ classification, answerId, error }] = answer.results;
        if (error) throw new ApiError(400, "INVALID_ARGUMENT", `${file.name}: ${error.message}`);
        const show = () => {
          line.say(`${file.name}: answered by revision ${answer.revision}.`);
          for (const other of strip.querySelectorAll("button")) other.removeAttribute("aria-current");
          chooser.setAttribute("aria-current", "true");
          result.hidden = false;
          result.replaceChildren(...details(file, classification, answerId));
        };
        const chooser = button([], show);
        if (kind.camera) chooser.append(kind.given(file, { alt: "" })); // a button may have a picture, but no player
        chooser.append(el("span", {}, classification.predictions[0].label),
          el("span", { className: "soft small" }, file.name));
        strip.prepend(el("li", {}, chooser));
        strip.hidden = strip.children.length < 2;
        show();
      } catch (error) {
        fail(error, line.say);
        if (error.status === "UNAUTHENTICATED") return;
      }
    }
  }

  function details(file, classification, answerId) {
    const map = el("canvas", { className: "map", hidden: true });
    const box = el("input", { type: "checkbox", id: "show-map", checked: true,
      onchange: () => { map.hidden = !box.checked; } });
    const toggle = el("label", { className: "check", for: "show-map", hidden: true }, box, "Show the evidence");
    const caption = el("p", { className: "soft small", role: "status" }, "Explaining …");
    const near = el("section", { className: "near", hidden: true });
    const rows = el("ol", { className: "bars" });
    const explain = async (label) => {
      for (const row of rows.children) {
        row.firstChild.setAttribute("aria-pressed", String(row.dataset.label === label));
      }
      try {
        drawExplanation(await send("explain", file, { label }), { model, map, box, toggle, caption, near });
      } catch (error) {
        fail(error, (text) => { caption.textContent = text; });
      }
    };
    for (const { label, probability } of classification.predictions) {
      const bar = el("span", { className: "bar" }, el("span", {}));
      bar.firstChild.style.width = `${100 * probability}%`;
      const row = button([], () => explain(label), { title: "Show the evidence for this label" });
      row.append(el("span", { className: "label" }, label), el("span", { className: "number" }, percent(probability)), bar);
      rows.append(el("li", { "data-label": label }, row));
    }
    explain(classification.predictions[0].label);
    return [
      el("figure", {},
        el("div", { className: kind.item === "image" ? "photo" : "given" }, kind.given(file), map),
        el("figcaption", {}, caption,
          toggle)),
      el("div", {}, ...unknown(classification), rows,
        answerId && correction({ model, role, answerId, fail }), near),
    ];
  }
  if (!kind.accept) return [computed(model)];
  return [
    kind.typed && typing(take),
    dropZone({ kind, text: `Drop${kind.camera ? ", paste" : ""} or choose ${kind.camera ? "photos" : `files with a ${kind.item} each`} to see what the model makes of them.`, signal, take,
      fail: (error) => fail(error, line.say) }),
    line, strip, result,
  ].filter(Boolean);
}

// A field for a text, which is classified as a file would be.
function typing(take) {
  const text = el("textarea", { id: "text", rows: 4, required: true });
  let number = 0;
  return el("form", { className: "card", onsubmit: (event) => {
    event.preventDefault();
    const name = `text ${++number}`;
    take([{ file: new File([text.value], name, { type: "text/plain" }), path: name }]);
  } },
  el("label", { for: "text" }, "Text"), text,
  el("div", { className: "buttons" }, el("button", { className: "primary" }, "Classify")));
}

// In place of a form for inputs that only programs have.
export const computed = (model) => el("p", {}, `${model.name} takes embeddings, which programs compute: they are sent by the API or the command line.`);

// Says that an answer is wrong. The server gives answers an id while the review queue is on.
function correction({ model, role, answerId, fail }) {
  const line = status();
  const label = el("input", { id: "right-label", list: "known-labels", required: true, autocomplete: "off" });
  const form = el("form", { className: "buttons", hidden: true, onsubmit: async (event) => {
    event.preventDefault();
    try {
      const { suggestedLabel } = await post(`/v1/${model.name}:correctAnswer`, { answerId, label: label.value.trim() });
      line.say(`Thank you. It waits as ${suggestedLabel} in the review queue; the model has not changed.`);
      if (role !== "classify") line.append(" ", el("a", { href: "#review" }, "Review it"));
    } catch (error) {
      fail(error, line.say);
    }
  } },
  el("div", {}, el("label", { for: "right-label" }, "Right label "), label,
    el("datalist", { id: "known-labels" }, model.servingRevision.labels.map((value) => el("option", { value })))),
  el("button", {}, "Send"));
  const wrong = button("This is wrong", () => {
    wrong.hidden = true;
    form.hidden = false;
    label.focus();
  });
  return el("div", { className: "correction" }, wrong, form, line);
}

function unknown({ isUnknown, unknownProbability }) {
  if (unknownProbability === undefined || unknownProbability === null) return [];
  const text = percent(unknownProbability);
  return [isUnknown
    ? el("p", { className: "alarm", id: "unknown" }, `Probably none of the labels: unknown with ${text}.`)
    : el("p", { className: "soft small" }, `Unknown: ${text}`)];
}

function drawExplanation({ label, map: evidence, mapUnavailable, neighbours = [] }, { model, map, box, toggle, caption, near }) {
  toggle.hidden = !evidence;
  if (evidence) {
    draw(map, evidence);
    map.hidden = !box.checked;
    caption.textContent = `Evidence for ${label} in red, against it in blue.`;
  } else {
    map.hidden = true;
    caption.textContent = mapUnavailable || "There is no map.";
  }
  near.hidden = !neighbours.length;
  near.replaceChildren(el("h2", {}, "Nearest examples"),
    el("ul", { className: `tiles small ${model.inputKind}` }, neighbours.map((example) => el("li", { title: example.displayName },
      shown(model, example.preview, example.preview ? example.displayName : ""),
      el("span", {}, example.label),
      el("span", { className: "soft small" }, `similarity ${example.similarity.toFixed(2)}`)))));
}

// Draws a pixel a position; the browser scales them smoothly over the part of the image that they cover.
function draw(map, { rows, columns, values, region }) {
  map.width = columns;
  map.height = rows;
  const most = Math.max(...values.map(Math.abs), 1e-12);
  const pixels = new ImageData(columns, rows);
  values.forEach((value, index) => {
    const strength = Math.abs(value) / most;
    pixels.data.set([...(value > 0 ? FOR : AGAINST), strength * MOST_ALPHA], 4 * index);
  });
  map.getContext("2d").putImageData(pixels, 0, 0);
  const { left = 0, top = 0, right = 1, bottom = 1 } = region ?? {};
  for (const [name, share] of Object.entries({ left, top, width: right - left, height: bottom - top })) {
    map.style[name] = `${100 * share}%`;
  }
}
