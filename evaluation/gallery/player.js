"use strict";
const SPEEDS = [...document.querySelectorAll("#speed option")].map(option => Number(option.value));
const SMALLEST_DRIFT = 0.06;  // seconds between the clips of a group before they are put in step again
let speed = 1;

class Group {
  // Clips that play as one. The leader is the longest; shorter ones wait on their last frame until it starts again.
  constructor(element) {
    this.element = element;
    this.videos = [...element.querySelectorAll("video")];
    this.slider = element.querySelector(".transport input");
    this.readout = element.querySelector(".time");
    this.given = Number(element.dataset.given || 0);
    const length = video => video.dataset.frames / video.dataset.fps;
    this.leader = this.videos.reduce((a, b) => (length(b) > length(a) + 1e-6 ? b : a));
    this.frames = Number(this.leader.dataset.frames);
    this.fps = Number(this.leader.dataset.fps);
    this.drift = Math.max(SMALLEST_DRIFT, 0.5 / this.fps);
    this.playing = this.visible = this.running = this.restarting = false;
    element.querySelector(".play").addEventListener("click", () => this.toggle());
    element.querySelector(".back").addEventListener("click", () => this.step(-1));
    element.querySelector(".next").addEventListener("click", () => this.step(1));
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    for (const video of this.videos) video.addEventListener("click", () => this.toggle());
    this.leader.addEventListener("ended", () => this.restart());
    this.describe(0);
  }
  toggle() { this.set(!this.playing); }
  set(playing) {
    if (playing === this.playing) return;
    this.playing = playing;
    this.element.classList.toggle("playing", playing);
    this.update();
    if (!playing) this.show(this.frame());  // all of them on the leader's frame
    describeAll();
  }
  update() {  // runs while it is wanted and can be seen
    const running = this.playing && this.visible;
    if (running === this.running) return;
    this.running = running;
    if (!running) { this.videos.forEach(video => video.pause()); return; }
    if (this.leader.ended || this.frame() >= this.frames - 1) this.restart(); else this.run();
    requestAnimationFrame(() => this.follow());
  }
  run() {
    for (const video of this.videos) {
      video.playbackRate = speed;
      if (!video.ended) video.play().catch(() => {});
    }
  }
  async restart() {  // all are at the first frame before any of them runs on
    if (this.restarting || !this.running) return;
    this.restarting = true;
    this.videos.forEach(video => video.pause());
    await Promise.all(this.videos.map(video => seek(video, 0)));
    this.restarting = false;
    if (this.running) this.run();
  }
  frame() { return Math.max(0, Math.min(this.frames - 1, Math.floor(this.leader.currentTime * this.fps + 1e-3))); }
  step(count) {
    const from = this.playing ? this.frame() : this.described;  // a seek may still be under way
    this.set(false);
    this.show((from + count + this.frames) % this.frames);
  }
  show(frame) {  // the middle of the frame's time, so that rounding cannot give its neighbour
    this.set(false);
    const time = (frame + 0.5) / this.fps;
    for (const video of this.videos) {
      const target = Math.min(time, (video.dataset.frames - 0.5) / video.dataset.fps);
      if (video.currentTime !== target) seek(video, target);  // one that has ended would jump to its very end
    }
    this.describe(frame);
  }
  follow() {
    if (!this.running) return;
    const now = this.leader.currentTime;
    for (const video of this.videos) {
      const apart = Math.abs(video.currentTime - now) > this.drift;
      if (apart && !this.restarting && !video.seeking && !video.ended && now < video.duration) video.currentTime = now;
    }
    this.describe(this.frame());
    requestAnimationFrame(() => this.follow());
  }
  describe(frame) {
    if (frame === this.described) return;
    this.described = frame;
    this.slider.value = frame;
    this.readout.textContent = `${frame + 1} / ${this.frames}`;
    if (!this.given) return;
    const mark = document.createElement("b");
    const isGiven = frame < this.given;
    this.element.classList.toggle("is-given", isGiven);
    mark.textContent = isGiven ? "given" : "predicted";
    mark.className = isGiven ? "" : "new";
    this.readout.append(mark);
  }
}

function seek(video, time) {
  return new Promise(resolve => {
    if (video.error || video.readyState === 0) { video.currentTime = time; resolve(); return; }
    const finish = () => { clearTimeout(late); video.removeEventListener("seeked", finish); resolve(); };
    const late = setTimeout(finish, 2000);
    video.addEventListener("seeked", finish);
    video.currentTime = time;
  });
}

const groups = [...document.querySelectorAll(".group")].filter(e => e.querySelector("video")).map(e => new Group(e));
const playAll = document.getElementById("play-all");

