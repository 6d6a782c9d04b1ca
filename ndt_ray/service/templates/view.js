// Sentences, charts and tables as the API gives them.
import { el, table } from "./table.js";

const BADGES = { finding: "finding", nothing: "nothing found", described: "description", caution: "caution" };
const themes = JSON.parse(document.getElementById("themes").textContent);
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
export const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";

const drawn = new Map(); // node -> spec, as long as it is in the page
export async function draw(node, spec) {
  drawn.set(node, spec);
  try {
    if (node.view) node.view.finalize();
    node.view = await window.vegaEmbed(node, structuredClone(spec), {
      mode: "vega-lite", renderer: "canvas", config: isDark() ? themes.dark : themes.light,
      actions: { export: true, source: false, compiled: false, editor: false }, tooltip: { theme: isDark() ? "dark" : "light" },
    });
  } catch (error) {
    node.classList.add("failed");
    node.textContent = `This chart could not be drawn: ${error.message}`;
  }
}
export async function redraw() {
  for (const [node, spec] of [...drawn]) {
    if (node.isConnected) await draw(node, spec);
    else { if (node.view) node.view.finalize(); drawn.delete(node); }
  }
}
dark.addEventListener("change", redraw);

const sign = name => document.getElementById(`sign-${name}`).content.cloneNode(true);

export function plate(value) {
  const later = [];
  const figures = value.figures.map(figure => {
    const charts = figure.specs.map(spec => {
      const node = el("div", { class: "chart", role: "img", "aria-label": figure.alt, style: `min-height: ${(spec.height || 200) + 44}px` });
      later.push(() => draw(node, spec));
      return node;
    });
    return el("figure", {}, el("figcaption", {}, figure.title), el("div", { class: charts.length > 1 ? "stack" : null }, charts));
  });
  const ramp = value.ramp && el("div", { class: "ramp", role: "img", "aria-label": `Colour scale: ${value.ramp.title}` },
    el("span", { class: "bar", style: `background: var(--${value.ramp.range})` }),
    el("span", { class: "ticks", "aria-hidden": "true" }, value.ramp.ticks.map(([label, place]) => el("span", { style: `left: ${100 * place}%` }, label))),
    el("span", { class: "of" }, value.ramp.title));
  const keys = value.keys.map(([name, meaning]) => el("p", {}, sign(name), " ", meaning));
  const node = el("div", { class: "plate" }, el("h3", {}, value.title),
    ramp || keys.length ? el("div", { class: "key" }, ramp, keys) : null,
    el("div", { class: `figures${value.wide ? " wide" : ""}` }, figures),
    value.note ? el("p", { class: "note" }, value.note) : null);
  return { node, start: async () => { for (const one of later) await one(); } };
}

export function section(value, name, keep, state) {
  const claims = value.claims.map(claim => el("li", { class: `claim ${claim.kind}` },
    el("span", { class: "badge" }, BADGES[claim.kind]),
    el("div", {}, el("p", {}, claim.text), claim.sql ? el("details", { class: "query" }, el("summary", {}, "Computed from"), el("pre", { tabindex: "0" }, el("code", {}, claim.sql))) : null)));
  const missing = value.missing.map(m => el("p", { class: "missing" }, `${m.what}. `, m.command.startsWith("ndt ") ? ["To compute it: ", el("code", {}, m.command)] : m.command));
  const plates = value.plates.map(plate);
  const sheets = value.sheets.map((sheet, i) => table(sheet, { name: `${name}-${i}`, keep: i ? null : keep, state: i ? {} : state }).node);
  const node = el("section", {}, el("h2", {}, value.title), missing, claims.length ? el("ul", { class: "claims" }, claims) : null, plates.map(p => p.node), sheets);
  return { node, start: async () => { for (const p of plates) await p.start(); } };
}
