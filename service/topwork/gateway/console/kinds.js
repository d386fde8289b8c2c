// Kinds of inputs: how the console takes, sends and shows those of a model, `inputKind`.

import { ApiError } from "./api.js";
import { el } from "./dom.js";

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const nothing = (text = "No preview") => el("span", { className: "no-picture" }, text);

// `item` and `photo` are the names of an input; `accept` those of the files that are taken, if any;
// `shown` returns an element for a stored preview (base64), and `given` one for a file.
const KINDS = {
  image: {
    item: "image",
    photo: "photo",
    accept: "image/*,.dcm",
    camera: true,
    shown: (preview, alt, properties = {}) => el("img", { src: `data:image/jpeg;base64,${preview}`, alt, ...properties }),
    given: picture,
  },
  text: {
    item: "text",
    photo: "text",
    accept: ".txt,text/plain",
    typed: true,
    shown: (preview) => excerpt(new TextDecoder().decode(bytes(preview))),
    given: textOf,
  },
  audio: {
    item: "recording",
    photo: "recording",
    accept: "audio/*",
    shown: (preview, alt) => el("audio", { controls: true, preload: "none", src: `data:audio/wav;base64,${preview}`, "aria-label": alt || "Recording" }),
    given: (file) => el("audio", { controls: true, src: URL.createObjectURL(file), "aria-label": file.name }),
  },
  embedding: { item: "embedding", photo: "embedding", shown: () => nothing(), given: (file) => nothing(file.name) },
};

export const kindOf = (model) => KINDS[model?.inputKind] ?? KINDS.image;

// An element for a stored input with a `preview`, which may be empty.
export function shown(model, preview, alt, properties) {
  return preview ? kindOf(model).shown(preview, alt, properties) : nothing(alt || undefined);
}

const excerpt = (text) => el("span", { className: "excerpt", dir: "auto" }, text);

// Returns the text of a file. Throws if it is not UTF-8, which the browser would repair in silence.
export async function readText(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch (error) {
    if (error instanceof TypeError) throw new ApiError(400, "INVALID_ARGUMENT", `${file.name} is not UTF-8.`);
    throw error;
  }
}

const LONGEST = 500; // characters of a text that is shown

function textOf(file) {
  const shown = excerpt("…");
  readText(file.slice(0, 4 * LONGEST + 4)).catch(() => file.slice(0, 4 * LONGEST).text())
    .then((text) => { shown.textContent = text.slice(0, LONGEST) || "(empty)"; });
  return shown;
}

// An <img> of a file, or its name where the browser cannot show the format.
function picture(file, properties = {}) {
  const url = URL.createObjectURL(file);
  const image = el("img", { src: url, alt: file.name, ...properties,
    onload: () => URL.revokeObjectURL(url),
    onerror: () => {
      URL.revokeObjectURL(url);
      image.replaceWith(nothing(`No preview of ${file.name}`));
    } });
  return image;
}
