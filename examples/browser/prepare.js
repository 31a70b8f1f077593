// Prepares photos as the model's metadata say, with the same bytes as Pillow.

// Weights of Pillow's filters, by name, and the distance at which they end.
const FILTERS = {
  bilinear: [1, (x) => 1 - x],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2)],
  lanczos: [3, (x) => sinc(x) * sinc(x / 3)],
};
// Pillow's weights are integers of this many binary places.
const PLACES = 2 ** 22;

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** Returns the RGBA pixels of an image file, upright and on white, as ImageData. */
export async function decode(file) {
  const settings = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(file, settings);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/**
 * Returns where the model looks: the size that a photo is resized to, and the square in it.
 * The square is given in the resized photo.
 */
export function geometry(width, height, preparation) {
  if ("both_sides" in preparation) {
    const side = preparation.both_sides;
    return { width: side, height: side, left: 0, top: 0, side };
  }
  const side = preparation.centre_crop;
  const shortest = Math.min(width, height);
  const resized = [width, height].map((length) => Math.floor((side * length) / shortest));
  const half = preparation.half_pixels === "to even" ? halfToEven : (x) => Math.floor(x / 2);
  const [left, top] = resized.map((length) => half(length - side));
  return { width: resized[0], height: resized[1], left, top, side };
}

function halfToEven(whole) {
  const down = Math.floor(whole / 2);
  return whole % 2 && down % 2 ? down + 1 : down;
}

/** Returns the square that the model sees of an image, as RGB bytes [side, side, 3]. */
export function prepare(image, preparation) {
  const { width, height, left, top, side } = geometry(image.width, image.height, preparation);
  const [reach, weight] = FILTERS[preparation.filter];
  const columns = weights(image.width, width, left, side, reach, weight);
  const rows = weights(image.height, height, top, side, reach, weight);
  const narrow = new Uint8ClampedArray(image.height * side * 3);
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < side; x++) {
      const from = (y * image.width + columns[x].first) * 4;
      mix(image.data, from, 4, columns[x].weights, narrow, (y * side + x) * 3);
    }
  }
  const pixels = new Uint8ClampedArray(side * side * 3);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const from = (rows[y].first * side + x) * 3;
      mix(narrow, from, side * 3, rows[y].weights, pixels, (y * side + x) * 3);
    }
  }
  return new Uint8Array(pixels.buffer);
}

/** Returns the weights of `count` pixels from `start` of a line resized from `size` to `resized`. */
function weights(size, resized, start, count, reach, weight) {
  const scale = size / resized;
  const spread = Math.max(scale, 1);
  const support = reach * spread;
  return Array.from({ length: count }, (_, place) => {
    const centre = (start + place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(size, Math.trunc(centre + support + 0.5));
    const found = [];
    for (let x = first; x < end; x++) {
      const distance = Math.abs((x - centre + 0.5) * (1 / spread));
      found.push(distance < reach ? weight(distance) : 0);
    }
    const total = found.reduce((sum, one) => sum + one, 0);
    const integers = found.map((one) => {
      const scaled = (one / total) * PLACES;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, weights: integers };
  });
}

/** Writes the weighted sum of RGB pixels that are `step` bytes apart. */
function mix(source, from, step, weights, target, to) {
  let red = PLACES / 2;
  let green = PLACES / 2;
  let blue = PLACES / 2;
  for (let place = 0, at = from; place < weights.length; place++, at += step) {
    red += source[at] * weights[place];
    green += source[at + 1] * weights[place];
    blue += source[at + 2] * weights[place];
  }
  target[to] = Math.floor(red / PLACES);
  target[to + 1] = Math.floor(green / PLACES);
  target[to + 2] = Math.floor(blue / PLACES);
}
