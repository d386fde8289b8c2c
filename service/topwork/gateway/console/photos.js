// Photos, and files of other kinds, from the disk, the clipboard, a drop, or the camera.

import { button, el } from "./dom.js";

const JUNK = /^(\.|Thumbs\.db$|desktop\.ini$)/i;
const JUNK_FOLDERS = /(^|\/)(__MACOSX|@eaDir|\.[^/]*)\//;

const wanted = ({ file, path }) => !JUNK.test(file.name) && !JUNK_FOLDERS.test(path);

// Returns [{file, path}] of an input's files; `path` has the folders' names.
export function ofInput(input) {
  const found = [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
  input.value = "";
  return found.filter(wanted);
}

// Returns [{file, path}] of dropped files and folders.
export async function ofDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const plain = [...transfer.files].map((file) => ({ file, path: file.name }));
  if (!entries.some((entry) => entry.isDirectory)) return plain.filter(wanted);
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found.filter(wanted).sort((a, b) => (a.path < b.path ? -1 : 1));
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, path: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) { // a call returns at most 100 entries
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return;
    for (const inner of entries) await walk(inner, found);
  }
}

// A zone that takes the files of a kind in every way. Calls `take` with [{file, path}].
export function dropZone({ kind, text, folders = false, signal, take, fail }) {
  const camera = el("div", { className: "camera" });
  const input = (id, label, properties) => {
    const made = el("input", { id, type: "file", className: "file", ...properties,
      onchange: () => take(ofInput(made)) });
    return [made, el("label", { for: id, className: "button" }, label)];
  };
  const zone = el("div", { className: "zone" },
    el("p", {}, text),
    el("div", { className: "buttons" },
      input("choose-files", kind.camera ? "Choose photos" : "Choose files", { accept: kind.accept, multiple: true }),
      folders && input("choose-folder", "Choose a folder", { webkitdirectory: true }),
      kind.camera && (navigator.mediaDevices?.getUserMedia
        ? button("Use the camera", () => openCamera(camera, take, signal, fail))
        : input("take-photo", "Take a photo", { accept: "image/*", capture: "environment" }))),
    camera);
  const drop = async (event) => {
    zone.classList.remove("over");
    try {
      const found = await ofDrop(event.dataTransfer);
      if (found.length) take(found);
    } catch (error) {
      fail(error);
    }
  };
  zone.addEventListener("dragover", () => zone.classList.add("over"));
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  addEventListener("drop", drop, { signal });
  addEventListener("paste", ({ clipboardData }) => {
    const found = [...clipboardData.files].map((file) => ({ file, path: file.name }));
    if (found.length) take(found);
  }, { signal });
  return zone;
}

async function openCamera(box, take, signal, fail) {
  if (box.firstChild) return;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    fail(new Error(`The camera cannot be used: ${error.message}`));
    return;
  }
  const video = el("video", { muted: true, playsInline: true, srcObject: stream, "aria-label": "Picture of the camera" });
  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    box.replaceChildren();
  };
  if (signal.aborted) return close();
  signal.addEventListener("abort", close);
  let number = 0;
  const shoot = () => {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      const name = `camera-${new Date().toISOString().replaceAll(":", "-")}-${++number}.jpg`;
      take([{ file: new File([blob], name, { type: "image/jpeg" }), path: name }]);
    }, "image/jpeg", 0.95);
  };
  const shutter = button("Take the photo", shoot, { className: "primary", disabled: true });
  box.replaceChildren(video, el("div", { className: "buttons" }, shutter, button("Close the camera", close)));
  await video.play(); // before it there is no picture to take
  shutter.disabled = false;
  shutter.focus();
}
