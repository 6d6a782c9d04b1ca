"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const kept = {
    get: key => { try { return localStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* a page without storage forgets */ } },
  };

  // Theme: the system's until the reader says otherwise.
  const themeButton = document.getElementById("theme");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => themeButton.setAttribute("aria-pressed", String(isDark()));
  const wanted = kept.get("ndt-theme");
  if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept.set("ndt-theme", root.dataset.theme);
    showTheme();
    redraw();
  });
  dark.addEventListener("change", () => { showTheme(); redraw(); });
  // Paper has no room for more columns: such a table stays folded, and says where it is.
  const widest = 16;
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll(".fold")) if (fold.querySelectorAll("th").length <= widest) fold.open = true;
    if (isDark()) { root.dataset.theme = "light"; showTheme(); redraw(); } });

  // Charts: drawn when they come near the window, the others while nothing else is to be done.
  const holder = document.getElementById("charts");
  const { specs = {}, light = {}, dark: darkConfig = {} } = holder ? JSON.parse(holder.textContent) : {};
  const charts = [...document.querySelectorAll("[data-chart]")];
  const stepsButton = document.getElementById("steps");
  let logSteps = false;
  let turn = 0;

  const withLogSteps = value => {
    if (Array.isArray(value)) return value.map(withLogSteps);
    if (!value || typeof value !== "object") return value;
    const made = Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === "values" ? v : withLogSteps(v)]));
    if (made.title === "training step" && made.scale) {
      made.scale = { ...made.scale, type: "symlog", constant: Math.max(1, made.scale.domain[1] / 100) };
    }
    return made;
  };
  const draw = async node => {
    if (node.dataset.turn === String(turn)) return;
    node.dataset.turn = String(turn);
    const spec = specs[node.dataset.chart];
    const name = node.closest("figure").querySelector("figcaption").textContent.trim().replace(/[^\w.-]+/g, "-");
    try {
      if (node.view) node.view.finalize();
      node.view = await vegaEmbed(node, logSteps ? withLogSteps(spec) : structuredClone(spec), {
        mode: "vega-lite", renderer: "canvas", config: isDark() ? darkConfig : light,
        actions: { export: true, source: false, compiled: false, editor: false }, downloadFileName: name,
        tooltip: { theme: isDark() ? "dark" : "light" },
      });
    } catch (error) {
      node.classList.add("failed");
      node.textContent = `This chart could not be drawn: ${error.message}`;
    }
  };
  const near = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "500px" });
  // A browser that prints without a window is never idle: `ndt report -o NAME.pdf` opens the page with #print.
  const idle = (location.hash !== "#print" && window.requestIdleCallback) || (work => setTimeout(work, 60));
  const rest = mine => idle(async () => {
    const next = charts.find(node => node.dataset.turn !== String(turn));
    if (mine !== turn || !next) { if (!next) root.dataset.drawn = String(turn); return; }
    await draw(next);
    rest(mine);
  });
  function redraw() {
    turn += 1;
    for (const node of charts) { near.unobserve(node); near.observe(node); }
    rest(turn);
  }
  if (stepsButton) {
    stepsButton.addEventListener("click", () => {
      logSteps = !logSteps;
      stepsButton.setAttribute("aria-pressed", String(logSteps));
      redraw();
    });
  }

  // Tables: sorted by their headers, filtered by text, saved as CSV with all digits.
  const value = cell => {
    const text = cell.dataset.v;
    return text === "" ? null : cell.classList.contains("n") ? Number(text) : text;
  };
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.classList.contains("n") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const next = now === "none" ? first : now === first ? second : "none";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const rows = next === "none" ? original : [...original].sort((a, b) => {
        const [x, y] = [value(a.cells[column]), value(b.cells[column])];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
      });
      body.append(...rows);
    }));
    const sheet = table.closest(".sheet");
    const filter = sheet.querySelector("input");
    if (filter) {
      filter.addEventListener("input", () => {
        const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
        for (const row of original) {
          const text = row.textContent.toLowerCase();
          row.hidden = !words.every(word => text.includes(word));
        }
      });
    }
    const button = sheet.querySelector(".csv");
    if (button) {
      button.addEventListener("click", () => {
        const quoted = text => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
        const lines = [heads.map(head => quoted(head.textContent.trim()))];
        for (const row of body.rows) if (!row.hidden) lines.push([...row.cells].map(cell => quoted(cell.dataset.v)));
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([lines.map(line => line.join(",")).join("\n") + "\n"], { type: "text/csv" }));
        link.download = `${button.dataset.name}.csv`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      });
    }
  }

  // The section in view is marked in the contents.
  const links = new Map([...document.querySelectorAll("nav a")].map(a => [a.hash.slice(1), a]));
  const seen = new Set();
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
    const first = [...links.keys()].find(id => seen.has(id));
    for (const [id, link] of links) id === first ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }, { rootMargin: "-60px 0px -55% 0px" });
  for (const section of document.querySelectorAll("main > section")) watch.observe(section);

  showTheme();
  redraw();
})();
