// Calls of the HTTP/JSON API. The token lives in this module's memory only.

let token = "";

export const setToken = (value) => { token = value; };
export const hasToken = () => token !== "";

// An answer that is no success. `reason` is the stable identifier of the ErrorInfo.
export class ApiError extends Error {
  constructor(code, status, message, details = []) {
    super(message);
    this.code = code;
    this.status = status;
    this.details = details;
    this.reason = details.find((detail) => detail.reason)?.reason ?? "";
  }

  static of(code, text) {
    try {
      const { status, message, details } = JSON.parse(text).error;
      return new ApiError(code, status, message, details);
    } catch {
      return new ApiError(code, "UNKNOWN", `The server answered with status ${code}.`);
    }
  }
}

const UNREACHABLE = "The server cannot be reached.";
const authorization = () => (token ? { authorization: `Bearer ${token}` } : {});

async function send(method, path, { body, type, signal } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method, body, signal, credentials: "omit", cache: "no-store",
      headers: { ...authorization(), ...(type ? { "content-type": type } : {}) },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "UNAVAILABLE", UNREACHABLE);
  }
  if (!response.ok) throw ApiError.of(response.status, await response.text());
  return response;
}

export async function get(path, query = {}, signal = undefined) {
  const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== ""));
  return (await send("GET", parameters.size ? `${path}?${parameters}` : path, { signal })).json();
}

const sendTree = async (method, path, tree, signal) =>
  (await send(method, path, { body: JSON.stringify(tree), type: "application/json", signal })).json();

export const post = (path, tree, signal = undefined) => sendTree("POST", path, tree, signal);
export const patch = (path, tree, signal = undefined) => sendTree("PATCH", path, tree, signal);
export const remove = (path, signal = undefined) => send("DELETE", path, { signal });

// Sends a form, or a Blob with its type, and reports the sent share (0 to 1) to `progress`.
export function upload(path, body, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => progress(total ? loaded / total : 0);
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(ApiError.of(request.status, request.responseText));
    };
    request.onerror = () => reject(new ApiError(0, "UNAVAILABLE", UNREACHABLE));
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

// Yields the states of an operation until it is done (Server-Sent Events; EventSource cannot send a token).
export async function* watch(name, signal) {
  for (let failures = 0; ;) {
    try {
      for await (const { event, data } of events(await send("GET", `/v1/${name}:watch`, { signal }))) {
        if (event === "end") return;
        if (event === "failure") throw ApiError.of(0, data);
        const { operation } = JSON.parse(data);
        failures = 0;
        yield operation;
        if (operation.done) return;
      }
    } catch (error) {
      // A connection that ends early is opened again; a refusal is final.
      if (error.name === "AbortError" || (error instanceof ApiError && error.code) || ++failures > 5) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal?.throwIfAborted();
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").filter((line) => !line.startsWith(":"))
        .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      if (fields.data) yield fields;
    }
  }
}

// Yields the pages of a list.
export async function* pages(path, query = {}, signal = undefined) {
  let pageToken = "";
  do {
    const page = await get(path, { ...query, pageSize: 1000, pageToken }, signal);
    yield page;
    pageToken = page.nextPageToken;
  } while (pageToken);
}

// Returns the items of all pages.
export async function all(path, field, query = {}) {
  const found = [];
  for await (const page of pages(path, query)) found.push(...page[field]);
  return found;
}

// Returns the caller's highest role for a model by requests that change nothing. Without a model: the
// highest role for any model, and admin only for a caller with that role for all.
export async function roleFor(model) {
  const allowed = async (request) => {
    try {
      await request;
      return true;
    } catch (error) {
      if (error.status === "PERMISSION_DENIED") return false;
      if (["NOT_FOUND", "FAILED_PRECONDITION"].includes(error.status)) return true; // such as a draft
      throw error;
    }
  };
  const reads = model
    ? get("/v1/operations", { filter: `model = "${model.name}"`, pageSize: 1 })
    : get("/v1/backbones", { pageSize: 1 });
  if (!await allowed(reads)) return "classify";
  const revision = model?.servingRevision?.revision ?? "1";
  const dry = post(`/v1/${model?.name ?? "models/none"}:pinRevision`, { revision, validateOnly: true });
  return await allowed(dry) ? "admin" : "train";
}
