"""The page of `save_page`: markup, style and script, with places for the title, the note and the data."""

TEMPLATE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style>
  body { margin: 0; font: 15px/1.4 system-ui, sans-serif; color: #222; background: #fff; display: flex; flex-direction: column;
         height: 100vh; }
  header, footer { padding: 10px 16px; display: flex; gap: 4px 20px; align-items: baseline; flex-wrap: wrap; }
  h1 { font-size: 17px; margin: 0; }
  footer { color: #555; font-size: 13px; }
  canvas { flex: 1; min-height: 0; width: 100%; cursor: grab; touch-action: none; outline-offset: -2px; }
  output { margin-left: auto; font-variant-numeric: tabular-nums; color: #222; min-height: 1.4em; }
</style>
<header>
  <h1>__TITLE__</h1>
  <label>height <select id="height"><option value="loss">loss</option><option value="accuracy">accuracy</option></select></label>
  <label><input type="checkbox" id="log"> logarithmic loss</label>
  <output id="readout">point at the surface</output>
</header>
<canvas id="surface" tabindex="0" role="img" aria-label="Surface over a plane in weight space; arrow keys turn it"></canvas>
<footer><span>__NOTE__</span><span>drag or arrow keys: turn · wheel: zoom · double click: back</span></footer>
<script type="application/json" id="data">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("surface"), pen = canvas.getContext("2d");
const choice = document.getElementById("height"), log = document.getElementById("log"), readout = document.getElementById("readout");
const nx = data.xs.length, ny = data.ys.length;
const home = { azimuth: -0.9, elevation: 0.65, zoom: 1 };
const view = { ...home };
const ramp = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const font = "13px system-ui, sans-serif";
// How much nearer the surface has to be to hide a mark that lies on it, in lengths of the plane's longer side.
const margin = 0.03;
let scaled = [], low = 0, high = 1, screen = [], triangles = [], labels = [], hovered = null;

const losses = data.loss.flat().filter(v => v !== null && v > 0);
log.checked = losses.length === data.loss.flat().filter(v => v !== null).length
  && Math.max(...losses) > 20 * Math.min(...losses);
if (data.accuracy.flat().every(v => v === null)) choice.options[1].disabled = true;

function rescale() {
  const raw = data[choice.value], logarithmic = choice.value === "loss" && log.checked;
  scaled = raw.map(row => row.map(v => v === null ? null : logarithmic ? (v > 0 ? Math.log10(v) : null) : v));
  const found = scaled.flat().filter(v => v !== null);
  low = Math.min(...found); high = Math.max(...found);
  if (!(high > low)) high = low + 1;
  draw();
}

const spanX = data.xs[nx - 1] - data.xs[0], spanY = data.ys[ny - 1] - data.ys[0], span = Math.max(Math.abs(spanX), Math.abs(spanY));

function project(x, y, part) {
  const u = (x - data.xs[0] - spanX / 2) / span, v = (y - data.ys[0] - spanY / 2) / span, w = 0.55 * (part - 0.5);
  const c = Math.cos(view.azimuth), s = Math.sin(view.azimuth);
  const across = c * u - s * v, away = s * u + c * v;
  const size = view.zoom * Math.min(0.66 * canvas.clientWidth, 0.72 * canvas.clientHeight);
  return {
    x: canvas.clientWidth / 2 + size * across,
    y: canvas.clientHeight / 2 - size * (w * Math.cos(view.elevation) + away * Math.sin(view.elevation)),
    depth: away * Math.cos(view.elevation) - w * Math.sin(view.elevation),
  };
}

const part = value => (value - low) / (high - low);

function colour(share) {
  const place = Math.min(Math.max(choice.value === "loss" ? 1 - share : share, 0), 1) * (ramp.length - 1);
  const at = Math.min(Math.floor(place), ramp.length - 2), f = place - at;
  return `rgb(${ramp[at].map((v, i) => Math.round(v + f * (ramp[at + 1][i] - v))).join(",")})`;
}

function heightAt(x, y) {
  const find = (list, v) => { let i = 0; while (i < list.length - 2 && v > list[i + 1]) i++; return i; };
  const i = find(data.xs, x), j = find(data.ys, y);
  const fx = Math.min(Math.max((x - data.xs[i]) / (data.xs[i + 1] - data.xs[i]), 0), 1);
  const fy = Math.min(Math.max((y - data.ys[j]) / (data.ys[j + 1] - data.ys[j]), 0), 1);
  const [a, b, c, d] = [scaled[j][i], scaled[j][i + 1], scaled[j + 1][i], scaled[j + 1][i + 1]];
  if ([a, b, c, d].includes(null)) return 0;
  return part((1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d));
}

function place() {
  screen = scaled.map((row, j) => row.map((v, i) => v === null ? null : project(data.xs[i], data.ys[j], part(v))));
  triangles = [];
  for (let j = 0; j + 1 < ny; j++) for (let i = 0; i + 1 < nx; i++) {
    const [a, b, c, d] = [screen[j][i], screen[j][i + 1], screen[j + 1][i + 1], screen[j + 1][i]];
    if (a && b && c && d) triangles.push([a, b, c], [a, c, d]);
  }
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  pen.font = font;
  place();
  drawFloor();
  drawSurface();
  drawAxes();
  drawKey();
  drawMarks();
  drawHovered();
}

// Whether the surface passes between the eye and a place: a triangle over it that is nearer there.
function hidden(at) {
  return triangles.some(([a, b, c]) => {
    if (Math.min(a.x, b.x, c.x) > at.x || Math.max(a.x, b.x, c.x) < at.x) return false;
    if (Math.min(a.y, b.y, c.y) > at.y || Math.max(a.y, b.y, c.y) < at.y) return false;
    const area = (b.x - a.x) * (c.y - a.y) - (c.x - a.x) * (b.y - a.y);
    if (!area) return false;
    const v = ((at.x - a.x) * (c.y - a.y) - (c.x - a.x) * (at.y - a.y)) / area;
    const w = ((b.x - a.x) * (at.y - a.y) - (at.x - a.x) * (b.y - a.y)) / area;
    return v >= 0 && w >= 0 && v + w <= 1 && a.depth + v * (b.depth - a.depth) + w * (c.depth - a.depth) < at.depth - margin;
  });
}

function drawKey() {
  const steps = 40, length = 120, left = 16, top = 34;
  const text = v => (choice.value === "loss" && log.checked ? 10 ** v : v).toPrecision(3);
  for (let i = 0; i < steps; i++) {
    pen.fillStyle = colour(1 - (i + 0.5) / steps);
    pen.fillRect(left, top + length * i / steps, 14, length / steps + 1);
  }
  pen.fillStyle = "#222"; pen.textAlign = "left";
  pen.fillText(choice.value === "loss" ? "loss" : "accuracy, %", left, top - 10);
  pen.fillText(text(high), left + 20, top + 10);
  pen.fillText(text(low), left + 20, top + length);
}

const floor = () => {
  const [x0, x1, y0, y1] = [data.xs[0], data.xs[nx - 1], data.ys[0], data.ys[ny - 1]];
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]].map(([x, y]) => project(x, y, -0.12));
};

