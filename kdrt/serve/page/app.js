// The page: what happens when something is pressed, dropped or chosen.

import { ServerError, generate, keepKey, readFacts, readImage } from "./api.js";
import { FieldError, RequestForm, clearErrors, showError } from "./form.js";
import { Gallery, Progress, announce } from "./gallery.js";
import { StartImage, startFields } from "./start.js";

const $ = (id) => document.getElementById(id);
const isNarrow = matchMedia("(max-width: 52rem)");

let running = null; // the AbortController of what is being made

/** Does something that needs the server; asks for a key where it does, and does it again. */
async function withKey(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForKey(error.message);
    }
  }
}

function askForKey(message) {
  const dialog = $("key-dialog");
  $("key-error").textContent = message;
  $("key-error").hidden = !$("key").value;
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => {
      if (dialog.returnValue !== "key") {
        reject(new ServerError("This server needs a key: load the page again to give one.", 0, null));
        return;
      }
      keepKey($("key").value.trim());
      resolve();
    };
  });
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-dialog").close("key");
});
$("key-dialog").addEventListener("cancel", () => ($("key-dialog").returnValue = ""));

function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function told(error) {
  if (error instanceof FieldError || error instanceof ServerError) {
    showError(error.message, error.field);
    return;
  }
  showError("This page failed; the browser's console says why.", null);
  throw error;
}

async function start() {
  $("settings").open = !isNarrow.matches;
  const facts = await withKey(readFacts);
  const form = new RequestForm(facts);
  const labels = [...facts.samplers, ...facts.schedules].map(({ name, label }) => [name, label]);
  const gallery = new Gallery(Object.fromEntries(labels));
  const startImage = new StartImage((width, height) => {
    form.setSize(...form.sizeFor(width, height));
  });
  startImage.refused = () => showError("this file is no image that this browser reads", "image");
  $("model-name").textContent = facts.models.length === 1 ? facts.models[0].name : "";

  async function make() {
    if (running) return;
    notify("");
    const controller = (running = new AbortController());
    let progress = null;
    try {
      const request = form.read();
      const state = form.model.takes_image ? await startImage.state() : null;
      const body = { ...request, ...(await startFields(state)) };
      setRunning(true);
      progress = new Progress(request.images_per_prompt ?? 1, request.width, request.height);
      if (isNarrow.matches) $("stage").scrollIntoView();
      await withKey(async () => {
        for await (const [name, data] of generate(body, controller.signal)) {
          if (name === "step") progress.step(data);
          if (name === "result") {
            gallery.add(data, request, state);
            notify(data.warnings.join(" "));
            const many = data.images.length > 1 ? `${data.images.length} images are` : "Image is";
            announce(`${many} ready, seed ${data.images[0].seed}`);
          }
        }
      });
    } catch (error) {
      gallery.show();
      if (error.name === "AbortError") {
        notify("Cancelled.");
      } else {
        announce("");
        setRunning(false);
        told(error);
      }
    } finally {
      progress?.end();
      running = null;
      setRunning(false);
    }
  }

  /** Shows the settings of an image in the form. */
  async function take(entry) {
    form.fill(entry.request);
    if (entry.start) {
      await startImage.choose(entry.start.blob, entry.start);
      form.setSize(entry.request.width ?? "", entry.request.height ?? "");
    } else {
      startImage.remove();
    }
  }

  async function read(file) {
    clearErrors();
    try {
      const { fields, left_out: leftOut, model } = await withKey(() => readImage(file));
      form.fill({ ...fields, model: model ?? form.model.name });
      startImage.remove();
      const lost = Object.entries(leftOut).map(([key, value]) => `${key} (${value})`);
      notify(
        "The settings of the image are in the form." +
          (lost.length ? ` Not taken over: ${lost.join(", ")}.` : ""),
      );
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      notify(sentence(error.message));
    }
  }

  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    make();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    make();
  });
  $("cancel").addEventListener("click", () => {
    running?.abort();
    $("make").focus();
  });
  $("again").addEventListener("click", async () => {
    if (running) return;
    await take(gallery.current);
    await make();
  });
  $("take").addEventListener("click", async () => {
    await take(gallery.current);
    notify("The settings of the image are in the form.");
  });
  $("as-start").addEventListener("click", async () => {
    await startImage.choose(gallery.current.blob);
    if (isNarrow.matches) $("start").scrollIntoView();
    $("paint").focus({ preventScroll: true });
  });
  $("read-file").addEventListener("change", async () => {
    const [file] = $("read-file").files;
    $("read-file").value = "";
    if (file) await read(file);
  });
  takeDrops({ read, begin: (file) => startImage.choose(file).catch(startImage.refused) });
  $("make").disabled = false;
}

function setRunning(isRunning) {
  $("make").setAttribute("aria-disabled", String(isRunning));
  $("cancel").hidden = !isRunning;
}

function sentence(text) {
  const end = /[.!?]$/.test(text) ? "" : ".";
  return text.charAt(0).toUpperCase() + text.slice(1) + end;
}

/** Files that are dropped: on the image to begin with they are that, anywhere else they are read. */
function takeDrops({ read, begin }) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const isForStart = (event) => event.target.closest?.("#start") !== null;
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = isForStart(event);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) $("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) (isForStart(event) ? begin : read)(file);
  });
}

start().catch(told);
