// Draws the pictures from the report's numbers, and sorts and filters the table. Nothing is fetched.
"use strict";

const report = JSON.parse(document.getElementById("report").textContent);
const peers = new Map(report.peers.map((peer) => [peer.name, peer]));
const FASTEST = "the fastest other peer";
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 760px)");
const touch = matchMedia("(pointer: coarse)");
const state = { baseline: report.eager, shown: new Set(peers.keys()), view: "seconds", printing: false };

// Colours and what every picture has in common.

const INK = {
  light: { text: "#191d21", muted: "#59636e", line: "#dce0e4", page: "#ffffff" },
  dark: { text: "#e7eaed", muted: "#9da7b1", line: "#2c333a", page: "#181c21" },
};
const theme = () => (dark.matches && !state.printing ? "dark" : "light");
const ink = () => INK[theme()];
const colour = (name) => peers.get(name)[theme()];

function draw(div, traces, layout) {
  const { text, muted, line, page } = ink();
  const axis = (more) => ({
    gridcolor: line, linecolor: line, zeroline: false, tickfont: { color: muted }, automargin: true, ...more,
  });
  const { xaxis, yaxis, ...others } = layout;
  const whole = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    margin: { l: 8, r: 12, t: 8, b: 40 },
    hoverlabel: { bgcolor: page, bordercolor: muted, font: { color: text }, align: "left", namelength: 0 },
    dragmode: touch.matches ? false : "zoom", // a finger scrolls the page
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: text },
    ...others,
    xaxis: axis(xaxis), yaxis: axis(yaxis),
  };
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  Plotly.react(div, traces, whole, { ...config, displayModeBar: touch.matches ? false : "hover" });
}

// What a picture is relative to.

function baseline(seconds) {
  if (state.baseline !== FASTEST) return state.baseline in seconds ? state.baseline : null;
  const others = Object.keys(seconds).filter((name) => !peers.get(name).ours);
  return others.reduce((best, name) => (!best || seconds[name].median < seconds[best].median ? name : best), null);
}
const times = (value) => (value === undefined ? "" : `${value.toFixed(2)}×`);
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // plotly reads tags
const shown = (name) => state.shown.has(name);

// Ticks of a logarithmic axis, in words.

function ticks(values, step, format) {
  const low = Math.min(...values), high = Math.max(...values), found = [];
  const first = Math.floor(Math.log(low) / Math.log(step)), last = Math.ceil(Math.log(high) / Math.log(step));
  for (let power = first; power <= last; power++) {
    found.push(step ** power);
    if (step === 10 && high / low < 200) found.push(2 * 10 ** power, 5 * 10 ** power);
  }
  return { tickvals: found, ticktext: found.map(format) };
}
const digits = (value) => String(Number(value.toPrecision(3)));
const inSeconds = (s) => (s >= 1 ? `${digits(s)} s` : s >= 1e-3 ? `${digits(s * 1e3)} ms` : `${digits(s * 1e6)} µs`);
function inBytes(count) {
  const unit = Math.max(0, Math.min(3, Math.floor(Math.log2(count) / 10)));
  return `${digits(count / 1024 ** unit)} ${["B", "KiB", "MiB", "GiB"][unit]}`;
}
const inRates = (rate) => (rate >= 1e12 ? `${digits(rate / 1e12)} TFLOP/s` : `${digits(rate / 1e9)} GFLOP/s`);

// The headline: a bar for each case, anchored at the baseline.