function describeAll() {
  const some = groups.some(group => group.playing);
  playAll.textContent = some ? "Pause all" : "Play all";
  playAll.setAttribute("aria-pressed", some);
}
function toggleAll() {
  const playing = !groups.some(group => group.playing);
  groups.forEach(group => group.set(playing));
}
function setSpeed(value) {
  speed = value;
  document.getElementById("speed").value = String(value);
  groups.filter(group => group.running).forEach(group => group.run());
}
function setSize(pixels) {
  const slider = document.getElementById("size");
  slider.value = pixels;
  document.documentElement.style.setProperty("--tile", `${slider.value}px`);
  markEnlarged();
}

// The marked group: the focused one, else the one nearest to the middle of the window.
function current() {
  const focused = document.activeElement && document.activeElement.closest(".group");
  const found = groups.find(group => group.element === focused);
  if (found) return found;
  const middle = innerHeight / 2;
  const distance = group => {
    const box = group.element.getBoundingClientRect();
    return Math.max(box.top - middle, middle - box.bottom, 0);
  };
  return groups.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
}
function mark() {
  const marked = current();
  groups.forEach(group => group.element.classList.toggle("current", group === marked));
}
function move(count) {
  const next = groups[Math.max(0, Math.min(groups.length - 1, groups.indexOf(current()) + count))];
  if (!next) return;
  next.element.focus({ preventScroll: true });
  next.element.scrollIntoView({ block: "center" });
  mark();
}
function faster(count) {
  setSpeed(SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, SPEEDS.indexOf(speed) + count))]);
}

const help = document.getElementById("help");
const KEYS = {
  " ": () => current()?.toggle(), ArrowLeft: () => current()?.step(-1), ArrowRight: () => current()?.step(1),
  Home: () => current()?.show(0), End: () => { const group = current(); group?.show(group.frames - 1); },
  j: () => move(1), k: () => move(-1), "[": () => faster(-1), "]": () => faster(1), p: toggleAll,
  "-": () => setSize(Number(document.getElementById("size").value) - 30),
  "+": () => setSize(Number(document.getElementById("size").value) + 30), "?": () => help.showModal(),
};
document.addEventListener("keydown", event => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = KEYS[key === "=" ? "+" : key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const own = { INPUT: /^(Arrow|Home|End)/, SELECT: /./, BUTTON: /^ $/, SUMMARY: /^ $/, A: /^$/ }[event.target.tagName];
  if (own && own.test(event.key)) return;  // the control has this key itself
  if ((key === "Home" || key === "End") && !event.target.closest(".group")) return;  // of the page
  event.preventDefault();
  action();
});
playAll.addEventListener("click", toggleAll);
document.getElementById("speed").addEventListener("change", event => setSpeed(Number(event.target.value)));
document.getElementById("size").addEventListener("input", event => setSize(event.target.value));
document.getElementById("help-button").addEventListener("click", () => help.showModal());
addEventListener("scroll", mark, { passive: true });
document.addEventListener("focusin", mark);

function markEnlarged() {  // small clips are shown with sharp pixels
  for (const media of document.querySelectorAll("video, .tiles img, .matrix img")) {
    const width = media.videoWidth || media.naturalWidth || 0;
    media.classList.toggle("enlarged", width > 0 && width < media.clientWidth);
  }
}
for (const video of document.querySelectorAll("video")) {
  video.addEventListener("loadedmetadata", markEnlarged);
  video.addEventListener("error", () => {
    const note = document.createElement("p");
    note.className = "broken";
    note.textContent = `This browser cannot play ${video.getAttribute("src")}`;
    video.replaceWith(note);
  });
}
addEventListener("load", markEnlarged);
addEventListener("resize", markEnlarged);

// Curves: the values under the pointer take the place of the last ones.
for (const figure of document.querySelectorAll(".curve")) {
  const svg = figure.querySelector("svg"), probe = figure.querySelector(".probe");
  if (!svg) continue;
  const lines = [...svg.querySelectorAll("polyline")];
  const points = lines.map(line => [...line.points].map(point => [point.x, point.y]));
  const values = [...figure.querySelectorAll(".legend b")], last = values.map(value => value.textContent);
  const { y0, y1, top, bottom } = Object.fromEntries(Object.entries(svg.dataset).map(([k, v]) => [k, Number(v)]));
  svg.addEventListener("pointermove", event => {
    const x = (event.clientX - svg.getBoundingClientRect().left) * svg.viewBox.baseVal.width / svg.clientWidth;
    const nearest = points.map(line => line.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)));
    nearest.forEach((point, index) => {
      const value = y1 - (point[1] - top) / (bottom - top) * (y1 - y0);
      values[index].textContent = String(Number(value.toPrecision(3)));
    });
    probe.setAttribute("x1", x); probe.setAttribute("x2", x); probe.style.visibility = "visible";
  });
  svg.addEventListener("pointerleave", () => {
    values.forEach((value, index) => { value.textContent = last[index]; });
    probe.style.visibility = "hidden";
  });
}

const seen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    const group = groups.find(item => item.element === target);
    group.visible = isIntersecting;
    group.update();
  }
}, { rootMargin: "80px" });
groups.forEach(group => seen.observe(group.element));
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) groups.forEach(group => group.set(true));
mark();
describeAll();
