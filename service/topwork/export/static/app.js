// Classify a photo, or the camera's picture, with model.onnx in this browser.

import * as ort from "./onnxruntime-web/ort.wasm.bundle.min.mjs";
import { plan, scale } from "./resize.js";

const PREDICTIONS = 5;

const element = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((found) => [found.id, found]),
);
let facts;
let session;
let camera = null; // the camera's stream while it is on
let newest = 0; // number of the newest photo: results of earlier ones are not shown
let address = ""; // of the photo that is shown

async function load() {
  ort.env.wasm.numThreads = 1; // more need headers that a static server rarely sends
  const options = { executionProviders: ["wasm"] };
  [facts, session] = await Promise.all([
    fetch("model.json").then((response) => response.json()),
    ort.InferenceSession.create("model.onnx", options),
  ]);
  document.title = element.model.textContent = facts.model;
  element.about.textContent = `Revision ${facts.revision}: ${facts.labels.join(", ")}`;
  element.origin.textContent = `Model made with Topwork, weights ${facts.weights_licence}; `
    + "runs in ONNX Runtime Web, MIT licence.";
  element.file.disabled = false;
  element.camera.disabled = !navigator.mediaDevices; // absent unless the page is on https or localhost
  say("Ready.");
}

function say(text, { error = false } = {}) {
  element.status.textContent = text;
  element.status.classList.toggle("error", error);
}

/** Return probabilities and unknown probability of a picture that a canvas can draw. */
async function classify(picture, width, height) {
  const part = plan(width, height, facts.preprocess);
  const canvas = new OffscreenCanvas(part.x.last - part.x.first, part.y.last - part.y.first);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // transparent parts become white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, -part.x.first, -part.y.first);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint8Array(scale(data, part, facts.preprocess));
  const { crop } = facts.preprocess;
  const image = new ort.Tensor("uint8", pixels, [1, crop, crop, 3]);
  const { probabilities, unknown } = await session.run({ image });
  return { probabilities: [...probabilities.data], unknown: unknown?.data[0] };
}

function show({ probabilities, unknown }) {
  const best = facts.labels
    .map((label, index) => ({ label, probability: probabilities[index] }))
    .sort((one, other) => other.probability - one.probability)
    .slice(0, PREDICTIONS);
  element.predictions.replaceChildren(...best.map(row));
  element.unknown.hidden = !(unknown >= facts.unknown_threshold);
}

function row({ label, probability }) {
  const item = document.createElement("li");
  const bar = text("span", "", "bar");
  const length = document.createElement("span");
  length.style.width = `${100 * probability}%`;
  bar.append(length);
  item.append(text("span", label, "label"), text("span", percent(probability), "probability"), bar);
  return item;
}

function text(tag, content, name) {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = name;
  return made;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function clear() {
  element.predictions.replaceChildren();
  element.unknown.hidden = true;
}

async function classifyFile(file) {
  if (!session || !file) return;
  stopCamera();
  const own = ++newest;
  clear();
  say(`Classifying ${file.name} …`);
  let photo;
  try {
    // As in the server: upright, and without the conversion of colours.
    photo = await createImageBitmap(file, {
      imageOrientation: "from-image", colorSpaceConversion: "none",
    });
  } catch {
    if (own === newest) {
      preview(null);
      say(`${file.name}: this browser cannot decode this file. Use JPEG, PNG or WebP.`, { error: true });
    }
    return;
  }
  try {
    const result = await classify(photo, photo.width, photo.height);
    if (own !== newest) return;
    preview(file);
    show(result);
    say(file.name);
  } finally {
    photo.close();
  }
}

function preview(file) {
  URL.revokeObjectURL(address);
  address = file ? URL.createObjectURL(file) : "";
  if (file) element.photo.src = address;
  element.photo.alt = file ? file.name : "";
  frame(file ? element.photo : element.hint);
}

/** Show one of the contents of the frame. */
function frame(content) {
  for (const each of [element.hint, element.photo, element.video]) each.hidden = each !== content;
  element.frame.classList.toggle("full", content !== element.hint);
}

async function startCamera() {
  const own = ++newest;
  clear();
  say("Starting the camera …");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`, { error: true });
    return;
  }
  if (own !== newest) { // a photo was chosen meanwhile
    for (const track of stream.getTracks()) track.stop();
    return;
  }
  camera = stream;
  element.video.srcObject = stream;
  frame(element.video);
  pressed(true);
  await element.video.play();
  say("Camera");
  while (camera === stream) {
    const result = await classify(element.video, element.video.videoWidth, element.video.videoHeight);
    if (camera === stream) show(result);
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  if (!camera) return;
  for (const track of camera.getTracks()) track.stop();
  camera = null;
  element.video.srcObject = null;
  frame(element.hint);
  pressed(false);
  clear();
  say("Ready.");
}

function pressed(on) {
  element.camera.setAttribute("aria-pressed", String(on));
  element.camera.textContent = on ? "Stop camera" : "Use camera";
}

function failed(error) {
  say(`Something is wrong: ${error.message ?? error}`, { error: true });
}

element.file.addEventListener("change", () => {
  classifyFile(element.file.files[0]).catch(failed);
  element.file.value = ""; // so that the same file can be chosen again
});
element.camera.addEventListener("click", () => {
  if (camera) stopCamera();
  else startCamera().catch(failed);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  element.frame.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element.frame.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  element.frame.classList.remove("over");
  classifyFile(event.dataTransfer.files[0]).catch(failed);
});
load().catch(failed);
