// The image to begin with, and the mask over it.

import { dataUrl } from "./api.js";
import { MaskPainter } from "./mask.js";

// What the server has by default.
const STRENGTH = 0.8;
const MASKED_STRENGTH = 1;

const $ = (id) => document.getElementById(id);

export class StartImage {
  /** @param sized called with the width and height in pixels of an image that was chosen. */
  constructor(sized) {
    this.blob = null;
    this.hasOwnStrength = false;
    this.sized = sized;
    this.painter = new MaskPainter($("mask"), {
      brush: () => $("brush").value / 100,
      isErasing: () => $("erase").getAttribute("aria-pressed") === "true",
    });
    $("image").addEventListener("change", async () => {
      const [file] = $("image").files;
      $("image").value = ""; // so that the same file can be chosen again
      if (file) await this.choose(file).catch(() => this.refused());
    });
    $("start-remove").addEventListener("click", () => {
      this.remove();
      $("image").focus();
    });
    $("paint").addEventListener("click", () => {
      const isOpening = $("mask-tools").hidden;
      if (isOpening && !this.hasOwnStrength) this.#setStrength(MASKED_STRENGTH);
      this.#showTools(isOpening);
    });
    $("erase").addEventListener("click", () => {
      const isErasing = $("erase").getAttribute("aria-pressed") === "true";
      $("erase").setAttribute("aria-pressed", String(!isErasing));
    });
    for (const name of ["undo", "invert", "clear"]) {
      $(name).addEventListener("click", () => this.painter[name]());
    }
    $("strength").addEventListener("input", () => {
      this.hasOwnStrength = true;
      this.#tellStrength();
    });
    this.#tellStrength();
    this.refused = () => {};
  }

  /** Begins with this image. Rejects where it is none. */
  async choose(blob, { strength, mask } = {}) {
    const image = $("start-image");
    const url = URL.createObjectURL(blob);
    const before = image.src;
    image.src = url;
    try {
      await image.decode();
    } catch (error) {
      URL.revokeObjectURL(url);
      if (this.blob) image.src = before;
      else image.removeAttribute("src");
      throw error;
    }
    if (this.blob) URL.revokeObjectURL(before);
    this.blob = blob;
    image.classList.toggle("grain", image.naturalWidth <= 128);
    this.painter.reset(image.naturalWidth, image.naturalHeight);
    if (mask) await this.painter.load(mask);
    $("start-empty").hidden = true;
    $("start-chosen").hidden = false;
    $("start").open = true;
    this.hasOwnStrength = strength !== undefined;
    this.#setStrength(strength ?? STRENGTH);
    this.#showTools(Boolean(mask));
    this.sized(image.naturalWidth, image.naturalHeight);
  }

  remove() {
    if (this.blob) URL.revokeObjectURL($("start-image").src);
    this.blob = null;
    $("start-image").removeAttribute("src");
    $("start-empty").hidden = false;
    $("start-chosen").hidden = true;
  }

  /** What is there, to be kept with the images that are made of it; null where nothing is. */
  async state() {
    if (!this.blob) return null;
    return {
      blob: this.blob,
      mask: await this.painter.blob(),
      strength: Number($("strength").value),
    };
  }

  #showTools(isShown) {
    $("mask-tools").hidden = !isShown;
    $("paint").setAttribute("aria-expanded", String(isShown));
    $("paint").textContent = isShown ? "Done painting" : "Paint a mask";
    // The mask stays in sight; only while painting it takes the pointer.
    $("mask").hidden = false;
    $("mask").inert = !isShown;
  }

  #setStrength(strength) {
    $("strength").value = strength;
    this.#tellStrength();
  }

  #tellStrength() {
    $("strength-told").textContent = Number($("strength").value).toFixed(2);
  }
}

/** The fields of a request for a state of `StartImage`. */
export async function startFields(state) {
  if (!state) return {};
  const fields = { image: await dataUrl(state.blob), strength: state.strength };
  if (state.mask) fields.mask_image = await dataUrl(state.mask);
  return fields;
}
