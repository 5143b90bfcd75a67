// The server: JSON, events, and the key where it asks for one.

const KEY = "kdrt-api-key";

/** What the server refused, in its own sentence. */
export class ServerError extends Error {
  constructor(message, status, field) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/**
 * A response whose status is good. Throws ServerError with the server's sentence, or with one of
 * our own where nothing answers.
 */
async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer: it may have ended.", 0, null);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw toldBy(body, response.status);
}

function toldBy(body, status) {
  const told = body?.error;
  const message = told?.message ?? `The server answered with status ${status}.`;
  return new ServerError(message, status, told?.param ?? null);
}

/** What a form of this server needs to know: models, samplers, limits. */
export async function readFacts() {
  return (await call("playground/facts.json")).json();
}

/** How an image was made. `file` is a Blob. */
export async function readImage(file) {
  const options = { method: "POST", headers: { "content-type": "image/*" }, body: file };
  return (await call("playground/read", options)).json();
}

/**
 * Makes images: yields `[name, data]` as it goes on, the last of them `["result", answer]`.
 * Aborting `signal` closes the connection, which cancels the request on the server.
 */
export async function* generate(body, signal) {
  const response = await call("v1/generate", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const [name, data] of eventsOf(response.body)) {
    if (name === "error") throw toldBy(data, response.status);
    yield [name, data];
    if (name === "result") return;
  }
  throw new ServerError("The connection ended before the image was made.", 0, null);
}

// EventSource cannot send a body, so that the events are taken apart here.
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) return;
    pieces.push(value);
    // An image arrives in many pieces without a line's end: they are joined once.
    if (!value.includes("\n")) continue;
    const blocks = pieces.join("").split("\n\n");
    pieces = [blocks.pop()];
    // A block of comments keeps the connection alive while the request waits.
    for (const block of blocks) if (block.includes("data: ")) yield eventOf(block);
  }
}

function eventOf(block) {
  const lines = block.split("\n");
  const value = (name) => lines.find((line) => line.startsWith(name))?.slice(name.length) ?? "";
  return [value("event: "), JSON.parse(value("data: "))];
}

/** A Blob as a data URL, as the server takes images. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A Blob of base64. */
export function blobOf(base64, type) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type });
}
