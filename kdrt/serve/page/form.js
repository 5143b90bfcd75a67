// The form: from its fields to a request and back, and what is wrong with which.

/** Something that a person wrote that is no request. */
export class FieldError extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

const NUMBERS = ["width", "height", "steps", "guidance_scale", "seed", "images_per_prompt"];
const TEXTS = ["prompt", "negative_prompt", "sampler", "schedule", "model"];
const ELSEWHERE = ["image", "mask_image", "strength", "lora"]; // read by name below, or by app.js

/** Where an error's field is called something else than its control. */
const CONTROLS = {
  lora: "loras",
  mask_image: "mask",
  sampler_options: "sampler", // which the name of a sampler may stand for
  size: "width",
};

const SHAPES = [
  ["Square 1:1", 1],
  ["Landscape 3:2", 3 / 2],
  ["Portrait 2:3", 2 / 3],
  ["Wide 16:9", 16 / 9],
  ["Tall 9:16", 9 / 16],
];

const $ = (id) => document.getElementById(id);

export class RequestForm {
  /** @param facts what the server said of itself, see `readFacts`. */
  constructor(facts) {
    this.facts = facts;
    fillSelect($("model"), facts.models.map(({ name }) => [name, name]));
    fillSelect($("sampler"), facts.samplers.map(({ name, label }) => [name, label]));
    fillSelect($("schedule"), facts.schedules.map(({ name, label }) => [name, label]));
    fillSelect($("shape"), [...SHAPES.map(([label], i) => [String(i), label]), ["own", "Own"]]);
    for (const { name, meaning } of facts.schedules) {
      $("schedule").querySelector(`option[value="${CSS.escape(name)}"]`).title = meaning;
    }
    $("model-field").hidden = facts.models.length === 1;
    $("model").addEventListener("change", () => this.#modelChanged());
    $("shape").addEventListener("change", () => this.#shapeChosen());
    for (const id of ["width", "height"]) $(id).addEventListener("input", () => this.#nameShape());
    $("seed").addEventListener("input", () => ($("random").checked = $("seed").value === ""));
    $("random").addEventListener("change", () => {
      if ($("random").checked) $("seed").value = "";
      else $("seed").focus();
    });
    $("form").addEventListener("input", (event) => clearError(event.target.closest("[id]")));
    this.reset();
  }

  get model() {
    return this.facts.models.find(({ name }) => name === $("model").value);
  }

  /** All fields as this server has them by default. */
  reset() {
    const { defaults } = this.facts;
    for (const id of ["prompt", "negative_prompt", "further", "seed"]) $(id).value = "";
    $("random").checked = true;
    $("steps").value = defaults.steps;
    $("images_per_prompt").value = 1;
    choose($("sampler"), defaults.sampler);
    choose($("schedule"), defaults.schedule);
    $("steps").max = this.facts.limits.steps;
    $("images_per_prompt").max = this.facts.limits.images;
    this.#modelChanged();
  }

  /** Shows a request. Fields that have no control are written as JSON. */
  fill(fields) {
    this.reset();
    if (this.facts.models.some(({ name }) => name === fields.model)) {
      $("model").value = fields.model;
      this.#modelChanged();
    }
    const further = {};
    for (const [name, value] of Object.entries(fields)) {
      if (name === "model" || ELSEWHERE.includes(name)) continue;
      if (name === "sampler" || name === "schedule") choose($(name), value);
      else if ([...TEXTS, ...NUMBERS].includes(name) && typeof value !== "object") {
        $(name).value = value;
      } else if (value !== null) further[name] = value;
    }
    $("random").checked = $("seed").value === "";
    if (Object.keys(further).length) {
      $("further").value = JSON.stringify(further, null, 1);
      $("more").open = true;
    }
    for (const box of $("loras").querySelectorAll("input[type=checkbox]")) {
      box.checked = box.value in (fields.lora ?? {});
      if (box.checked) scaleOf(box).value = fields.lora[box.value];
    }
    this.#nameShape();
  }

  /** The size of images, as the form has it. */
  setSize(width, height) {
    $("width").value = width;
    $("height").value = height;
    this.#nameShape();
  }

  /**
   * The request that is written there, without images. Throws FieldError.
   */
  read() {
    clearErrors();
    const request = {};
    for (const name of TEXTS) if ($(name).value !== "") request[name] = $(name).value;
    request.prompt ??= "";
    for (const name of NUMBERS) {
      const value = numberIn($(name));
      if (value !== null) request[name] = value;
    }
    if (request.seed > Number.MAX_SAFE_INTEGER) {
      throw new FieldError(`seed can be up to ${Number.MAX_SAFE_INTEGER} on this page`, "seed");
    }
    const lora = {};
    for (const box of $("loras").querySelectorAll("input[type=checkbox]:checked")) {
      lora[box.value] = numberIn(scaleOf(box), "the scale of a LoRA") ?? 1;
    }
    if (Object.keys(lora).length) request.lora = lora;
    return { ...request, ...furtherFields(request) };
  }

  /** A size of the model's area and of an image's shape, for an image that is too large. */
  sizeFor(width, height) {
    const { limits } = this.facts;
    const model = this.model;
    const usual = model.width * model.height;
    const isLarge = width * height > Math.min(limits.pixels, 2 * usual);
    return isLarge ? sizeOf(model, width / height) : [width, height].map((side) => {
      return Math.max(model.multiple, Math.round(side / model.multiple) * model.multiple);
    });
  }

  #modelChanged() {
    const model = this.model;
    for (const id of ["width", "height"]) $(id).step = model.multiple;
    this.setSize(model.width, model.height);
    $("guidance_scale").value = model.guidance;
    $("start").hidden = !model.takes_image;
    $("loras").hidden = !model.loras.length;
    $("loras").replaceChildren($("loras").querySelector("legend"), ...model.loras.map(loraRow));
  }

  #shapeChosen() {
    const shape = SHAPES[$("shape").value];
    if (shape) this.setSize(...sizeOf(this.model, shape[1]));
    else $("width").focus();
  }

  #nameShape() {
    const size = `${$("width").value}x${$("height").value}`;
    const index = SHAPES.findIndex(([, ratio]) => sizeOf(this.model, ratio).join("x") === size);
    $("shape").value = index < 0 ? "own" : String(index);
  }
}