function drawSpeed() {
  const div = document.getElementById("plot-speed");
  const rows = report.headline.filter((row) => baseline(row.seconds));
  const speed = (row, name) => row.seconds[baseline(row.seconds)].median / row.seconds[name].median;
  const slot = (row) => rows.indexOf(row);
  const traces = [];
  const over = (row) => (state.baseline === FASTEST ? ` ${plain(baseline(row.seconds))}` : "");
  if (shown(report.ours)) {
    const ratios = rows.map((row) => speed(row, report.ours));
    const base = rows.map((row) => row.seconds[baseline(row.seconds)].median);
    traces.push({
      type: "bar", orientation: "h", name: report.ours, y: rows.map(slot), base: rows.map(() => 1),
      x: ratios.map((ratio) => ratio - 1), width: narrow.matches ? 0.3 : 0.56,
      marker: { color: colour(report.ours) }, customdata: ratios,
      hovertext: rows.map((row, i) =>
        `<b>${times(ratios[i])}</b> ${report.ours}<br>${row.seconds[report.ours].text}<br>` +
        `${plain(baseline(row.seconds))} ${row.seconds[baseline(row.seconds)].text}`),
      hoverinfo: "text",
    });
    traces.push({ // by itself, as a bar's whisker starts at the bar's own length
      type: "scatter", mode: "markers", name: "quartiles", y: rows.map(slot), x: ratios, hoverinfo: "skip",
      marker: { size: 1, color: ink().text },
      error_x: {
        type: "data", symmetric: false, thickness: 1.3, width: 4, color: ink().text,
        array: rows.map((row, i) => base[i] / row.seconds[report.ours].low - ratios[i]),
        arrayminus: rows.map((row, i) => ratios[i] - base[i] / row.seconds[report.ours].high),
      },
    });
  }
  for (const name of peers.keys()) {
    const here = rows.filter((row) => name in row.seconds);
    if (name === report.ours || name === state.baseline || !shown(name) || !here.length) continue;
    traces.push({
      type: "scatter", mode: "markers", name, y: here.map(slot), x: here.map((row) => speed(row, name)),
      marker: { color: colour(name), symbol: peers.get(name).symbol, size: 10, line: { color: ink().page, width: 1 } },
      hovertext: here.map((row) => `<b>${times(speed(row, name))}</b> ${plain(name)}<br>${row.seconds[name].text}`),
      hoverinfo: "text",
    });
  }
  const reach = ({ x, customdata, error_x: e }) =>
    customdata ?? (e ? x.flatMap((value, i) => [value - e.arrayminus[i], value + e.array[i]]) : x);
  const every = traces.flatMap(reach);
  const low = Math.min(0.8, ...every) / 1.12, high = Math.max(1.25, ...every) * 1.12;
  const numbers = rows.map((row, i) => ({
    xref: "paper", x: 1, xanchor: "left", y: i, showarrow: false, font: { size: 13 },
    text: `<b>${times(speed(row, report.ours))}</b>${narrow.matches ? "" : over(row)}`,
  }));
  const names = narrow.matches ? rows.map((row, i) => ({
    xref: "paper", x: 0, xanchor: "left", y: i, yshift: 16, showarrow: false, text: plain(row.name), font: { size: 11 },
    bgcolor: ink().page,
  })) : [];
  draw(div, traces, {
    height: rows.length * (narrow.matches ? 52 : 33) + 60,
    margin: { l: 8, t: 8, b: 40, r: state.baseline === FASTEST && !narrow.matches ? 240 : 66 },
    xaxis: {
      type: "log", range: [Math.log10(low), Math.log10(high)], ...ticks([low, high], 10, (v) => `${digits(v)}×`),
      title: { text: `relative to ${plain(state.baseline)}, higher is better`, font: { color: ink().muted } },
    },
    yaxis: {
      range: [rows.length - 0.4, narrow.matches ? -0.75 : -0.6], showgrid: false, fixedrange: true,
      tickvals: rows.map(slot), ticktext: rows.map((row) => `${plain(row.name)}  `), tickfont: { color: ink().text },
      showticklabels: !narrow.matches,
    },
    shapes: [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: ink().muted, width: 1.5 } }],
    annotations: [...numbers, ...names],
  });
  const spoken = rows.map((row) => `${row.name}: ${times(speed(row, report.ours))}`).join("; ");
  div.setAttribute("aria-label", `Bar chart, speed of fastmlp relative to ${state.baseline}. ${spoken}.`);
}

// Lines over what is swept.

