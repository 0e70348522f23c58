"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, parent, properties = {}) => {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
};

// Tables: select a heading to sort. Empty cells stay last.
for (const table of all("table.sortable")) {
  all("thead th:not([data-fixed])", table).forEach((th) => {
    const button = make("button", th, { type: "button" });
    button.append(th.firstChild);
    th.prepend(button);
    th.ariaSort = "none";
    button.onclick = () => {
      const column = th.cellIndex;
      const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
      const descending = th.ariaSort === "none" ? th.classList.contains("n") : th.ariaSort === "ascending";
      all("th[aria-sort]", table).forEach((other) => (other.ariaSort = "none"));
      th.ariaSort = descending ? "descending" : "ascending";
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "" || x === "–" || y === "–") return (x === "" || x === "–") - (y === "" || y === "–");
        const difference = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
        return descending ? -difference : difference;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    };
  });
}

// The same round values as `_ticks` in charts.py.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough * 0.999);
  const values = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) values.push(k * step);
  return values;
}
const points = (d) => [...d.matchAll(/[ML]([^,]+),([^MLZ]+)/g)].map(([, x, y]) => [+x, -parseFloat(y)]);
const text = (value) => (value >= 10 ? value.toFixed(2) : String(+value.toPrecision(4)));

for (const figure of all(".chart")) {
  const frame = figure.querySelector(".frame"), svg = figure.querySelector("svg:not(.key)");
  const grid = svg.querySelector(".grid-lines"), caption = figure.querySelector("figcaption");
  const bands = all(".band", svg), values = all(".legend b", figure), rest = values.map((b) => b.textContent);
  const lines = all(".line", svg).map((path) => {
    const band = "band" in path.dataset ? bands.shift() : null, outline = band ? points(band.getAttribute("d")) : [];
    return { path, band, points: points(path.getAttribute("d")), outline };
  });
  const epochs = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  const home = svg.getAttribute("viewBox").split(" ").map(Number);
  let [left, top, width, height] = home, at = -1, from = null;
  const epochAt = (event) => {
    const box = svg.getBoundingClientRect();
    return left + (Math.min(Math.max(event.clientX - box.left, 0), box.width) / box.width) * width;
  };
  const percent = (x) => (100 * (x - left)) / width;
  const cursor = make("div", frame, { className: "cursor", hidden: true });
  const brush = make("div", frame, { className: "brush", hidden: true });
  const now = caption.querySelector("small"), reset = make("button", caption, { type: "button", textContent: "All epochs", hidden: true });

  function show(index) {
    at = index;
    cursor.hidden = index < 0;
    now.textContent = index < 0 ? "by epoch" : `epoch ${epochs[index]}`;
    if (index >= 0) cursor.style.left = `${percent(epochs[index])}%`;
    lines.forEach((line, i) => {
      const k = line.points.findIndex(([x]) => x === epochs[index]);
      if (index < 0) values[i].textContent = rest[i];
      else if (k < 0) values[i].textContent = "–";
      else {
        const n = line.outline.length, ends = n ? [text(line.outline[n - 1 - k][1]), text(line.outline[k][1])] : ["", ""];
        values[i].textContent = text(line.points[k][1]) + (ends[0] === ends[1] ? "" : ` (${ends.join("–")})`);
      }
    });
  }
  function zoom(first, last) {
    const seen = lines.flatMap((line) => [...line.points, ...line.outline]).filter(([x]) => x >= first && x <= last).map(([, y]) => y);
    if (first == null || seen.length < 2) [left, top, width, height] = home;
    else {
      const low = Math.min(...seen), high = Math.max(...seen), margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
      [left, top, width, height] = [first, -high - margin, last - first, high - low + 2 * margin];
    }
    reset.hidden = left === home[0] && width === home[2];
    frame.classList.toggle("zoomed", !reset.hidden);
    svg.setAttribute("viewBox", [left, top, width, height].join(" "));
    all("span", frame).forEach((span) => span.remove());
    const low = -top - height, labels = ticks(low, -top, 7);
    grid.setAttribute("d", labels.map((y) => `M${left},${-y}h${width}`).join(""));
    const decimals = Math.max(0, -Math.floor(Math.log10(labels[1] - labels[0]) + 1e-6));
    const label = (y) => (+y.toFixed(decimals) ? y.toFixed(decimals) : "0");
    for (const y of labels) make("span", frame, { className: "y", textContent: label(y) }).style.bottom = `${(100 * (y - low)) / height}%`;
    for (const x of ticks(left, left + width, 8).filter((x) => Number.isInteger(x) && x >= epochs[0] && x <= epochs.at(-1)))
      make("span", frame, { className: "x", textContent: x }).style.left = `${percent(x)}%`;
    show(-1);
  }
  const nearest = (x) => epochs.reduce((best, epoch, i) => (Math.abs(epoch - x) < Math.abs(epochs[best] - x) ? i : best), 0);
  svg.onpointerdown = (event) => {
    from = epochAt(event);
    svg.setPointerCapture(event.pointerId);
  };
  svg.onpointermove = (event) => {
    const x = epochAt(event);
    show(nearest(x));
    brush.hidden = from === null;
    if (from !== null) Object.assign(brush.style, { left: `${percent(Math.min(from, x))}%`, width: `${(100 * Math.abs(x - from)) / width}%` });
  };
  svg.onpointerup = (event) => {
    const [first, last] = [from, epochAt(event)].sort((a, b) => a - b).map((x) => epochs[nearest(x)]);
    const far = from !== null && Math.abs(percent(from) - percent(epochAt(event))) > 4;
    from = null;
    brush.hidden = true;
    if (far && last > first) zoom(first, last);
  };
  svg.onpointercancel = () => { from = null; brush.hidden = true; };
  svg.onpointerleave = () => from === null && show(-1);
  svg.onblur = () => show(-1);
  svg.ondblclick = reset.onclick = () => zoom();
  svg.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(Math.min(Math.max(at < 0 ? (step > 0 ? 0 : epochs.length - 1) : at + step, 0), epochs.length - 1));
    else if (event.key === "Escape") zoom();
    else return;
    event.preventDefault();
  };
  all(".legend li", figure).forEach((item, i) => {
    const mark = (on) => () => {
      figure.classList.toggle("faded", on);
      for (const part of [lines[i].path, lines[i].band]) part?.classList.toggle("on", on);
    };
    [item.onpointerenter, item.onpointerleave] = [mark(true), mark(false)];
  });
}

