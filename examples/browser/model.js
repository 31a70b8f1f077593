// Loads an exported ONNX file and classifies prepared photos with onnxruntime-web.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

// More threads need headers that a plain file server does not send.
ort.env.wasm.numThreads = 1;
// Keeps the page responsive.
ort.env.wasm.proxy = true;

/** Returns a model: its class names, its preparation of photos, and `classify`. */
export async function loadModel(address) {
  const response = await fetch(address);
  if (!response.ok) {
    throw new Error(`there is no ${address} next to this page: export one, see docs/export.md`);
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  const metadata = readMetadata(bytes);
  const session = await ort.InferenceSession.create(bytes);
  const { class_names: classNames, preparation } = metadata;
  const side = preparation.both_sides ?? preparation.centre_crop;
  /** Returns the outputs for one photo by name, as `{data, dims}`. */
  async function classify(pixels) {
    return session.run({ images: new ort.Tensor("uint8", pixels, [1, side, side, 3]) });
  }
  return { classNames, preparation, int8: metadata.int8, classify };
}

/** Returns the metadata of an ONNX file, which onnxruntime-web does not read, by key. */
function readMetadata(bytes) {
  const decoder = new TextDecoder();
  const metadata = {};
  for (const [number, entry] of fields(bytes)) {
    if (number === 14) {
      const [key, value] = [1, 2].map((wanted) => {
        const [, text] = fields(entry).find(([field]) => field === wanted);
        return decoder.decode(text);
      });
      metadata[key] = key === "fgvpl_jax" ? value : JSON.parse(value);
    }
  }
  return metadata;
}

/** Returns the numbers and contents of the fields of a protocol buffer that have a length. */
function fields(bytes) {
  const found = [];
  let place = 0;
  function varint() {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[place++];
      value += (byte % 128) * factor;
      if (byte < 128) return value;
    }
  }
  while (place < bytes.length) {
    const tag = varint();
    const size = varint(); // the value itself, if it has no length
    if (tag % 8 === 2) {
      found.push([Math.floor(tag / 8), bytes.subarray(place, place + size)]);
      place += size;
    }
  }
  return found;
}