function drawSweep(sweep) {
  const traces = [];
  const seen = [...peers.keys()].filter((name) => shown(name) && sweep.points.some((p) => name in p.seconds));
  for (const name of seen) {
    const value = {
      seconds: (p) => p.seconds[name]?.median,
      ratio: (p) => p.seconds[name] && baseline(p.seconds) && p.seconds[baseline(p.seconds)].median / p.seconds[name].median,
      memory: (p) => p.memory[name]?.bytes,
    }[state.view];
    const here = sweep.points.filter((p) => value(p));
    if (!here.length) continue;
    const detail = (p) => (state.view === "memory" ? p.memory[name].text
      : `${state.view === "ratio" ? `${times(value(p))}, ` : ""}${p.seconds[name].text}`);
    traces.push({
      type: "scatter", mode: "lines+markers", name, x: here.map((p) => p.x), y: here.map(value),
      line: { color: colour(name), width: name === report.ours ? 3 : 1.6 },
      marker: { symbol: peers.get(name).symbol, size: name === report.ours ? 8 : 6 },
      error_y: state.view !== "seconds" ? undefined : {
        type: "data", symmetric: false, thickness: 1, width: 0, color: colour(name),
        array: here.map((p) => p.seconds[name].high - p.seconds[name].median),
        arrayminus: here.map((p) => p.seconds[name].median - p.seconds[name].low),
      },
      hovertext: here.map((p) => `<b>${plain(name)}</b>, ${sweep.axis} ${p.x}<br>${detail(p)}`), hoverinfo: "text",
    });
  }
  if (state.view === "seconds") {
    traces.push({
      type: "scatter", mode: sweep.points.length > 1 ? "lines" : "markers", name: "floor", x: sweep.points.map((p) => p.x), y: sweep.points.map((p) => p.floor),
      line: { color: ink().text, width: 1.3, dash: "dot" }, marker: { color: ink().text, symbol: "line-ew-open", size: 14 },
      hovertext: sweep.points.map((p) => `<b>floor</b>, ${sweep.axis} ${p.x}<br>${p.floorText}`), hoverinfo: "text",
    });
  }
  const every = traces.flatMap((trace) => trace.y);
  const formats = { seconds: [10, inSeconds], ratio: [10, (v) => `${digits(v)}×`], memory: [Math.max(...every) < 64 * Math.min(...every) ? 4 : 32, inBytes] }[state.view];
  const room = Math.log(sweep.points.at(-1).x / sweep.points[0].x) / (narrow.matches ? 7 : 11);
  const labelled = [];
  for (const point of sweep.points) {
    if (!labelled.length || Math.log(point.x / labelled.at(-1).x) >= room) labelled.push(point);
  }
  draw(document.getElementById(`sweep-${sweep.name}`), traces, {
    height: 300,
    xaxis: {
      type: "log", title: { text: sweep.axis, font: { color: ink().muted }, standoff: 6 }, tickangle: 0,
      tickvals: labelled.map((p) => p.x), ticktext: labelled.map((p) => p.tick),
    },
    yaxis: { type: "log", ...(every.length ? ticks(every, ...formats) : {}) },
  });
}

// Points under the measured ceilings.

function drawRoofline() {
  const div = document.getElementById("plot-roofline"), roof = report.roofline;
  if (!roof) return empty(div, "Not measured: the report has no ceilings, or no case that multiplies matrices.");
  const intensity = (p) => p.operations / p.bytes;
  const rate = (p, name) => p.operations / p.seconds[name].median;
  const top = Math.max(...roof.matmul.map((m) => m.rate));
  const xs = roof.points.map(intensity);
  const left = Math.min(...xs) / 2.2, right = Math.max(...xs, ...roof.copy.map((c) => top / c.rate)) * 2.2;
  const { text, muted } = ink();
  const line = (x, y, name, dash) => ({
    type: "scatter", mode: "lines", x, y, name, showlegend: false, line: { color: muted, width: 1.6, dash },
    hovertext: name, hoverinfo: "text",
  });
  const traces = [
    ...roof.copy.map((c, i) => line([left, top / c.rate], [left * c.rate, top],
      `${c.text}: ${digits(c.rate / 1e9)} GB/s`, i ? "dash" : "solid")),
    ...roof.matmul.map((m) => line([m.rate / Math.max(...roof.copy.map((c) => c.rate)), right], [m.rate, m.rate],
      `matmul, ${m.dtype}: ${inRates(m.rate)}`, "solid")),
  ];
  for (const name of [report.eager, report.ours]) {
    for (const [dtype, symbol] of [["float32", "circle"], ["bfloat16", "diamond"]]) {
      const here = roof.points.filter((p) => p.dtype === dtype && name in p.seconds);
      if (!shown(name) || !here.length) continue;
      traces.push({
        type: "scatter", mode: "markers", name: `${name}, ${dtype}`, x: here.map(intensity), y: here.map((p) => rate(p, name)),
        marker: {
          color: colour(name), symbol: name === report.ours ? symbol : `${symbol}-open`,
          size: name === report.ours ? 11 : 9, line: { color: name === report.ours ? ink().page : colour(name), width: 1.4 },
        },
        hovertext: here.map((p) =>
          `<b>${plain(p.name)}</b><br>${name}: ${p.seconds[name].text}<br>${inRates(rate(p, name))} at ` +
          `${digits(intensity(p))} FLOP/byte<br>floor ${p.floorText}, ${Math.round((100 * p.floor) / p.seconds[name].median)}%`),
        hoverinfo: "text",
      });
    }
  }
  const label = (x, y, words, more) => ({ x: Math.log10(x), y: Math.log10(y), text: words, showarrow: false,
    font: { size: 11, color: muted }, ...more });
  const annotations = [
    ...roof.matmul.map((m) => label(right, m.rate, `${narrow.matches ? "" : "matmul, "}${m.dtype}: ${inRates(m.rate)}`, { xanchor: "right", yshift: 10 })),
    ...roof.copy.map((c) => { // below the middle of its line
      const middle = Math.sqrt((left * top) / c.rate);
      const words = narrow.matches ? "" : `${c.text}: `;
      return label(middle, middle * c.rate, `${words}${digits(c.rate / 1e9)} GB/s`, { xanchor: "left", xshift: 8, yshift: -8 });
    }),
  ];
  const rates = traces.flatMap((trace) => trace.y);
  const range = [Math.min(...rates) / 1.4, top * 1.5];
  draw(div, traces, {
    height: narrow.matches ? 420 : 460, showlegend: true, annotations,
    legend: { orientation: "h", y: -0.15, font: { color: text } },
    xaxis: {
      type: "log", range: [Math.log10(left), Math.log10(right)], ...ticks([left, right], 10, digits),
      title: { text: "operations per byte", font: { color: muted }, standoff: 6 },
    },
    yaxis: { type: "log", range: range.map(Math.log10), ...ticks(range, 10, inRates) },
  });
}

