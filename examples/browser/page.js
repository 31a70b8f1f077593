// The page: takes a photo, shows the answer and where the model looked.

import { loadModel } from "./model.js";
import { decode, geometry, prepare } from "./prepare.js";

const MOST_CLASSES = 5;
const LONGEST_SIDE = 640;
const DARKNESS = 0.55;
const element = (id) => document.getElementById(id);
let model = null;
let chosen = null; // the newest photo
let shown = null; // photo, outputs and geometry of the answer on the page
let latest = 0; // number of the newest photo; older answers are dropped

/** Classifies an image file and shows the answer. */
async function answer(file) {
  if (!file) return;
  chosen = file;
  if (!model) return; // `start` answers it
  const number = ++latest;
  element("status").textContent = `Looking at ${file.name} …`;
  let image;
  try {
    image = await decode(file);
  } catch {
    if (number === latest) {
      element("result").hidden = true;
      element("status").textContent = `${file.name} is not an image that this browser can read.`;
    }
    return;
  }
  const started = performance.now();
  let outputs;
  try {
    outputs = await model.classify(prepare(image, model.preparation));
  } catch (error) {
    if (number === latest) throw error;
  }
  if (number !== latest) return;
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  element("status").textContent = `${file.name}: ${image.width} × ${image.height} pixels, ${seconds} s`;
  shown = { image: canvasOf(image), outputs, name: file.name };
  showClasses(outputs);
  element("layers").hidden = !outputs.object_mask;
  element("result").hidden = false;
  draw();
}

/** Lists the most probable classes. */
function showClasses({ probabilities, none_of_these: none }) {
  const order = model.classNames.map((_, label) => label);
  order.sort((one, other) => probabilities.data[other] - probabilities.data[one]);
  const best = model.classNames[order[0]];
  element("answer").textContent = none?.data[0]
    ? `None of these; the most probable would be ${best}`
    : best;
  element("classes").replaceChildren(
    ...order.slice(0, MOST_CLASSES).map((label) => {
      const probability = probabilities.data[label];
      const item = document.createElement("li");
      item.dataset.probability = probability;
      item.append(
        part("name", model.classNames[label]),
        part("percent", `${(100 * probability).toFixed(1)}%`),
        part("track", "", part("bar", "")),
      );
      item.querySelector(".bar").style.width = `${100 * probability}%`;
      return item;
    }),
  );
}

function part(name, text, ...children) {
  const node = document.createElement("div");
  node.className = name;
  node.append(text, ...children);
  return node;
}

/** Draws the photo with the chosen layers over the square that the model saw. */
function draw() {
  const { image, outputs, name } = shown;
  const canvas = element("picture");
  const scale = LONGEST_SIDE / Math.max(image.width, image.height);
  canvas.width = Math.round(image.width * scale);
  canvas.height = Math.round(image.height * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const { object_mask: mask, attention_map: map } = outputs;
  let text = `The photo ${name}`;
  if (mask) {
    const share = mask.data.reduce((sum, one) => sum + one, 0) / mask.data.length;
    text += `; the object mask covers ${Math.round(100 * share)}% of the square that the model saw`;
    const seen = geometry(image.width, image.height, model.preparation);
    const across = canvas.width / seen.width;
    const down = canvas.height / seen.height;
    const square = [seen.left * across, seen.top * down, seen.side * across, seen.side * down];
    if (element("show-mask").checked) {
      // Background patches and what the model did not see become dark.
      const layer = layerOf(mask, (value) => [0, 0, 0, value ? 0 : DARKNESS]);
      context.imageSmoothingEnabled = false;
      context.drawImage(layer, ...square);
      context.fillStyle = `rgb(0 0 0 / ${DARKNESS})`;
      context.beginPath();
      context.rect(0, 0, canvas.width, canvas.height);
      context.rect(...square);
      context.fill("evenodd");
    }
    if (element("show-map").checked) {
      const most = map.data.reduce((one, other) => Math.max(one, other), 0) || 1;
      const layer = layerOf(map, (value) => [255, 96, 0, (0.8 * value) / most]);
      context.imageSmoothingEnabled = true;
      context.drawImage(layer, ...square);
    }
    context.strokeStyle = "rgb(255 255 255 / 0.7)";
    context.strokeRect(...square);
  }
  canvas.setAttribute("aria-label", text);
}

/** Returns a canvas with one pixel for each patch of an output [1, gh, gw]. */
function layerOf({ data, dims }, colour) {
  const [, height, width] = dims;
  const pixels = new ImageData(width, height);
  data.forEach((value, place) => {
    const [red, green, blue, alpha] = colour(value);
    pixels.data.set([red, green, blue, 255 * alpha], 4 * place);
  });
  return canvasOf(pixels);
}

function canvasOf(pixels) {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

for (const id of ["show-mask", "show-map"]) element(id).addEventListener("change", draw);
element("photo").addEventListener("change", (event) => report(answer(event.target.files[0])));
// Without this, the browser would open a photo that is dropped next to the field.
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault());
}
document.addEventListener("dragover", () => element("drop").classList.add("over"));
document.addEventListener("dragleave", () => element("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  element("drop").classList.remove("over");
  report(answer(event.dataTransfer.files[0]));
});

/** Shows an error of a promise on the page. */
async function report(promise) {
  try {
    await promise;
  } catch (error) {
    element("status").textContent = `This did not work: ${error.message}`;
  }
}

async function start() {
  model = await loadModel("model.onnx");
  element("status").textContent = `The model knows ${model.classNames.length} classes.`;
  if (model.int8) {
    const same = (100 * model.int8.same_answers).toFixed(1);
    element("about").textContent =
      `This is an INT8 model: ${same}% of its answers on ${model.int8.num_photos} ` +
      `${model.int8.photos} photos are those of the float32 model.`;
  }
  await answer(chosen ?? element("photo").files[0]); // a reloaded page may keep its file
}

report(start());
