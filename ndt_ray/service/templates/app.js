// The pages. What is seen stands in the address: sweep, view, measure, sort, dir, filter, sql.
import { el, shown, table } from "./table.js";
import { isDark, plate, redraw, section } from "./view.js";

const EVERY = 2000; // ms between two questions whether something is new
const main = document.getElementById("main");
const live = document.getElementById("live");
const read = () => Object.fromEntries(new URLSearchParams(location.search));
const VIEWS = [["trials", "Trials"], ["map", "Map"], ["events", "Events"]];

// -- the API: an answer that has not changed is 304, and not drawn again
const tags = new Map();
async function ask(path, fresh = false) {
  const headers = !fresh && tags.has(path) ? { "If-None-Match": tags.get(path) } : {};
  const answer = await fetch(`/api/v1${path}`, { headers, cache: "no-store" });
  if (answer.status === 304) return null;
  if (answer.status === 401) { location.assign("/login"); return null; }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  if (answer.headers.get("ETag")) tags.set(path, answer.headers.get("ETag"));
  return value;
}

// -- where we are
let turn = 0;
let poll = null;
export function go(changes, replace = false) {
  const next = { ...read(), ...changes };
  const kept = new URLSearchParams(Object.entries(next).filter(([, v]) => v !== "" && v !== null && v !== undefined));
  history[replace ? "replaceState" : "pushState"](null, "", kept.size ? `?${kept}` : location.pathname);
  if (!replace) show();
}
const keep = state => go({ sort: state.sort, dir: state.dir, filter: state.filter }, true);
const tableState = () => { const { sort = "", dir = "", filter = "" } = read(); return { sort, dir, filter }; };
const link = (query, text, current = false) => el("a", { href: query, "data-go": true, "aria-current": current ? "true" : null }, text);
document.addEventListener("click", event => {
  const found = event.target.closest("a[data-go]");
  if (!found || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", found.getAttribute("href"));
  show();
});
addEventListener("popstate", show);

function head(title, about, tabs) {
  document.getElementById("title").textContent = title;
  document.title = `${title} · ndt`;
  const line = document.getElementById("about");
  line.hidden = !about;
  line.textContent = about || "";
  document.getElementById("tabs").replaceChildren(...tabs.map(tab => el("li", { class: tab.end ? "end" : null }, tab.node)));
}
const tabsOf = (sweep, view) => [
  { node: link("?", "Sweeps", !sweep && view !== "sql") },
  ...(sweep ? VIEWS.map(([id, text]) => ({ node: link(`?${new URLSearchParams({ sweep, view: id })}`, text, view === id) })) : []),
  ...(sweep ? [{ node: el("a", { href: `/sweeps/${encodeURIComponent(sweep)}/report` }, "Report") }] : []),
  { node: link(`?${new URLSearchParams({ view: "sql", ...(sweep ? { sweep } : {}) })}`, "SQL", view === "sql"), end: true },
];
const failed = error => el("p", { class: "banner", role: "alert" }, error.message);

async function show() {
  const mine = ++turn;
  const { sweep = "", view = sweep ? "trials" : "" } = read();
  poll = null;
  main.setAttribute("aria-busy", "true");
  try {
    const page = view === "sql" ? sqlPage : sweep ? sweepPage : sweepsPage;
    await page(mine, sweep, view);
  } catch (error) {
    if (mine === turn) main.replaceChildren(failed(error));
  }
  if (mine === turn) { main.removeAttribute("aria-busy"); status(...(poll ? ["live", "on"] : [""])); document.documentElement.dataset.shown = String(mine); }
}

// -- polling: paused while nobody looks
const status = (text, kind = "") => { live.textContent = text; live.className = `live ${kind}`; };
async function tick() {
  if (!document.hidden && poll) {
    const mine = turn;
    try { await poll(mine); if (mine === turn) status("live", "on"); }
    catch (error) { status("no answer", "lost"); }
  } else if (poll) status("paused");
  setTimeout(tick, EVERY);
}

// -- sweeps
const clock = s => s === null ? "" : s < 90 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
const done = row => row.share !== null ? row.share : row.trials ? row.finished / row.trials : 0;
const bar = share => el("span", { class: "bar-of", role: "img", "aria-label": `${Math.round(100 * share)} %` }, el("i", { style: `width: ${100 * share}%` }));
const stateOf = row => el("span", { class: `state ${row.failed_packs && row.state !== "running" ? "failed" : row.state}` }, row.state + (row.failed_packs ? `, ${row.failed_packs} failed` : ""));

const COLUMNS = ["sweep", "state", "progress", "finished", "trials", "time left", "asks"];
const sheetOf = sweeps => ({
  title: "Sweeps of this store", columns: COLUMNS, numeric: [false, false, true, true, true, true, false], total: sweeps.length,
  rows: sweeps.map(s => [s.sweep, s.state, done(s), s.finished, s.trials, s.eta_seconds, s.about]), docs: {},
});
async function sweepsPage(mine) {
  const { sweeps } = await ask("/sweeps", true);
  if (mine !== turn) return;
  head("Sweeps", "", tabsOf("", ""));
  let rows = new Map(sweeps.map(s => [s.sweep, s]));
  const made = table(sheetOf(sweeps), { name: "sweeps", state: tableState(), keep, cell: (column, value, row) => {
    if (column === "sweep") return link(`?${new URLSearchParams({ sweep: value })}`, value);
    if (column === "state") return stateOf(rows.get(row[0]));
    if (column === "progress") return el("span", {}, bar(value), el("span", { class: "percent" }, `${Math.round(100 * value)} %`));
    return column === "time left" ? el("span", {}, clock(value) || "–") : null;
  } });
  const empty = el("p", { class: "missing" }, "No sweep yet. To run one: ", el("code", {}, "ndt sweep digits"));
  main.replaceChildren(el("section", {}, sweeps.length ? made.node : empty));
  poll = async now => {
    const next = await ask("/sweeps");
    if (!next || now !== turn) return;
    if (next.sweeps.length !== rows.size && !rows.size) { show(); return; }
    rows = new Map(next.sweeps.map(s => [s.sweep, s]));
    made.update(sheetOf(next.sweeps));
  };
}

// -- one sweep
function facts(one) {
  const parts = [stateOf(one), el("span", {}, bar(done(one)), `${Math.round(100 * done(one))} %`),
    el("span", {}, el("b", {}, shown(one.finished)), ` of ${shown(one.trials)} trials finished`)];
  if (one.running_packs) parts.push(el("span", {}, `${one.running_packs} packs running`));
  if (one.rate) parts.push(el("span", {}, `${shown(one.rate)} seed-steps a second`));
  if (one.eta_seconds !== null) parts.push(el("span", {}, `${clock(one.eta_seconds)} left`));
  return [el("div", { class: "facts-line" }, parts),
    ...one.failures.map(f => el("p", { class: "failure" }, `${f.cell} (pack ${f.pack}): `, el("code", {}, f.error.split("\n")[0]))),
    ...one.notices.map(text => el("p", { class: "failure" }, text))];
}
async function sweepPage(mine, sweep, view) {
  const base = `/sweeps/${encodeURIComponent(sweep)}`;
  const one = await ask(base, true);
  if (mine !== turn) return;
  head(sweep, one.about, tabsOf(sweep, view));
  const top = el("div", {}, facts(one));
  const place = el("div", {}, el("p", { class: "count" }, "…"));
  main.replaceChildren(el("section", {}, top, place));
  const views = { trials: trialsView, map: mapView, events: eventsView };
  const update = await (views[view] || trialsView)(base, place, one, sweep);
  let waited = 0;
  poll = async now => {
    const next = await ask(base);
    if (next && now === turn) top.replaceChildren(...facts(next));
    if (update && now === turn && (view === "trials" || ++waited % 5 === 0)) await update(now);
  };
}
async function trialsView(base, place, one, sweep) {
  const sheet = await ask(`${base}/trials`, true);
  const cell = (column, value) => column === "status" ? el("span", { class: `state ${value}` }, value) : column === "trial" ? el("code", {}, value.slice(0, 8)) : null;
  const made = table(sheet, { name: `${sweep}-trials`, state: tableState(), keep, cell, href: `/api/v1${base}/trials.csv` });
  place.replaceChildren(made.node);
  return async now => {
    const next = await ask(`${base}/trials`);
    if (next && now === turn) made.update(next);
  };
}
async function mapView(base, place, one) {
  const { measure = "" } = read();
  const pathOf = name => `${base}/map${name ? `?measure=${encodeURIComponent(name)}` : ""}`;
  const found = await ask(pathOf(measure), true);
  const choose = el("select", { id: "measure", onchange: () => go({ measure: choose.value }) },
    one.measures.map(name => el("option", { value: name, selected: name === found.measure }, name.replaceAll("_", " "))));
  const made = plate(found.plate);
  place.replaceChildren(el("div", { class: "controls" }, el("label", { for: "measure" }, "measure"), choose), made.node);
  await made.start();
  return async now => {
    const next = await ask(pathOf(measure));
    if (!next || now !== turn) return;
    const again = plate(next.plate);
    place.lastElementChild.replaceWith(again.node);
    await again.start();
  };
}
async function eventsView(base, place, one, sweep) {
  const draw = async value => {
    const made = section(value, `${sweep}-events`, keep, tableState());
    place.replaceChildren(made.node);
    await made.start();
  };
  await draw(await ask(`${base}/events`, true));
  return async now => {
    const next = await ask(`${base}/events`);
    if (next && now === turn) await draw(next);
  };
}

// -- SQL
const EXAMPLES = [
  ["accuracy by cell", "SELECT t.cell, count(*) AS trials, avg(o.final_accuracy) AS accuracy\nFROM outcomes o JOIN trials t USING (sweep, pack, trial_id)\nGROUP BY 1 ORDER BY 1"],
  ["dimensionality by layer", "SELECT cell, layer, step, avg(participation_ratio) AS pr\nFROM wide GROUP BY cell, layer, layer_index, step\nORDER BY cell, layer_index, step"],
  ["events", "SELECT * FROM events WHERE significant ORDER BY q"],
  ["attempts", "SELECT * FROM attempts ORDER BY started DESC"],
];
async function sqlPage(mine, sweep) {
  const { tables } = await ask("/tables", true);
  if (mine !== turn) return;
  head("SQL", "One SELECT over the tables of the store. Nothing is written, no file is read.", tabsOf(sweep, "sql"));
  const text = el("textarea", { id: "sql", spellcheck: "false", "aria-label": "Query" });
  text.value = read().sql || (tables.length ? EXAMPLES[0][1] : "");
  const result = el("div", { id: "result", "aria-live": "polite" });
  const csv = el("a", { class: "button", download: true }, "CSV of up to 100,000 rows");
  let running = "";
  const run = el("button", { type: "button", onclick: ask_ }, "Run");
  const stop = el("button", { type: "button", disabled: true, onclick: () => fetch(`/api/v1/sql/${running}`, { method: "DELETE" }) }, "Cancel");
  const linkTo = () => { csv.href = `/api/v1/sql.csv?q=${encodeURIComponent(text.value)}`; };
  async function ask_() {
    if (running || !text.value.trim()) return;
    running = `p${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
    go({ sql: text.value }, true);
    linkTo();
    run.disabled = true;
    stop.disabled = false;
    result.replaceChildren(el("p", { class: "count" }, "running …"));
    try {
      const answer = await fetch("/api/v1/sql", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ sql: text.value, id: running }) });
      const value = await answer.json();
      if (!answer.ok) throw new Error(value.error);
      const made = table({ ...value, title: `Result, ${value.seconds} s`, total: value.rows.length }, { name: "query" });
      result.replaceChildren(...[value.notice && el("p", { class: "missing" }, value.notice), made.node].filter(Boolean));
    } catch (error) { result.replaceChildren(failed(error)); }
    running = "";
    run.disabled = false;
    stop.disabled = true;
  }
  text.addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask_(); } });
  text.addEventListener("input", linkTo);
  linkTo();
  const insert = words => { text.setRangeText(words, text.selectionStart, text.selectionEnd, "end"); text.focus(); linkTo(); };
  const schema = el("aside", { class: "schema", "aria-label": "Tables" }, tables.map(t => el("details", {},
    el("summary", { title: t.doc }, t.table, el("span", {}, t.rows === null ? "" : ` ${t.rows.toLocaleString("en")}`)),
    el("ul", {}, t.columns.map(c => el("li", { title: c.doc }, el("button", { type: "button", onclick: () => insert(c.name) }, el("code", {}, c.name)), ` ${c.type}${c.unit ? `, ${c.unit}` : ""}`))))));
  const examples = el("div", { class: "examples" }, EXAMPLES.map(([name, sql]) => el("button", { type: "button", onclick: () => { text.value = sql; linkTo(); ask_(); } }, name)));
  main.replaceChildren(el("section", {}, el("div", { class: "console" },
    el("div", {}, examples, text, el("div", { class: "buttons" }, run, stop, csv, el("span", { class: "count" }, "Ctrl-Enter runs it")), result), schema)));
  if (read().sql) await ask_();
}

// -- theme and keys
const button = document.getElementById("theme");
const kept = { get: () => { try { return localStorage.getItem("ndt-theme"); } catch { return null; } }, set: v => { try { localStorage.setItem("ndt-theme", v); } catch { /* forgotten */ } } };
if (["dark", "light"].includes(kept.get())) document.documentElement.dataset.theme = kept.get();
const press = () => button.setAttribute("aria-pressed", String(isDark()));
button.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  kept.set(document.documentElement.dataset.theme);
  press();
  redraw();
});
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  if (event.key === "/") { const input = main.querySelector("input[type=search]"); if (input) { event.preventDefault(); input.focus(); } }
  if (event.key === "d") button.click();
});
press();
show().then(tick);