// Test accuracy over seconds, a picture for each recipe.

function drawAccuracy(recipe) {
  const lines = report.accuracy.filter((line) => line.recipe === recipe && (!peers.has(line.peer) || shown(line.peer)));
  const percent = (values) => values.map((value) => 100 * value);
  const traces = lines.map((line) => {
    const means = percent(line.accuracy), half = line.dtype !== "float32";
    const paint = peers.has(line.peer) ? colour(line.peer) : ink().muted;
    return {
      type: "scatter", mode: "lines+markers", name: plain(`${line.peer}, ${line.dtype}`), x: line.seconds, y: means,
      line: { color: paint, width: 2, dash: half ? "dash" : "solid" },
      marker: { size: 7, symbol: half ? "diamond" : "circle" },
      error_y: {
        type: "data", symmetric: false, thickness: 1, width: 2, color: paint,
        array: percent(line.high).map((value, i) => value - means[i]),
        arrayminus: percent(line.low).map((value, i) => means[i] - value),
      },
      hovertext: means.map((value, i) => `<b>${plain(line.peer)}, ${plain(line.dtype)}</b>, epoch ${i + 1}<br>${value.toFixed(2)}% ` +
        `(${(100 * line.low[i]).toFixed(2)}-${(100 * line.high[i]).toFixed(2)}, ${line.seeds} seeds)<br>after ${inSeconds(line.seconds[i])}`),
      hoverinfo: "text",
    };
  });
  const { muted, text } = ink(), target = 100 * report.target;
  draw(document.getElementById(`accuracy-${recipe}`), traces, {
    height: 320, showlegend: true, legend: { orientation: "h", y: -0.22, font: { color: text } },
    xaxis: { title: { text: "seconds of training", font: { color: muted }, standoff: 6 }, rangemode: "tozero" },
    yaxis: { ticksuffix: "%" },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: target, y1: target, line: { color: muted, width: 1.2, dash: "dot" } }],
    annotations: [{ xref: "paper", x: 0, xanchor: "left", y: target, yshift: 8, text: `target ${target}%`, showarrow: false, font: { color: muted } }],
  });
}

// The page around the pictures.

function figure(holder, id, title, note) {
  const made = document.createElement("figure"), head = document.createElement("h3"), plot = document.createElement("div");
  head.textContent = title;
  plot.id = id;
  plot.className = "plot";
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `Line chart: ${title}. Its numbers are in the table of every row.`);
  made.append(head, plot);
  if (note) {
    const caption = document.createElement("figcaption");
    caption.textContent = note;
    made.append(caption);
  }
  document.getElementById(holder).append(made);
}

function empty(div, words) {
  div.className = "empty";
  div.textContent = words;
  div.removeAttribute("role");
  div.removeAttribute("aria-label");
}

const recipes = [...new Set(report.accuracy.map((line) => line.recipe))];

function drawAll() {
  if (report.headline.length) drawSpeed();
  else empty(document.getElementById("plot-speed"), "Not measured.");
  report.sweeps.forEach(drawSweep);
  drawRoofline();
  recipes.forEach(drawAccuracy);
  for (const word of document.querySelectorAll(".baseline")) word.textContent = state.baseline;
}