// One plot with a button for each metric.
for (const box of all("[data-tabs]")) {
  const figures = all("figure", box);
  const bar = document.createElement("div");
  bar.className = "tabs";
  box.prepend(bar);
  const buttons = figures.map((figure) => make("button", bar, { type: "button", textContent: figure.dataset.title.split(",")[0] }));
  const choose = (chosen) => figures.forEach((figure, i) => {
    figure.hidden = i !== chosen;
    buttons[i].ariaPressed = String(i === chosen);
  });
  buttons.forEach((button, i) => (button.onclick = () => choose(i)));
  choose(0);
}

// Read-outs below the figures.
const say = (element, line) => (element.closest("figure").querySelector("output").textContent = line);
const count = (n) => n.toLocaleString("en");
const sentence = (n, total, label, answer) =>
  `${label} → ${answer}: ${count(n)} of ${count(total)} (${total ? ((100 * n) / total).toFixed(1) : 0} %)`;
for (const table of all(".matrix")) {
  const names = all("thead th", table).map((th) => th.title);
  table.onpointerover = (event) => {
    const cell = event.target.closest("td[data-n]");
    if (!cell) return;
    const cells = all("td", cell.parentElement), total = cells.reduce((sum, td) => sum + +td.dataset.n, 0);
    say(table, sentence(+cell.dataset.n, total, cell.parentElement.cells[0].title, names[cells.indexOf(cell)]));
  };
}
for (const image of all("[data-cells]")) {
  const names = JSON.parse(image.dataset.names), counts = new Map(), totals = new Map();
  for (const [label, answer, n] of JSON.parse(image.dataset.cells)) {
    counts.set(label * names.length + answer, n);
    totals.set(label, (totals.get(label) ?? 0) + n);
  }
  image.onpointermove = (event) => {
    const box = image.getBoundingClientRect();
    const place = (offset, size) => Math.min(Math.max(Math.floor((offset / size) * names.length), 0), names.length - 1);
    const label = place(event.clientY - box.top, box.height), answer = place(event.clientX - box.left, box.width);
    say(image, sentence(counts.get(label * names.length + answer) ?? 0, totals.get(label) ?? 0, names[label], names[answer]));
  };
}
for (const element of all("[data-say]")) element.onpointerenter = () => say(element, element.dataset.say);

for (const select of all("[data-filter]")) {
  select.hidden = false;
  select.onchange = () => {
    for (const row of all("[data-pair]")) row.hidden = select.value !== "" && !row.dataset.pair.split(" ").includes(select.value);
  };
  if (select.options.length > 6) select.value = "0";
  select.onchange();
}

// A link to a run opens its section. Printing opens all sections.
const open = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", open);
for (const link of all('a[href^="#run-"]')) link.addEventListener("click", () => setTimeout(open));
open();
addEventListener("beforeprint", () => all("details.run").forEach((section) => (section.open = true)));
