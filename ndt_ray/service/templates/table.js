// A table that is sorted by its headers, filtered by text and saved as CSV; where it stands is told to whoever holds it.

export const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
};

const SHOWN = 500; // rows that are drawn; filter and CSV see all of them

const places = (rows, column) => {
  const values = rows.map(row => row[column]).filter(v => typeof v === "number").map(Math.abs).sort((a, b) => a - b);
  if (!values.length || values.every(Number.isInteger)) return null;
  const top = values[Math.floor(0.9 * (values.length - 1))] || values.at(-1);
  return Math.min(4, Math.max(0, 3 - Math.floor(Math.log10(top))));
};

export const shown = (value, digits = null) => {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value) || typeof value === "object") return JSON.stringify(value);
  if (typeof value !== "number") return String(value);
  if (digits === null) return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  if (value && Math.abs(value) < 0.5 * 10 ** -digits) return value.toExponential(1);
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
};

const order = (a, b) => {
  if (a === null || b === null) return null;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
};

const quoted = value => {
  const text = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

const save = (name, columns, rows) => {
  const lines = [columns, ...rows].map(row => row.map(quoted).join(","));
  const link = el("a", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

// `data`: title, columns, numeric, rows, docs. `options`: name (of the CSV), state {sort, dir, filter}, keep(state),
// cell(column, value, row) -> node or null, href of a CSV elsewhere, note.
export function table(data, options = {}) {
  const state = { sort: "", dir: "", filter: "", ...options.state };
  const title = data.title || "Rows";
  const count = el("p", { class: "count" });
  const input = el("input", { type: "search", placeholder: "filter rows", autocomplete: "off", spellcheck: "false", "aria-label": `Filter ${title}` });
  input.value = state.filter;
  const body = el("tbody");
  let now = data;

  const kept = () => {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = now.rows.filter(row => {
      if (!words.length) return true;
      const text = row.map(v => shown(v)).join(" ").toLowerCase();
      return words.every(word => text.includes(word));
    });
    const at = now.columns.indexOf(state.sort);
    if (at >= 0) {
      const sign = state.dir === "desc" ? -1 : 1;
      rows = [...rows].sort((a, b) => {
        const found = order(a[at], b[at]);
        return found === null ? (a[at] === null) - (b[at] === null) : sign * found;
      });
    }
    return rows;
  };
  const draw = () => {
    const rows = kept();
    const digits = now.columns.map((_, i) => places(now.rows, i));
    body.replaceChildren(...rows.slice(0, SHOWN).map(row => el("tr", {}, row.map((value, i) => {
      const made = options.cell && options.cell(now.columns[i], value, row);
      return el("td", { class: now.numeric[i] ? "n" : null }, made || shown(value, typeof value === "number" ? digits[i] : null));
    }))));
    const total = data.total > now.rows.length ? ` of ${data.total.toLocaleString("en")}` : "";
    const few = rows.length > SHOWN ? `first ${SHOWN} of ` : "";
    count.textContent = `${few}${rows.length.toLocaleString("en")}${total} row${rows.length === 1 && !total ? "" : "s"}`;
    for (const head of heads) {
      const mine = head.dataset.column === state.sort;
      head.setAttribute("aria-sort", !mine ? "none" : state.dir === "desc" ? "descending" : "ascending");
    }
  };
  const heads = now.columns.map((column, i) => el("th", { scope: "col", class: now.numeric[i] ? "n" : null, "data-column": column },
    el("button", { type: "button", title: (data.docs || {})[column], onclick: () => {
      const first = now.numeric[i] ? "desc" : "asc";
      const second = first === "asc" ? "desc" : "asc";
      const next = state.sort !== column ? first : state.dir === first ? second : "";
      Object.assign(state, { sort: next ? column : "", dir: next });
      draw();
      if (options.keep) options.keep(state);
    } }, column)));
  input.addEventListener("input", () => {
    state.filter = input.value;
    draw();
    if (options.keep) options.keep(state);
  });
  const csv = options.href
    ? el("a", { class: "button", href: options.href, download: true }, "CSV")
    : el("button", { type: "button", onclick: () => save(`${options.name || "rows"}.csv`, now.columns, kept()) }, "CSV");
  const region = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
    el("table", {}, el("thead", {}, el("tr", {}, heads)), body));
  const parts = [
    el("div", { class: "sheet-head" }, data.folded ? null : el("h3", {}, title), count,
      data.rows.length > 5 || state.filter ? el("label", { class: "filter" }, input) : null, csv),
    data.rows.length ? region : el("p", { class: "missing" }, "No rows."),
    data.sql ? el("details", { class: "docs" }, el("summary", {}, "Query"), el("pre", { tabindex: "0" }, el("code", {}, data.sql)),
      el("p", { class: "count" }, el("a", { href: `?view=sql&sql=${encodeURIComponent(data.sql)}`, "data-go": true }, "Open in the console"))) : null,
  ];
  const node = el("div", { class: "sheet" }, data.folded
    ? el("details", { class: "fold" }, el("summary", {}, el("h3", {}, title), " ", el("span", { class: "count" }, `${data.total} rows`)), parts)
    : parts);
  draw();
  return { node, update: next => { now = next; draw(); } };
}
