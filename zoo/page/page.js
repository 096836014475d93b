"use strict";
// Every text is written by textContent or setAttribute, never as HTML.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SCALE = 10000;
  const data = JSON.parse(document.getElementById("data").textContent);

  function make(tag, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  function draw(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // A space is shown, since a token may be one.
  const shown = (token) => (token.trim() === "" ? token.replaceAll(" ", "\u2423").replaceAll("\n", "\u21b5") || "\u2205" : token);
  const decimal = (weight) => (weight / SCALE).toFixed(3);

  function mean(matrices) {
    return matrices[0].map((row, t) => row.map((_, s) => matrices.reduce((sum, m) => sum + m[t][s], 0) / matrices.length));
  }

  function choice(name, change) {
    const select = make("select", { onchange: change });
    select.dataset.control = name.toLowerCase();
    const label = make("label", {}, name, select);
    return { label, get: () => Number(select.value), set(options) {
      const before = select.selectedIndex >= 0 ? select.options[select.selectedIndex].text : null;
      select.replaceChildren(...options.map((text, i) => make("option", { value: i, textContent: text })));
      select.value = Math.max(options.indexOf(before), 0);
      label.hidden = options.length < 2;
    } };
  }

  // One panel: which model, which text, which layer, which head, and how it is drawn.
  function attentionPanel(root, examples) {
    const models = [...new Set(examples.map((example) => example.model))];
    const model = choice("Model", () => fillTexts());
    const text = choice("Text", () => fillLayers());
    const layer = choice("Layer", () => fillHeads());
    const head = choice("Head", () => render());
    const view = choice("View", () => render());
    const wrote = make("p", { className: "quiet" });
    const readout = make("p", { className: "readout" });
    readout.setAttribute("role", "status");
    const legend = make("p", { className: "quiet" }, "weight 0 ", make("span", { className: "scale" }), " 1");
    const stage = make("div", { className: "scroll", tabIndex: -1 });
    const controls = make("div", { className: "controls" }, ...[model, text, layer, head, view].map((c) => c.label));
    root.append(controls, wrote, readout, stage, legend);

    const ofModel = () => examples.filter((example) => example.model === models[model.get()]);
    const example = () => ofModel()[text.get()];
    let layers = [];

    function fillTexts() {
      text.set(ofModel().map((e) => e.text));
      fillLayers();
    }

    function fillLayers() {
      const { maps } = example();
      const cross = maps.filter((map) => map.name.endsWith("cross"));
      layers = maps.map((map) => ({ ...map, label: map.name }));
      if (cross.length > 1) {
        const all = cross.flatMap((map) => map.weights);
        layers.unshift({ ...cross[0], label: "cross, mean of all layers", weights: [mean(all)] });
      }
      layer.set(layers.map((map) => map.label));
      fillHeads();
    }

    function fillHeads() {
      const { weights } = layers[layer.get()];
      head.set(weights.length > 1 ? ["mean of all heads", ...weights.map((_, i) => `head ${i + 1}`)] : ["one head"]);
      render();
    }

    function render() {
      const { output, tokens } = example();
      const map = layers[layer.get()];
      const matrix = map.weights.length > 1 && head.get() > 0 ? map.weights[head.get() - 1] : mean(map.weights);
      const queries = tokens[map.queries], keys = tokens[map.keys];
      wrote.textContent = output ? `Wrote: ${output}` : "";
      readout.textContent = "Point at a cell or a token, or reach it with Tab and the arrow keys, to read its weight.";
      stage.replaceChildren(view.get() === 0 ? heatmap(matrix, queries, keys, map) : aligned(matrix, queries, keys));
    }

    const say = (text) => { readout.textContent = text; };

    function heatmap(matrix, queries, keys, map) {
      const table = make("table", { className: "heatmap" });
      table.setAttribute("role", "grid");
      table.setAttribute("aria-label", `Attention weights: ${map.queries} tokens in rows, ${map.keys} tokens in columns`);
      table.append(make("thead", {}, make("tr", {}, make("td"), ...keys.map((key) => make("th", { scope: "col", textContent: shown(key) })))));
      const body = make("tbody");
      const cells = matrix.map((row, t) => row.map((weight, s) => {
        const words = `${shown(queries[t])} \u2190 ${shown(keys[s])}: ${decimal(weight)}`;
        const cell = make("td", { tabIndex: t + s === 0 ? 0 : -1, onmouseenter: () => say(words), onfocus: () => say(words) });
        cell.style.setProperty("--w", weight / SCALE);
        cell.setAttribute("role", "gridcell");
        cell.setAttribute("aria-label", words);
        return cell;
      }));
      cells.forEach((row, t) => body.append(make("tr", {}, make("th", { scope: "row", textContent: shown(queries[t]) }), ...row)));
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      body.addEventListener("keydown", (event) => {
        const row = cells.findIndex((row) => row.includes(event.target));
        if (!(event.key in moves) || row < 0) return;
        event.preventDefault();
        const column = cells[row].indexOf(event.target);
        const next = cells[row + moves[event.key][0]]?.[column + moves[event.key][1]];
        if (!next) return;
        event.target.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      });
      table.append(body);
      return table;
    }

    function aligned(matrix, queries, keys) {
      const room = (label) => 14 + 9 * Math.max([...shown(label)].length, 1);
      const total = (labels) => labels.reduce((sum, label) => sum + room(label), 0);
      const width = Math.max(total(keys), total(queries)) + 24, bottom = 190;
      const place = (labels) => {
        const stretch = (width - 24) / Math.max(total(labels), 1);
        let x = 12;
        return labels.map((label) => {
          x += stretch * room(label);
          return x - (stretch * room(label)) / 2;
        });
      };
      const xs = place(keys), ys = place(queries);
      const picture = draw("svg", { class: "aligned", width, height: 215, viewBox: `0 0 ${width} 215`, role: "group" });
      picture.setAttribute("aria-label", "Source tokens above, what was written below; a line is as thick as its weight");
      const links = matrix.map((row, t) => row.map((weight, s) => {
        const share = weight / SCALE;
        const attributes = { x1: xs[s], x2: ys[t], y1: 26, y2: bottom - 18, class: "link" };
        return share < 0.01 ? null : draw("line", { ...attributes, "stroke-width": 9 * share, style: `opacity:${0.25 + 0.75 * share}` });
      }));
      picture.append(...links.flat().filter(Boolean));
      const token = (label, x, y, chosen, words) => {
        const node = draw("text", { x, y, "text-anchor": "middle", class: "token", tabindex: 0 });
        node.textContent = shown(label);
        const on = () => {
          picture.classList.add("chosen");
          node.classList.add("on");
          chosen.forEach((link) => link.classList.add("on"));
          say(words);
        };
        const off = () => {
          picture.classList.remove("chosen");
          picture.querySelectorAll(".on").forEach((other) => other.classList.remove("on"));
        };
        for (const name of ["mouseenter", "focus"]) node.addEventListener(name, on);
        for (const name of ["mouseleave", "blur"]) node.addEventListener(name, off);
        picture.append(node);
      };
      const most = (weights, labels) => weights.map((weight, i) => [weight, shown(labels[i])]).sort((a, b) => b[0] - a[0])
        .slice(0, 5).map(([weight, label]) => `${label} ${decimal(weight)}`).join(", ");
      keys.forEach((key, s) => token(key, xs[s], 18, links.map((row) => row[s]).filter(Boolean),
        `${shown(key)} \u2192 ${most(matrix.map((row) => row[s]), queries)}`));
      queries.forEach((query, t) => token(query, ys[t], bottom, links[t].filter(Boolean),
        `${shown(query)} \u2190 ${most(matrix[t], keys)}`));
      return picture;
    }

    view.set(["heatmap", "aligned sentences"]);
    model.set(models);
    fillTexts();
  }

  for (const root of document.querySelectorAll("[data-attention]")) attentionPanel(root, data.attention);

  for (const figure of document.querySelectorAll("[data-chart]")) {
    for (const box of figure.querySelectorAll("input[data-series]")) {
      box.addEventListener("change", () => {
        figure.querySelectorAll(`g[data-series="${box.dataset.series}"]`).forEach((g) => { g.style.display = box.checked ? "" : "none"; });
      });
    }
  }
})();