function drawFloor() {
  path(floor(), true); pen.strokeStyle = "#999"; pen.lineWidth = 1; pen.stroke();
}

// Below the nearer of each axis's two sides, on its outer side, and inside the canvas.
function drawAxes() {
  const corners = floor();
  const label = (sides, axis, ends) => {
    const [a, b] = sides.map(side => side.map(i => corners[i])).sort((p, q) => p[0].depth + p[1].depth - q[0].depth - q[1].depth)[0];
    const text = `${data.axes[axis]}: ${ends[0].toPrecision(3)} to ${ends[ends.length - 1].toPrecision(3)}`;
    const width = pen.measureText(text).width, middle = (a.x + b.x) / 2;
    const x = middle < canvas.clientWidth / 2 ? middle - width - 6 : middle + 6;
    write(text, Math.max(4, Math.min(x, canvas.clientWidth - 4 - width)), (a.y + b.y) / 2 + 16, "#555");
  };
  label([[0, 1], [3, 2]], 0, data.xs);
  label([[1, 2], [0, 3]], 1, data.ys);
}

function write(text, x, y, colour) {
  pen.textAlign = "left";
  pen.strokeStyle = "#fff"; pen.lineWidth = 3; pen.strokeText(text, x, y);
  pen.fillStyle = colour; pen.fillText(text, x, y);
}

function drawSurface() {
  const cells = [];
  for (let j = 0; j + 1 < ny; j++) for (let i = 0; i + 1 < nx; i++) {
    const corners = [screen[j][i], screen[j][i + 1], screen[j + 1][i + 1], screen[j + 1][i]];
    if (corners.includes(null)) continue;
    const mean = (scaled[j][i] + scaled[j][i + 1] + scaled[j + 1][i + 1] + scaled[j + 1][i]) / 4;
    cells.push({ corners, depth: corners.reduce((sum, c) => sum + c.depth, 0), fill: colour(part(mean)) });
  }
  cells.sort((a, b) => b.depth - a.depth);
  pen.lineWidth = 0.6;
  for (const cell of cells) {
    path(cell.corners, true);
    pen.fillStyle = cell.fill; pen.fill();
    pen.strokeStyle = "rgba(255,255,255,.55)"; pen.stroke();
  }
}

function path(corners, close) {
  pen.beginPath();
  corners.forEach((c, i) => i ? pen.lineTo(c.x, c.y) : pen.moveTo(c.x, c.y));
  if (close) pen.closePath();
}

const lift = (x, y) => project(x, y, heightAt(x, y) + 0.01);

