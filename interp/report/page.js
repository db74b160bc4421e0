(() => {
  "use strict";
  const figure = document.querySelector('[data-figure="attention"]');
  if (!figure) return;
  const data = JSON.parse(document.getElementById("attention-data").textContent);
  const grids = figure.querySelector(".grids");
  const readout = document.getElementById("attention-readout");
  const headSelect = document.getElementById("attention-head");
  const promptSelect = document.getElementById("attention-prompt");
  const SVG = "http://www.w3.org/2000/svg";
  const SEQUENTIAL = ["#ffffff", "#d6e6f4", "#8fc1de", "#3787c0", "#0b4d94", "#08306b"];
  const DIVERGING = ["#053061", "#2f79b5", "#9bc9e0", "#f7f7f7", "#f7b799", "#ca4842", "#67001f"];
  const PANELS = [
    { name: "base", title: "Base", ramp: SEQUENTIAL },
    { name: "tuned", title: "Tuned", ramp: SEQUENTIAL },
    { name: "difference", title: "Tuned minus base", ramp: DIVERGING },
  ];
  const FONT = 10;
  const GLYPH = 6.1; // width of a character at FONT
  const TOP = 6; // room for half of the first label where cells are smaller than it
  const LONGEST = 11; // characters of a token that a label shows
  const HINT = "Point at a cell, or focus the grids and use the arrow keys, to read it in both models.";
  let state = null; // what is drawn now: sizes, values, marks
  let cursor = null; // [query, key]

  const element = (name, attributes, parent) => {
    const node = document.createElementNS(SVG, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    parent.appendChild(node);
    return node;
  };
  const html = (name, parent, text, className) => {
    const node = document.createElement(name);
    if (text) node.textContent = text;
    if (className) node.className = className;
    parent.appendChild(node);
    return node;
  };
  const mix = (ramp, share) => {
    const place = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
    const low = Math.min(Math.floor(place), ramp.length - 2);
    const part = place - low;
    const channel = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    const mixed = [0, 1, 2].map((i) => Math.round(channel(ramp[low], i) * (1 - part) + channel(ramp[low + 1], i) * part));
    return `rgb(${mixed.join(",")})`;
  };
  const words = (value, signed, digits = 3) =>
    (signed && value > 0 ? "+" : "") + value.toFixed(digits).replace("-", "\u2212");
  const label = (token) => (token.length > LONGEST ? token.slice(0, LONGEST - 1) + "\u2026" : token);

  function select(node, names) {
    names.forEach((name, i) => {
      const option = html("option", node, name);
      option.value = String(i);
    });
    node.addEventListener("change", draw);
  }

  function values() {
    const example = data.examples[Number(promptSelect.value)];
    const pair = example.patterns[Number(headSelect.value)];
    const full = pair.map((rows) =>
      rows.map((row) => Array.from({ length: example.keys }, (_, key) => (row[key] || 0) / data.steps)));
    const difference = full[1].map((row, q) => row.map((value, k) => value - full[0][q][k]));
    return { tokens: example.tokens, asking: example.queries, at: example.at, all: [full[0], full[1], difference] };
  }

  function draw() {
    hide();
    cursor = null;
    readout.textContent = HINT;
    grids.replaceChildren();
    const { tokens, asking, at, all } = values();
    const largest = (matrix) => matrix.reduce((most, row) => row.reduce((m, v) => Math.max(m, Math.abs(v)), most), 0);
    const top = Math.max(largest(all[0]), largest(all[1])) || 1;
    const apart = largest(all[2]) || 1;
    const bounds = [[0, top], [0, top], [-apart, apart]];
    state = { tokens, asking, at, all, queries: all[0].length, keys: all[0].length ? all[0][0].length : 0, panels: [] };
    // many tokens need room: two grids abreast rather than three
    grids.style.setProperty("--least", tokens.length > 28 ? "440px" : "290px");
    PANELS.forEach((panel, i) => {
      const box = html("div", grids);
      html("h3", box, panel.title);
      state.panels.push({ box, panel, bounds: bounds[i], matrix: all[i] });
    });
    // all boxes first: the grid's columns, and so the widths, depend on how many there are
    state.panels.forEach(drawPanel);
    figure.dataset.drawn = "true";
    figure.dataset.cells = String(state.queries * state.keys);
  }

  function drawPanel(entry) {
    const { box, panel, bounds, matrix } = entry;
    const { tokens, asking, queries, keys } = state;
    const width = Math.max(200, Math.min(box.clientWidth, 520));
    const margin = 8 + GLYPH * tokens.reduce((most, token) => Math.max(most, label(token).length), 1);
    const cell = Math.min(46, (width - margin - 2) / keys);
    const height = TOP + cell * queries + margin;
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${panel.title}: ${queries} by ${keys} tokens` }, box);
    svg.style.maxWidth = `${width}px`;
    element("rect", { x: margin, y: TOP, width: cell * keys, height: cell * queries, fill: "#fff", stroke: "#cfcfca" }, svg);
    const cells = element("g", { "shape-rendering": "crispEdges" }, svg);
    matrix.forEach((row, q) => row.forEach((value, k) => {
      if (value === 0) return;
      const fill = mix(panel.ramp, (value - bounds[0]) / (bounds[1] - bounds[0]));
      element("rect", { x: margin + k * cell, y: TOP + q * cell, width: cell, height: cell, fill }, cells);
    }));
    const every = Math.ceil((FONT + 2) / cell);
    for (let q = 0; q < queries; q += every) text(svg, margin - 5, TOP + (q + 0.5) * cell, label(asking[q] || ""), 0);
    for (let k = 0; k < keys; k += every) text(svg, margin + (k + 0.5) * cell, TOP + queries * cell + 5, label(tokens[k] || ""), -90);
    const look = { fill: "none", stroke: "#111", "stroke-width": 1.5, visibility: "hidden" };
    Object.assign(entry, { svg, margin, cell, width, mark: element("rect", { width: cell, height: cell, ...look }, svg) });
    svg.addEventListener("pointermove", (event) => point(entry, event));
    svg.addEventListener("pointerdown", (event) => point(entry, event));
    svg.addEventListener("pointerleave", hide);
    scale(box, panel, bounds);
  }

  function text(svg, x, y, content, angle) {
    const node = element("text", {
      transform: `translate(${x} ${y}) rotate(${angle})`, "font-size": FONT, "text-anchor": "end", "dominant-baseline": "central",
      "aria-hidden": "true",
    }, svg);
    node.textContent = content;
  }

  function scale(box, panel, bounds) {
    const row = html("div", box, "", "scale");
    html("span", row, words(bounds[0], true, 2));
    html("span", row).style.background = `linear-gradient(to right, ${panel.ramp.join(",")})`;
    html("span", row, words(bounds[1], panel.name === "difference", 2));
  }

  const tip = html("div", document.body, "", "tip");
  tip.hidden = true;

  function hide() {
    tip.hidden = true;
  }

  function point(entry, event) {
    const frame = entry.svg.getBoundingClientRect();
    const zoom = entry.width / frame.width;
    const key = Math.floor(((event.clientX - frame.left) * zoom - entry.margin) / entry.cell);
    const query = Math.floor(((event.clientY - frame.top) * zoom - TOP) / entry.cell);
    if (key < 0 || query < 0 || key >= state.keys || query >= state.queries) return hide();
    show(query, key, entry);
  }

  function show(query, key, entry) {
    cursor = [query, key];
    const [base, tuned, difference] = state.all.map((matrix) => matrix[query][key]);
    const [places, rows] = state.at;
    const from = `query ${rows[query]} \u201c${state.asking[query]}\u201d`;
    const to = places[key] < 0 ? `keys between, ${state.tokens[key]}` : `key ${places[key]} \u201c${state.tokens[key]}\u201d`;
    readout.textContent = `${from} \u2192 ${to}: base ${words(base)}, tuned ${words(tuned)}, difference ${words(difference, true)}`;
    for (const { mark, margin, cell } of state.panels) {
      mark.setAttribute("x", margin + key * cell);
      mark.setAttribute("y", TOP + query * cell);
      mark.setAttribute("visibility", "visible");
    }
    const value = words(entry.matrix[query][key], entry.panel.name === "difference");
    tip.textContent = `${from}\n${to}\n${entry.panel.title}: ${value}`;
    tip.hidden = false;
    const frame = entry.svg.getBoundingClientRect();
    const zoom = frame.width / entry.width;
    const x = frame.left + (entry.margin + (key + 1) * entry.cell) * zoom + 8;
    const below = frame.top + (TOP + (query + 1) * entry.cell) * zoom + 8;
    const above = frame.top + (TOP + query * entry.cell) * zoom - tip.offsetHeight - 8;
    const y = below + tip.offsetHeight < window.innerHeight ? below : above;
    tip.style.left = `${Math.max(4, Math.min(x, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${y + window.scrollY}px`; // of the page, so that it stays at its cell while the page scrolls
  }

  grids.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") return hide();
    if (!(event.key in steps) || !state.keys) return;
    event.preventDefault();
    const [down, right] = cursor ? steps[event.key] : [0, 0];
    const [query, key] = cursor || [state.queries - 1, 0];
    const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
    show(clamp(query + down, state.queries), clamp(key + right, state.keys), state.panels[0]);
  });
  grids.addEventListener("blur", hide);

  select(headSelect, data.heads);
  select(promptSelect, data.examples.map((example) => example.label));
  draw();
  let drawnAt = grids.clientWidth;
  new ResizeObserver(() => {
    if (Math.abs(grids.clientWidth - drawnAt) < 2) return; // a change of height is our own doing
    drawnAt = grids.clientWidth;
    draw();
  }).observe(grids);
})();
