// The tab for one photo: sends the photo to the server and shows the answer.
// Gradio runs this file when it has added the tab's HTML, which it passes as `element`.

const find = (selector) => element.querySelector(selector);
const [tab, field, drop, picture, hint] = [
  ".fg-photo-tab", "input[type=file]", ".fg-drop", ".fg-preview", ".fg-hint",
].map(find);
const answer = find("#answer");
const HINT = hint.textContent;
// Milliseconds: drawing the photo at once would delay a fast model's answer by a frame.
const PREVIEW_DELAY = 100;

let photo = null; // the current photo, a File
let session = ""; // key of the classes that this user added
let request = new AbortController(); // the newest request

// Cancels the request that is running and returns the signal of the next one.
function newest() {
  request.abort();
  request = new AbortController();
  return request.signal;
}

function report(message) {
  const problem = document.createElement("p");
  problem.className = "fg-problem";
  problem.setAttribute("role", "alert");
  problem.textContent = message;
  show(problem.outerHTML);
}

// Shows an answer's HTML, in which the server has escaped every name.
function show(html) {
  answer.innerHTML = html;
  answer.setAttribute("aria-busy", "false");
}

// Asks for the answer for the current photo, with an extra layer: "evidence", "regions" or none.
async function ask(extra = "") {
  const signal = newest();
  if (photo === null) {
    if (extra) report("choose a photo first");
    else show("");
    return;
  }
  if (photo.size > Number(tab.dataset.mostBytes)) {
    const [size, most] = [photo.size, Number(tab.dataset.mostBytes)].map((n) => n.toLocaleString("en"));
    report(`${photo.name} has ${size} bytes, more than ${most}: make it smaller`);
    return;
  }
  const form = new FormData();
  form.append("image", photo, photo.name);
  form.append("extra", extra);
  form.append("class_name", find("#evidence-class").value);
  form.append("session", session);
  answer.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(tab.dataset.answerAddress, { method: "POST", body: form, signal });
    const text = await response.text();
    if (response.status === 410) session = ""; // the added classes have expired
    if (response.ok) show(text);
    else if (response.headers.get("content-type") !== "application/json") {
      report(`the server failed (status ${response.status}): its log says why`);
    } else report(JSON.parse(text).error);
  } catch {
    // A newer request cancels this one, and then shows its own answer.
    if (!signal.aborted) report("no answer: check that the server is running, then try again");
  }
}

function choose(file) {
  photo = file;
  ask();
  setTimeout(preview, PREVIEW_DELAY);
}

// Shows the current photo in the field.
function preview() {
  URL.revokeObjectURL(picture.src);
  picture.hidden = photo === null;
  if (photo === null) picture.removeAttribute("src");
  else picture.src = URL.createObjectURL(photo);
  hint.textContent = photo === null ? HINT : photo.name;
}

// Returns whether files were found among dropped or pasted data, and chooses the first.
function chooseFrom(data) {
  if (data.files.length) choose(data.files[0]);
  return data.files.length > 0;
}

async function paste() {
  const signal = newest();
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((name) => name.startsWith("image/"));
      if (type === undefined) continue;
      const blob = await item.getType(type);
      if (!signal.aborted) choose(new File([blob], `pasted.${type.slice(6)}`, { type }));
      return;
    }
    if (!signal.aborted) report("there is no photo on the clipboard: copy one first");
  } catch {
    // Browsers refuse without permission, or if the page has neither https nor a local address.
    if (signal.aborted) return;
    report("the browser does not let the page read the clipboard: press Ctrl+V or Cmd+V instead");
  }
}

async function pick(example) {
  const signal = newest();
  const { src, alt } = example.querySelector("img");
  try {
    const response = await fetch(src, { signal });
    if (!response.ok) throw new Error(response.status);
    const blob = await response.blob();
    choose(new File([blob], alt, { type: blob.type }));
  } catch {
    if (!signal.aborted) report(`cannot load ${alt}: check that the server is running`);
  }
}

field.addEventListener("change", () => {
  chooseFrom(field);
  field.value = ""; // so that choosing the same file again counts as a change
});
picture.addEventListener("error", () => { picture.hidden = true; }); // such as a TIFF
drop.addEventListener("dragover", (event) => event.preventDefault());
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!chooseFrom(event.dataTransfer)) report("nothing is fetched from other addresses: drop a file");
});
document.addEventListener("paste", (event) => {
  if (event.target.matches("input[type=text], textarea")) return; // text may bring a picture
  if (element.offsetParent !== null && chooseFrom(event.clipboardData)) event.preventDefault();
});
document.addEventListener("fg-classes", (event) => {
  session = event.detail;
  ask();
});
find("#paste").addEventListener("click", paste);
find("#clear").addEventListener("click", () => choose(null));
find("#explain").addEventListener("click", () => ask("evidence"));
find("#find")?.addEventListener("click", () => ask("regions"));
for (const example of element.querySelectorAll(".fg-example")) {
  example.addEventListener("click", () => pick(example));
}
