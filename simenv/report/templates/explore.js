"use strict";
// The page's controls. All that is shown comes from the JSON beside this script, and reaches the page as text only.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.getElementById("explore");
const byId = (name) => document.getElementById("x-" + name);
const SVG = "http://www.w3.org/2000/svg";
const key = (line) => line.mode === "none" || line.mode === "loop" ? line.arm : line.arm + " / " + line.mode;

function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}
function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}
function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * power >= rough) * power;
  const out = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) out.push(at * step);
  return { at: out, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

// A line chart. `lines`: {name, color, dash, y, half, thin}; `x`: values common to all; `number`: how a value reads.
function chart(host, { x, lines, across, up, number, low, high, mark, diagonal, describe }) {
  const width = Math.max(280, host.clientWidth), height = Math.round(Math.min(380, Math.max(250, width * .45)));
  const left = 54, right = 14, top = 12, bottom = 42;
  const all = lines.flatMap((line) => [...line.y.map((v, i) => v === null ? null : v - (line.half?.[i] ?? 0)),
    ...line.y.map((v, i) => v === null ? null : v + (line.half?.[i] ?? 0)), ...(line.thin ?? []).flat()])
    .filter((v) => v !== null && v !== undefined);
  let from = low ?? Math.min(...all), to = high ?? Math.max(...all);
  if (!all.length) [from, to] = [low ?? 0, high ?? 1];
  if (to - from < 1e-12) { from -= .5; to += .5; }
  const margin = low === undefined ? (to - from) * .05 : 0;
  from -= margin; to += high === undefined ? (to - from) * .05 : 0;
  const first = x[0], span = x[x.length - 1] - first || 1;
  const px = (v) => left + (v - first) / span * (width - left - right);
  const py = (v) => top + (to - v) / (to - from) * (height - top - bottom);
  const picture = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe })) picture.setAttribute(name, value);
  const most = Math.min(10, Math.floor(width / 60)), whole = x.every(Number.isInteger);  // rounds are not cut in parts
  const upTicks = ticks(from, to, 5), acrossTicks = ticks(first, first + span, whole ? Math.min(most, span) : most);
  for (const v of upTicks.at) {
    draw(picture, "line", { x1: left, x2: width - right, y1: py(v), y2: py(v), class: "gridline" });
    draw(picture, "text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, v.toFixed(upTicks.digits));
  }
  for (const v of acrossTicks.at) draw(picture, "text", { x: px(v), y: height - bottom + 17, "text-anchor": "middle" }, v.toFixed(acrossTicks.digits));
  draw(picture, "text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, across);
  const title = draw(picture, "text", { x: 13, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 13 ${(top + height - bottom) / 2})` }, up);
  title.setAttribute("class", "up");
  if (diagonal) draw(picture, "line", { x1: px(0), y1: py(0), x2: px(1), y2: py(1), class: "diagonal" });
  if (mark !== undefined) draw(picture, "line", { x1: px(mark), x2: px(mark), y1: top, y2: height - bottom, class: "mark" });
  const path = (values) => {
    let text = "", pen = "M";
    values.forEach((v, i) => { if (v === null || v === undefined) pen = "M"; else { text += `${pen}${px(x[i]).toFixed(1)} ${py(v).toFixed(1)}`; pen = "L"; } });
    return text;
  };
  for (const line of lines) {
    if (line.half) {
      const known = line.y.map((v, i) => i).filter((i) => line.y[i] !== null && line.half[i] !== null);
      if (known.length > 1) draw(picture, "path", { class: "band", fill: line.color, d: "M" + [...known.map((i) => [i, 1]), ...known.reverse().map((i) => [i, -1])]
        .map(([i, sign]) => `${px(x[i]).toFixed(1)} ${py(line.y[i] + sign * line.half[i]).toFixed(1)}`).join("L") + "Z" });
    }
    for (const seed of line.thin ?? []) draw(picture, "path", { class: "seed", stroke: line.color, "stroke-dasharray": line.dash, d: path(seed) });
    draw(picture, "path", { class: "mean", stroke: line.color, "stroke-dasharray": line.dash, d: path(line.y), "data-line": line.name });
  }
  const dot = draw(picture, "circle", { r: 5, class: "dot", visibility: "hidden" });
  const tip = make("div", { class: "tip", hidden: "" });
  const move = (event) => {
    const box = picture.getBoundingClientRect(), at = event.clientX - box.left, across = event.clientY - box.top;
    const i = x.reduce((best, v, j) => Math.abs(px(v) - at) < Math.abs(px(x[best]) - at) ? j : best, 0);
    let near = null;
    for (const line of lines) if (line.y[i] !== null && line.y[i] !== undefined && (near === null || Math.abs(py(line.y[i]) - across) < Math.abs(py(near.y[i]) - across))) near = line;
    if (near === null) return leave();
    dot.setAttribute("cx", px(x[i])); dot.setAttribute("cy", py(near.y[i])); dot.setAttribute("fill", near.color); dot.setAttribute("visibility", "visible");
    tip.textContent = `${near.name}, ${number(x[i], near.y[i], near.half?.[i])}`;
    tip.hidden = false;
    tip.style.left = Math.min(Math.max(px(x[i]) - tip.offsetWidth / 2, 0), width - tip.offsetWidth) + "px";
    tip.style.top = Math.max(py(near.y[i]) - tip.offsetHeight - 12, 0) + "px";
  };
  const leave = () => { tip.hidden = true; dot.setAttribute("visibility", "hidden"); };
  picture.addEventListener("pointermove", move);
  picture.addEventListener("pointerdown", move);
  picture.addEventListener("pointerleave", leave);
  host.replaceChildren(picture, tip);
}

// -- controls ------------------------------------------------------------------------------------------------------
const arms = [...new Set(data.lines.map((line) => line.arm))], modes = [...new Set(data.lines.map((line) => line.mode))].filter((mode) => mode !== "none");
const off = new Set();
function switches(host, names, kind) {
  for (const name of names) {
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    box.dataset.kind = kind; box.dataset.name = name;
    box.addEventListener("change", () => { off[box.checked ? "delete" : "add"](kind + name); redraw(); });
    const line = data.lines.find((one) => one[kind] === name);
    const key = document.createElementNS(SVG, "svg");
    for (const [attribute, value] of Object.entries({ width: 26, height: 8, "aria-hidden": "true" })) key.setAttribute(attribute, value);
    draw(key, "line", { x1: 0, x2: 26, y1: 4, y2: 4, "stroke-width": 3, stroke: kind === "arm" ? line.color : "#555", "stroke-dasharray": kind === "arm" ? "" : line.dash });
    host.append(make("label", {}, box, key, name));
  }
}
const shown = (line) => !off.has("arm" + line.arm) && !off.has("mode" + line.mode);
const options = (select, texts) => select.append(...texts.map((text, i) => make("option", { value: i }, text)));
switches(byId("arms"), arms, "arm");
switches(byId("modes"), modes, "mode");
byId("modes").hidden = modes.length < 2;
options(byId("metric"), data.metrics.map((metric) => metric.label));
byId("metric").value = Math.max(0, data.metrics.findIndex((metric) => metric.name === "arp_pct"));
byId("round").max = data.rounds.length - 1;
byId("round").value = data.rounds.length - 1;
const metric = () => data.metrics[byId("metric").value];
function groups() {
  const before = byId("group").value;
  byId("group").replaceChildren(...Object.keys(metric().groups).map((group) => make("option", { value: group }, group === "all" ? "all users" : group.replace("=", " "))));
  byId("group").value = before in metric().groups ? before : Object.keys(metric().groups)[0];
}
const scaled = (values, unit) => values.map((v) => v === null ? null : v / unit);

function redraw() {
  const chosen = metric(), unit = 10 ** chosen.digits, held = chosen.groups[byId("group").value], at = Number(byId("round").value);
  const seeds = byId("seeds").checked && byId("group").value === "all";
  byId("seeds").disabled = byId("group").value !== "all";
  const round = data.rounds[at];
  const told = (v, half) => v.toFixed(chosen.digits) + (half ? " ± " + half.toFixed(chosen.digits) : "");
  byId("now").textContent = `round ${round}`;
  byId("round").setAttribute("aria-valuetext", `round ${round}`);
  const lines = data.lines.map((line, i) => ({ ...line, i, name: key(line) })).filter(shown);
  chart(byId("course"), {
    x: data.rounds, across: "round", up: chosen.label, mark: round, describe: `${chosen.label} per round; its values in the chosen round stand in the table below.`,
    lines: lines.map((line) => ({ ...line, y: scaled(held.mean[line.i], unit), half: seeds ? null : scaled(held.half[line.i], unit), thin: seeds ? chosen.seeds[line.i].map((one) => scaled(one, unit)) : [] })),
    number: (x, v, half) => `round ${x}: ${told(v, half)}`,
  });
  byId("values").replaceChildren(...lines.filter((line) => held.mean[line.i][at] !== null).map((line) => make("tr", {}, make("th", { scope: "row" }, key(line)),
    make("td", {}, told(held.mean[line.i][at] / unit, (held.half[line.i][at] ?? 0) / unit)))));
  byId("caption").textContent = `${chosen.label}, ${byId("group").value === "all" ? "all users" : byId("group").value.replace("=", " ")}, round ${round}`;
  if (!data.lorenz) return;
  const share = data.lorenz[0][0].map((_, i, row) => i / (row.length - 1));
  chart(byId("lorenz"), {
    x: share, low: 0, high: 1, diagonal: true, across: "share of items, least shown first", up: "share of impressions", describe: `Lorenz curves of impressions in round ${round}.`,
    lines: lines.map((line) => ({ ...line, y: scaled(data.lorenz[line.i][at], 1000) })),
    number: (x, v) => `round ${round}: the least shown ${(100 * x).toFixed(0)} % of items have ${(100 * v).toFixed(1)} % of the impressions`,
  });
  chart(byId("tenths"), {
    x: data.tenths[0][0].map((_, i) => i + 1), low: 0, across: "tenth of items, 10 = most popular", up: "share of impressions", describe: `Impressions by popularity in round ${round}.`,
    lines: lines.map((line) => ({ ...line, y: scaled(data.tenths[line.i][at], 1000) })),
    number: (x, v) => `round ${round}, tenth ${x}: ${(100 * v).toFixed(1)} % of the impressions`,
  });
  item();
}

// -- one user, one item --------------------------------------------------------------------------------------------
function user() {
  const one = data.users[byId("user").value], line = Number(byId("of").value), table = byId("pages");
  byId("who").textContent = one.about;
  const pages = new Map();
  for (const row of one.courses[line]) {
    const name = row[0] + "/" + row[1];
    if (!pages.has(name)) pages.set(name, []);
    pages.get(name).push(row);
  }
  const taken = [];
  table.replaceChildren(...[...pages.values()].map((rows) => {
    const before = taken.slice(-5).reverse().join("; ");
    const n = taken.length;
    const cell = make("td");
    rows.forEach((row, i) => {
      const title = data.titles[row[2]];
      if (i) cell.append(" · ");
      if (row.length < 4) { cell.append(title); return; }
      cell.append(make("b", {}, "✓ " + title + (row[3] === null ? "" : ` ★${row[3]}`)));
      taken.push(title);
    });
    const talk = one.talks.find((said) => said.line === line && said.round === rows[0][0] && said.page === rows[0][1]);
    if (talk) {
      const open = make("details", {}, make("summary", {}, "prompt and answer"));
      for (const [role, text] of talk.messages) open.append(make("h4", {}, role), make("pre", {}, data.texts[text]));
      open.append(make("h4", {}, "answer"), make("pre", {}, talk.answer));
      cell.append(open);
    }
    return make("tr", {}, make("th", { scope: "row" }, String(rows[0][0]) + (rows[0][1] ? ` (page ${rows[0][1] + 1})` : "")), cell,
      make("td", {}, String(rows.filter((row) => row.length > 3).length)), make("td", {}, n ? `${n}: ${before}${n > 5 ? "; …" : ""}` : "nothing yet"));
  }));
  byId("nobody").hidden = pages.size > 0;
}
function item() {
  const one = data.items[byId("item").value];
  byId("what").textContent = one.about;
  chart(byId("exposure"), {
    x: one.shown[0].map((_, i) => i), low: 0, across: "round", up: "impressions in the round", describe: `Impressions per round of ${data.titles[one.title]}.`,
    lines: data.lines.map((line, i) => ({ ...line, name: key(line), y: one.shown[i] })).filter(shown),
    number: (x, v) => `round ${x}: ${v} impressions`,
  });
}

root.hidden = false;
groups();
for (const name of ["metric", "group", "seeds", "round"]) byId(name).addEventListener("input", () => { if (name === "metric") groups(); redraw(); });
if (data.lorenz) {
  byId("more").hidden = false;
  options(byId("user"), data.users.map((one) => one.id));
  options(byId("of"), data.lines.map(key));
  byId("of").value = Math.max(0, data.lines.findLastIndex((line) => line.mode === "loop" && !["random", "oracle"].includes(line.arm)));
  byId("user").value = data.users.findLastIndex((one) => one.talks.length) < 0 ? data.users.length >> 1 : 0;
  options(byId("item"), data.items.map((one) => data.titles[one.title]));
  for (const name of ["user", "of"]) byId(name).addEventListener("input", user);
  byId("item").addEventListener("input", item);
  user();
}
redraw();
let pause;
addEventListener("resize", () => { clearTimeout(pause); pause = setTimeout(redraw, 100); });
})();
