// A mask, painted over an image: a list of things that were done, so that each can be undone.

const KEY_STEP = 0.25; // of the brush, for a press of an arrow key
const FINEST = 2048; // pixels of the longer side: the server brings a mask to the image's size
const COARSEST = 512; // of the shorter side, so that a brush is round on small images too

export class MaskPainter {
  /**
   * @param canvas lies over the image.
   * @param options.brush gives the brush's width as a fraction of the image's shorter side.
   * @param options.isErasing tells whether the brush erases.
   */
  constructor(canvas, { brush, isErasing }) {
    this.canvas = canvas;
    this.brush = brush;
    this.isErasing = isErasing;
    this.actions = [];
    this.original = null; // the file of a mask that was loaded and not changed since
    this.stroke = null;
    this.cursor = null;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => this.#end());
    }
    canvas.addEventListener("pointerleave", () => this.#setCursor(null));
    canvas.addEventListener("blur", () => this.#setCursor(null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Begins anew, for an image of this size in pixels. */
  reset(width, height) {
    const scale = Math.min(
      Math.max(1, COARSEST / Math.min(width, height)),
      FINEST / Math.max(width, height),
    );
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.actions = [];
    this.original = null;
    this.layer = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    this.context = this.layer.getContext("2d", { willReadFrequently: true });
    this.#draw();
  }

  /** Takes a mask that was sent before; white is what is made anew. */
  async load(blob) {
    const bitmap = await createImageBitmap(blob);
    const layer = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = layer.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, layer.width, layer.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data[i + 3] = pixels.data[i];
      pixels.data.fill(255, i, i + 3);
    }
    context.putImageData(pixels, 0, 0);
    this.actions = [{ kind: "image", image: layer }];
    this.original = blob;
    this.#replay();
  }

  undo() {
    this.actions.pop();
    this.original = null;
    this.#replay();
  }

  invert() {
    this.#do({ kind: "invert" });
  }

  clear() {
    this.#do({ kind: "clear" });
  }

  /** The mask as a PNG, white where it was painted; null where nothing was. */
  async blob() {
    if (this.original) return this.original;
    const { width, height } = this.canvas;
    if (!width || !this.#isPainted()) return null;
    const flat = new OffscreenCanvas(width, height);
    const context = flat.getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    context.drawImage(this.layer, 0, 0);
    return flat.convertToBlob({ type: "image/png" });
  }

  #isPainted() {
    const { width, height } = this.canvas;
    const { data } = this.context.getImageData(0, 0, width, height);
    for (let i = 3; i < data.length; i += 4) if (data[i]) return true;
    return false;
  }

  #do(action) {
    this.actions.push(action);
    this.original = null;
    apply(this.context, action);
    this.#draw();
  }

  #replay() {
    this.context.clearRect(0, 0, this.layer.width, this.layer.height);
    for (const action of this.actions) apply(this.context, action);
    this.#draw();
  }

  #draw() {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.globalAlpha = 0.6;
    context.drawImage(this.layer, 0, 0);
    context.globalAlpha = 1;
    context.globalCompositeOperation = "source-in";
    context.fillStyle = getComputedStyle(this.canvas).getPropertyValue("--mask");
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    if (this.cursor) this.#drawCursor(context);
  }

  // A ring in two colours, which shows on any image.
  #drawCursor(context) {
    const pixel = this.canvas.width / Math.max(1, this.canvas.clientWidth);
    for (const [color, radius] of [["black", this.#width() / 2], ["white", this.#width() / 2 - pixel]]) {
      context.beginPath();
      context.arc(...this.cursor, Math.max(radius, pixel / 2), 0, 2 * Math.PI);
      context.lineWidth = pixel;
      context.strokeStyle = color;
      context.stroke();
    }
  }

  #width() {
    return Math.max(1, this.brush() * Math.min(this.canvas.width, this.canvas.height));
  }

  #point(event) {
    const { canvas } = this;
    return [
      (event.offsetX / canvas.clientWidth) * canvas.width,
      (event.offsetY / canvas.clientHeight) * canvas.height,
    ];
  }

  #newStroke(point) {
    return { kind: "stroke", points: [point], width: this.#width(), erases: this.isErasing() };
  }

  #begin(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = this.#point(event);
    this.stroke = this.#newStroke(this.cursor);
    this.#do(this.stroke);
  }

  #move(event) {
    if (!event.isPrimary) return;
    if (this.stroke) {
      this.stroke.points.push(this.#point(event));
      apply(this.context, this.stroke);
    }
    this.#setCursor(this.#point(event));
  }

  #end() {
    this.stroke = null;
  }

  #setCursor(point) {
    this.cursor = point;
    this.#draw();
  }

  #key(event) {
    const { width, height } = this.canvas;
    const [x, y] = this.cursor ?? [width / 2, height / 2];
    const step = Math.max(1, this.#width() * KEY_STEP);
    const moves = {
      ArrowLeft: [-step, 0],
      ArrowRight: [step, 0],
      ArrowUp: [0, -step],
      ArrowDown: [0, step],
    };
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.undo();
    } else if (event.key === " ") {
      this.cursor = [x, y];
      this.#do(this.#newStroke(this.cursor));
    } else if (event.key in moves) {
      const [right, down] = moves[event.key];
      this.#setCursor([
        Math.min(Math.max(x + right, 0), width),
        Math.min(Math.max(y + down, 0), height),
      ]);
    } else {
      return;
    }
    event.preventDefault();
  }
}

// Applying a stroke again paints it over itself, which changes nothing but its soft edge.
function apply(context, action) {
  const { width, height } = context.canvas;
  context.save();
  context.fillStyle = context.strokeStyle = "white";
  if (action.kind === "image") {
    context.drawImage(action.image, 0, 0, width, height);
  } else if (action.kind === "clear") {
    context.clearRect(0, 0, width, height);
  } else if (action.kind === "invert") {
    context.globalCompositeOperation = "source-out";
    context.fillRect(0, 0, width, height);
  } else {
    context.globalCompositeOperation = action.erases ? "destination-out" : "source-over";
    context.lineWidth = action.width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...action.points[0]);
    // A line to where it begins is a dot.
    for (const point of action.points) context.lineTo(...point);
    context.stroke();
  }
  context.restore();
}
