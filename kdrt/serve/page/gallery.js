// Images that are being made, the one that is looked at, and those of this session.

import { blobOf } from "./api.js";

const MOST = 200; // images kept in memory

const $ = (id) => document.getElementById(id);

/** Previews and progress of a request that runs. */
export class Progress {
  constructor(images, width, height) {
    this.images = images;
    this.done = new Map();
    this.quarter = 0;
    this.tiles = Array.from({ length: images }, () => {
      const tile = document.createElement("div");
      tile.className = "tile";
      if (width && height) tile.style.setProperty("--ratio", width / height);
      return tile;
    });
    $("previews").replaceChildren(...this.tiles);
    $("progress").removeAttribute("value");
    $("told").textContent = "Waiting";
    $("running").hidden = false;
    $("view").hidden = $("empty").hidden = true;
    announce("Waiting");
  }

  step({ image, step, steps, preview }) {
    this.done.set(image, step);
    const made = [...this.done.values()].reduce((sum, each) => sum + each, 0);
    $("progress").max = steps * this.images;
    $("progress").value = made;
    $("told").textContent =
      this.images === 1
        ? `Step ${step} of ${steps}`
        : `${Math.round((100 * made) / (steps * this.images))} % of ${this.images} images`;
    if (preview) this.#preview(image, preview);
    const quarter = Math.floor((4 * made) / (steps * this.images));
    if (quarter > this.quarter && quarter < 4) announce(`${quarter * 25} percent`);
    this.quarter = quarter;
  }

  end() {
    $("running").hidden = true;
    $("previews").replaceChildren();
  }

  #preview(image, preview) {
    const tile = this.tiles[image];
    if (!tile) return;
    let picture = tile.querySelector("img");
    if (!picture) {
      picture = document.createElement("img");
      picture.alt = `Preview of image ${image + 1}`;
      tile.append(picture);
    }
    picture.src = `data:image/webp;base64,${preview}`;
  }
}

/** Says something to those who hear the page. */
export function announce(text) {
  $("live").textContent = text;
}

export class Gallery {
  constructor(labels) {
    this.labels = labels;
    this.entries = [];
    this.current = null;
  }

  /** Adds the images of an answer and shows the first. */
  add(answer, request, start) {
    const added = answer.images.map((each) => {
      const blob = blobOf(each.image, `image/${answer.output_format}`);
      const url = URL.createObjectURL(blob);
      const own = { ...request, model: answer.model, seed: each.seed, images_per_prompt: 1 };
      return { ...each, blob, url, request: own, start, format: answer.output_format };
    });
    for (const entry of added) entry.button = this.#button(entry);
    this.entries.unshift(...added);
    $("history-list").prepend(...added.map(({ button }) => inItem(button)));
    for (const old of this.entries.splice(MOST)) {
      URL.revokeObjectURL(old.url);
      old.button.parentElement.remove();
    }
    $("history").hidden = false;
    this.show(added[0]);
  }

  /** Looks at an image again, or at none. */
  show(entry = this.current) {
    this.current = entry;
    $("view").hidden = !entry;
    $("empty").hidden = Boolean(entry);
    if (!entry) return;
    const { prompt } = entry.request;
    const image = $("shown");
    image.src = entry.url;
    image.alt = prompt ? `Image of: ${prompt}` : "Image without a prompt";
    image.onload = () => {
      image.classList.toggle("grain", image.naturalWidth <= 128);
      image.classList.toggle("large", image.naturalHeight >= 400);
      $("shown-facts").textContent = this.#facts(entry, image);
    };
    $("shown-prompt").textContent = prompt;
    $("infotext").textContent = entry.infotext;
    $("download").href = entry.url;
    $("download").download = `kdrt-${entry.seed}.${entry.format === "jpeg" ? "jpg" : entry.format}`;
    for (const each of this.entries) {
      each.button.setAttribute("aria-current", String(each === entry));
    }
  }

  #facts({ request, seed, nsfw, start }, image) {
    const facts = [
      `${image.naturalWidth} × ${image.naturalHeight}`,
      this.labels[request.sampler] ?? request.sampler,
      this.labels[request.schedule] ?? request.schedule,
      request.steps && `${request.steps} steps`,
      request.guidance_scale !== undefined && `guidance ${request.guidance_scale}`,
      `seed ${seed}`,
      start && (start.mask ? "inpainted" : `from an image, strength ${start.strength}`),
      nsfw && "held back by the safety checker",
    ];
    return facts.filter(Boolean).join(" · ");
  }

  #button(entry) {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.src = entry.url;
    image.alt = `${entry.request.prompt || "no prompt"}, seed ${entry.seed}`;
    button.title = image.alt;
    button.append(image);
    button.addEventListener("click", () => this.show(entry));
    return button;
  }
}

function inItem(element) {
  const item = document.createElement("li");
  item.append(element);
  return item;
}