// Of about the model's own area: what it was trained at.
function sizeOf({ width, height, multiple }, ratio) {
  if (ratio === width / height) return [width, height];
  const unit = Math.min(width, height) >= 512 ? Math.max(64, multiple) : multiple;
  const round = (side) => Math.max(unit, Math.round(side / unit) * unit);
  const area = width * height;
  return [round(Math.sqrt(area * ratio)), round(Math.sqrt(area / ratio))];
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
}

// By name or label; a name that is not listed, such as one that stands for options too, is added.
function choose(select, value) {
  const options = [...select.options];
  const known = options.find((option) => option.value === value || option.label === value);
  if (!known) select.add(new Option(value, value));
  select.value = known ? known.value : value;
}

function loraRow(name) {
  const row = document.createElement("div");
  row.className = "lora";
  const label = document.createElement("label");
  label.className = "check";
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = name;
  label.append(box, name);
  const scale = document.createElement("input");
  Object.assign(scale, { type: "number", step: "0.05", value: "1", inputMode: "decimal" });
  scale.setAttribute("aria-label", `Scale of ${name}`);
  row.append(label, scale);
  return row;
}

function scaleOf(box) {
  return box.closest(".lora").querySelector("input[type=number]");
}

function numberIn(input, name = input.name) {
  if (input.validity.badInput) throw new FieldError(`${name} must be a number`, input.id || "lora");
  return input.value === "" ? null : Number(input.value);
}

function furtherFields(request) {
  const text = $("further").value.trim();
  if (!text) return {};
  let fields;
  try {
    fields = JSON.parse(text);
  } catch (error) {
    throw new FieldError(`this is no JSON: ${error.message}`, "further");
  }
  if (fields === null || typeof fields !== "object" || Array.isArray(fields)) {
    throw new FieldError('this must be an object, as in {"guidance_rescale": 0.7}', "further");
  }
  const taken = Object.keys(fields).find((name) => name in request || ELSEWHERE.includes(name));
  if (taken) throw new FieldError(`${taken} has a place of its own in this form`, "further");
  return fields;
}

/** Shows what is wrong beside the field that it is about, or above the settings. */
export function showError(message, field) {
  const control = controlOf(field ?? /^\w+/.exec(message)?.[0] ?? "");
  if (!control) {
    $("error").textContent = message;
    $("error").hidden = false;
    return;
  }
  for (let box = control.closest("details"); box; box = box.parentElement.closest("details")) {
    box.open = true;
  }
  clearError(control);
  const told = document.createElement("p");
  told.className = "error";
  told.id = `${control.id}-error`;
  told.setAttribute("role", "alert");
  told.textContent = message;
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", told.id);
  (control.closest(".field, .file, .canvas-frame") ?? control).append(told);
  control.focus();
}

function controlOf(name) {
  const further = $("further");
  if (name === "further" || (name && further.value.includes(`"${name}"`))) return further;
  const control = $(CONTROLS[name] ?? name);
  return control?.matches("#form :is(input, select, textarea, #loras, #mask)") ? control : null;
}

function clearError(control) {
  if (!control?.hasAttribute("aria-invalid")) return;
  $(`${control.id}-error`)?.remove();
  control.removeAttribute("aria-invalid");
  control.removeAttribute("aria-describedby");
}

export function clearErrors() {
  $("error").hidden = true;
  for (const control of document.querySelectorAll("[aria-invalid]")) clearError(control);
}