const SHAPES = {
  circle: "M6 1a5 5 0 1 0 .01 0Z", square: "M1.5 1.5h9v9h-9Z", diamond: "M6 0l6 6-6 6-6-6Z", "triangle-up": "M6 1l6 10H0Z",
  "triangle-down": "M6 11L0 1h12Z", "triangle-left": "M1 6l10-6v12Z", "triangle-right": "M11 6L1 12V0Z",
  cross: "M4 0h4v4h4v4H8v4H4V8H0V4h4Z", x: "M2.5 0L6 3.5 9.5 0 12 2.5 8.5 6 12 9.5 9.5 12 6 8.5 2.5 12 0 9.5 3.5 6 0 2.5Z",
  pentagon: "M6 0l6 4.5L9.7 12H2.3L0 4.5Z", hexagon: "M6 0l5.5 3v6L6 12 .5 9V3Z", "diamond-tall": "M6 0l4 6-4 6-4-6Z",
};

function controls() {
  const select = document.getElementById("baseline");
  const seen = (name) => report.headline.concat(report.sweeps.flatMap((sweep) => sweep.points)).some((row) => name in row.seconds);
  const names = [...peers.keys()].filter((name) => name !== report.ours && seen(name));
  if (!names.includes(state.baseline) && names.length) state.baseline = names[0];
  for (const name of [...names, FASTEST]) select.add(new Option(name, name, false, name === state.baseline));
  select.addEventListener("change", () => { state.baseline = select.value; drawAll(); });
  for (const peer of peers.values()) {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) state.shown.add(peer.name);
      else state.shown.delete(peer.name);
      drawAll();
    });
    label.style.setProperty("--light", peer.light);
    label.style.setProperty("--dark", peer.dark);
    label.innerHTML = `<svg viewBox="0 0 12 12" aria-hidden="true"><path d="${SHAPES[peer.symbol]}"/></svg>`;
    label.prepend(box);
    label.append(peer.name);
    document.getElementById("peers").append(label);
  }
  for (const button of document.getElementsByName("view")) {
    button.addEventListener("change", () => { state.view = button.value; report.sweeps.forEach(drawSweep); });
  }
}

// The table of every row.

function table() {
  const body = document.querySelector("#table tbody"), rows = [...body.rows];
  const heads = [...document.querySelectorAll("#table thead th")];
  const field = (id) => document.getElementById(id);
  const cell = (row, label) => row.querySelector(`[data-label="${label}"]`)?.textContent ?? "";
  const filters = { part: "part", dtype: "dtype", by: "by" };
  for (const [id, label] of Object.entries(filters)) {
    for (const value of new Set(rows.map((row) => cell(row, label)).filter(Boolean))) field(id).add(new Option(value));
  }
  function filter() {
    const words = field("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) &&
        Object.entries(filters).every(([id, label]) => !field(id).value || cell(row, label) === field(id).value);
      row.hidden = !fits;
      count += fits;
    }
    field("count").textContent = `${count} of ${rows.length} lines`;
  }
  function sort(column, direction) {
    const key = (row) => {
      const data = row.cells[column]?.dataset.value;
      return data === undefined ? row.cells[column]?.textContent ?? "" : data === "" ? null : Number(data);
    };
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true }));
    const empty = (value) => value === null || value === ""; // last, whichever way
    const sorted = rows.map((row) => [key(row), row]).sort(([a], [b]) =>
      empty(a) || empty(b) ? empty(a) - empty(b) : direction * compare(a, b));
    body.append(...sorted.map(([, row]) => row));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : direction > 0 ? "ascending" : "descending"));
  }
  heads.forEach((head, i) => {
    head.firstElementChild.addEventListener("click", () => sort(i, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
    field("sort").add(new Option(head.textContent.trim(), i));
  });
  field("sort").addEventListener("change", () => sort(Number(field("sort").value), 1));
  field("filters").addEventListener("input", filter);
  field("filters").addEventListener("submit", (event) => event.preventDefault());
  field("bar").addEventListener("submit", (event) => event.preventDefault());
  filter();
}

for (const sweep of report.sweeps) {
  figure("sweep-plots", `sweep-${sweep.name}`, sweep.title, sweep.stop && `Stopped before ${sweep.stop}.`);
}
if (!report.sweeps.length) empty(document.getElementById("sweep-plots"), "Not measured.");
for (const recipe of recipes) figure("accuracy-plots", `accuracy-${recipe}`, recipe, "");
controls();
table();
drawAll();
for (const query of [dark, narrow]) query.addEventListener("change", drawAll);
for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => { state.printing = printing; drawAll(); });
}