// The trajectory as far as it can be seen, in pieces: each is drawn twice, as a white line with a black one in it.
function drawTrajectory() {
  const pieces = [[]], steps = 12;
  data.trajectory.slice(1).forEach(([x1, y1], n) => {
    const [x0, y0] = data.trajectory[n];
    for (let t = n ? 1 : 0; t <= steps; t++) {
      const at = lift(x0 + (x1 - x0) * t / steps, y0 + (y1 - y0) * t / steps);
      if (hidden(at)) pieces.push([]); else pieces[pieces.length - 1].push(at);
    }
  });
  for (const [style, width] of [["#fff", 4], ["#111", 1.8]]) for (const piece of pieces) {
    path(piece, false); pen.strokeStyle = style; pen.lineWidth = width; pen.stroke();
  }
}

function drawMarks() {
  drawTrajectory();
  const seen = data.points.map(point => ({ name: point.name, at: lift(point.x, point.y) })).filter(({ at }) => !hidden(at));
  for (const { at } of seen) dot(at, "#fff");
  labels = [];
  for (const { name, at } of seen) {
    const label = free(at, name);
    labels.push(label);
    write(label.text, label.x, label.y + 11, "#111");
  }
}

// A box for a name beside its mark: inside the canvas, and off the names before it if there is room within a few lines.
function free(at, name) {
  const height = 15, room = canvas.clientWidth - 8;
  let text = name;
  while (pen.measureText(text).width > room && text.length > 2) text = text.slice(0, -2) + "…";
  const width = pen.measureText(text).width;
  const boxes = [];
  for (const line of [-1, 0, -2, 1, -3, 2, -4, 3, -5, 4]) for (const x of [at.x + 9, at.x - 9 - width]) boxes.push({
    name, text, width, height,
    x: Math.max(4, Math.min(x, canvas.clientWidth - 4 - width)),
    y: Math.max(0, Math.min(at.y - 3 + line * height, canvas.clientHeight - height)),
  });
  const clear = (a, b) => a.x + a.width < b.x || b.x + b.width < a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
  return boxes.find(box => labels.every(other => clear(box, other))) || boxes[0];
}

function dot(at, fill) {
  pen.beginPath(); pen.arc(at.x, at.y, 5, 0, 2 * Math.PI);
  pen.fillStyle = fill; pen.fill(); pen.strokeStyle = "#111"; pen.lineWidth = 1.5; pen.stroke();
}

function drawHovered() {
  const at = hovered && screen[hovered.j][hovered.i];
  if (at && !hidden(at)) dot(at, "#D55E00");
}

const digits = v => v === null ? "not finite" : Number(v.toPrecision(6)).toString();

function hover(x, y) {
  let best = 40 * 40, found = null;
  screen.forEach((row, j) => row.forEach((at, i) => {
    if (!at) return;
    const distance = (at.x - x) ** 2 + (at.y - y) ** 2;
    const nearer = distance < best - 1 || (found && distance < best + 1 && at.depth < screen[found.j][found.i].depth);
    if (nearer) { best = Math.min(distance, best); found = { i, j }; }
  }));
  hovered = found;
  if (found) {
    const { i, j } = found, accuracy = data.accuracy[j][i];
    readout.textContent = `${data.axes[0]} ${digits(data.xs[i])}, ${data.axes[1]} ${digits(data.ys[j])}: `
      + `loss ${digits(data.loss[j][i])}` + (accuracy === null ? "" : `, accuracy ${digits(accuracy)} %`);
  } else readout.textContent = "point at the surface";
  draw();
}

function turn(across, up) {
  view.azimuth += across;
  view.elevation = Math.min(Math.max(view.elevation + up, 0.05), Math.PI / 2);
  draw();
}

let held = null;
canvas.addEventListener("pointerdown", e => { held = e; canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener("pointerup", () => { held = null; });
canvas.addEventListener("pointermove", e => {
  const box = canvas.getBoundingClientRect();
  if (!held) return hover(e.clientX - box.left, e.clientY - box.top);
  turn((held.clientX - e.clientX) / -180, (e.clientY - held.clientY) / 180);
  held = e;
});
canvas.addEventListener("pointerleave", () => { if (!held) hover(-1e9, -1e9); });
canvas.addEventListener("wheel", e => {
  e.preventDefault();
  view.zoom = Math.min(Math.max(view.zoom * Math.exp(-e.deltaY / 800), 0.4), 6);
  draw();
}, { passive: false });
canvas.addEventListener("dblclick", () => { Object.assign(view, home); draw(); });
canvas.addEventListener("keydown", e => {
  const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[e.key];
  if (step) { e.preventDefault(); turn(...step); }
});
choice.addEventListener("change", rescale);
log.addEventListener("change", rescale);
window.addEventListener("resize", draw);

// Of four sides, the first from which most marks can be seen.
function chooseSide() {
  const count = turns => {
    view.azimuth = -0.9 + turns * Math.PI / 2;
    place();
    return data.points.filter(point => !hidden(lift(point.x, point.y))).length;
  };
  const counts = [0, 1, 2, 3].map(count);
  home.azimuth = view.azimuth = -0.9 + counts.indexOf(Math.max(...counts)) * Math.PI / 2;
}
rescale();
chooseSide();
draw();
</script>
</html>
"""
