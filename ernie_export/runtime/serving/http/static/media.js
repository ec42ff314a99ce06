// Pictures and clips: from a file to what is shown, and to what is sent.

const KINDS = { image: "Picture", video: "Clip" };

export class Medium {
  /** Takes a File. Throws Error for one that is neither a picture nor a clip. */
  constructor(file) {
    this.file = file;
    this.kind = file.type.split("/")[0];
    this.name = file.name;
    if (!(this.kind in KINDS)) throw new Error(`${file.name}: expected a picture or a clip, found another kind of file`);
    this.url = URL.createObjectURL(file);
    this.data = dataUri(file);
    this.data.catch(() => {}); // told when it is sent
  }

  /** Its part of a message. Throws Error where the file can't be read. */
  async part() {
    const type = `${this.kind}_url`;
    return { type, [type]: { url: await this.data } };
  }

  /** Its item in a list: a button that shows the token grid of a picture, or plays a clip. `remove`: when it may go. */
  element(remove) {
    const item = document.getElementById("medium").content.cloneNode(true).firstElementChild;
    const shot = item.querySelector(".shot");
    shot.append(this.preview());
    shot.disabled = this.kind === "image"; // until its grid is known
    shot.addEventListener("click", () => this.press(shot));
    this.item = item;
    this.label(this.name);
    const cross = item.querySelector(".remove");
    if (remove) {
      cross.setAttribute("aria-label", `Remove ${this.name}`);
      cross.addEventListener("click", remove);
    } else {
      cross.remove();
    }
    return item;
  }

  /** Say what it takes of a prompt. A token covers a square of patches; of a clip, in two frames. */
  measured(number, { grid: [frames, rows, columns], tokens }) {
    const side = Math.sqrt((frames * rows * columns) / (this.kind === "image" ? tokens : 2 * tokens));
    this.item.style.setProperty("--rows", rows / side);
    this.item.style.setProperty("--columns", columns / side);
    const size = `${columns}×${rows} patches`;
    const whole = this.kind === "image" ? size : `${frames} frames of ${size}`;
    this.label(`${KINDS[this.kind]} ${number}: ${tokens} ${tokens === 1 ? "token" : "tokens"}\n${whole}`);
    this.item.querySelector(".shot").disabled = false;
  }

  label(text) {
    this.item.querySelector(".caption").textContent = text;
    const act = this.kind === "image" ? "show the grid of tokens" : "play";
    this.item.querySelector(".shot").setAttribute("aria-label", `${this.name}: ${act}`);
    this.item.title = this.name;
  }

  preview() {
    const picture = this.kind === "image";
    const view = document.createElement(picture ? "img" : "video");
    view.src = this.url;
    if (picture) view.alt = "";
    else Object.assign(view, { muted: true, loop: true, playsInline: true, preload: "auto" });
    view.addEventListener("error", () => {
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = `${this.name} (no preview)`;
      view.replaceWith(name);
    });
    return view;
  }

  press(shot) {
    const pressed = shot.getAttribute("aria-pressed") !== "true";
    shot.setAttribute("aria-pressed", pressed);
    const clip = shot.querySelector("video");
    if (clip) pressed ? clip.play().catch(() => {}) : clip.pause();
  }

  /** Free what the browser keeps of the file. */
  forget() {
    URL.revokeObjectURL(this.url);
  }
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name}: expected a file that can be read, found ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}
