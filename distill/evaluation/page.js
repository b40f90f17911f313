"use strict";
// All that a model, a benchmark or a user wrote goes into the page as text nodes, through `write`; never as markup.
(() => {
  const PAGE = 25; // problems
  const by = (id) => document.getElementById(id);
  const about = JSON.parse(by("about").textContent);
  const results = about.results;

  // ---- Elements and text

  // Controls, marks that turn the direction of writing, and halves of characters: nothing of these is drawn as it is.
  const ODD = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udfff]/gu;

  function write(parent, text) {
    text = String(text ?? "");
    let at = 0;
    for (const found of text.matchAll(ODD)) {
      parent.append(text.slice(at, found.index));
      const odd = document.createElement("span");
      odd.className = "odd";
      odd.textContent = "U+" + found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      parent.append(odd);
      at = found.index + found[0].length;
    }
    parent.append(text.slice(at));
    return parent;
  }

  // make("p", {class: "hint"}, "text", node, ...)
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat()) {
      if (child instanceof Node) element.append(child);
      else if (child !== null && child !== undefined) write(element, child);
    }
    return element;
  }

  const bdi = (text, kind) => make("bdi", {class: kind}, text);
  const drawing = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const plain = (text) => String(text).replace(ODD, (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase());
  const whole = (number) => number.toLocaleString("en");
  const percent = (share, digits = 1) => (100 * share).toFixed(digits) + "%";
  const several = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
  const isNumber = (value) => typeof value === "number";
  const wellFormed = (text) => text.replace(/[\ud800-\udfff]/gu, "\ufffd"); // as addresses spell it

  function duration(seconds) {
    const minutes = Math.floor(seconds / 60);
    if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  // {a: {b: 1}} as [["a.b", "1"]]
  function flat(value, prefix = "") {
    if (value === null || typeof value !== "object" || Array.isArray(value)) {
      return [[prefix, typeof value === "string" ? value : JSON.stringify(value)]];
    }
    return Object.entries(value).flatMap(([name, part]) => flat(part, prefix ? `${prefix}.${name}` : name));
  }
  const pairs = (value) => make("dl", {class: "pairs"}, flat(value).flatMap(([name, text]) => [make("dt", {}, bdi(name)), make("dd", {dir: "auto"}, text)]));

  // ---- What is packed

  async function unpack(id) {
    const letters = atob(by(id).textContent);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  const chunks = new Map(); // the last few, unpacked
  function chunk(number) {
    if (!chunks.has(number)) {
      if (chunks.size > 40) chunks.delete(chunks.keys().next().value);
      chunks.set(number, unpack(`chunk${number}`));
    }
    return chunks.get(number);
  }

  async function detail(sample) {
    let low = 0, high = index.chunks.length - 1; // chunks[low] <= sample < chunks[high]
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (index.chunks[middle] <= sample) low = middle; else high = middle;
    }
    return (await chunk(low))[sample - index.chunks[low]];
  }

  let index, samples, names;
  const problems = []; // {number, benchmark, id, key, text, gold, samples, right, verdict, tokens, hay}
  const byKey = new Map();

  function readIndex(read) {
    index = read;
    ({samples, names} = read);
    const columns = read.problems;
    columns.id.forEach((id, number) => {
      const benchmark = names.benchmark[columns.benchmark[number]];
      const problem = {number, benchmark, id, key: `${benchmark}/${id}`, text: columns.problem[number], gold: columns.gold[number], samples: [], right: 0, tokens: 0};
      problems.push(problem);
      byKey.set(wellFormed(problem.key), problem);
    });
    (samples.problem ?? []).forEach((number, sample) => {
      problems[number].samples.push(sample);
      problems[number].right += samples.correct[sample];
      problems[number].tokens += samples.tokens[sample] ?? 0;
    });
    for (const problem of problems) {
      problem.tokens /= problem.samples.length;
      problem.verdict = problem.right === 0 ? "wrong" : problem.right === problem.samples.length ? "right" : "mixed";
      const answers = new Set(problem.samples.map((sample) => samples.answer[sample] ?? ""));
      problem.hay = [problem.text, problem.id, problem.gold ?? "", ...answers].join("\n").toLowerCase();
    }
  }

  // ---- Head and figures

  function drawHead() {
    write(by("title"), about.title);
    const facts = about.title === results.model ? [] : [["model", results.model]];
    for (const [name, value] of Object.entries(results)) {
      if (name !== "model" && name !== "date" && (value === null || typeof value !== "object") && value !== "") facts.push([name, value]);
    }
    facts.push(results.date ? ["evaluated", results.date] : ["page written", about.written]);
    const entries = Object.values(results.benchmarks ?? {});
    const sum = (name) => entries.reduce((total, entry) => total + (entry[name] ?? 0), 0);
    facts.push(["problems", whole(sum("problems"))], ["samples", whole(sum("samples"))]);
    if (entries.length && entries.every((entry) => isNumber(entry.seconds))) facts.push(["time", duration(sum("seconds"))]);
    for (const [name, value] of facts) by("facts").append(make("div", {}, make("dt", {}, bdi(name)), make("dd", {}, bdi(value ?? "–"))));
  }

  const FLAWS = new Set(["unfinished", "truncated", "no answer", "repetition", "word repetition", "post answer", "several answers"]);
  const isShare = (name, figure) => !/tokens|seconds|length|characters/.test(name) && [figure.value, figure.low, figure.high].every((x) => !isNumber(x) || (x >= 0 && x <= 1));

  function drawFigure(name, figure) {
    const cell = make("td", {"data-name": plain(name), role: "cell"});
    if (!isNumber(figure?.value)) {
      if (figure) cell.append("–");
      return cell;
    }
    const share = isShare(name, figure);
    const digits = share ? 1 : Math.max(0, 2 - Math.floor(Math.log10(Math.max(1, Math.abs(figure.value)))));
    const form = (x) => (share ? percent(x) : x.toLocaleString("en", {maximumFractionDigits: digits}));
    cell.append(make("span", {class: "value"}, form(figure.value)));
    const interval = isNumber(figure.low) && isNumber(figure.high);
    cell.append(make("span", {class: "range"}, interval ? `[${form(figure.low)}, ${form(figure.high)}]` : "\u00a0"));
    if (share) {
      const bar = drawing("svg", {class: "figure", "aria-hidden": "true"});
      bar.append(drawing("rect", {class: "track", x: 0, y: 2, width: "100%", height: 6, rx: 3}));
      bar.append(drawing("rect", {class: FLAWS.has(name) ? "flaw" : "fill", x: 0, y: 2, width: percent(figure.value, 2), height: 6, rx: 3}));
      if (interval) {
        const [low, high] = [percent(figure.low, 2), percent(figure.high, 2)];
        bar.append(drawing("line", {x1: low, x2: high, y1: 5, y2: 5}), drawing("line", {x1: low, x2: low, y1: 2, y2: 8}), drawing("line", {x1: high, x2: high, y1: 2, y2: 8}));
      }
      cell.append(bar);
    }
    return cell;
  }

  function drawFigures() {
    const entries = Object.entries(results.benchmarks ?? {});
    const kind = (name) => (name === "accuracy" ? 0 : name === "tokens" || name === "characters" ? 3 : FLAWS.has(name) ? 2 : 1);
    const columns = [...new Set(entries.flatMap(([, entry]) => Object.keys(entry.figures ?? {})))].sort((a, b) => kind(a) - kind(b));
    const head = make("tr", {role: "row"}, make("th", {scope: "col", role: "columnheader"}, "benchmark"), columns.map((name) => make("th", {scope: "col", role: "columnheader"}, bdi(name))));
    const rows = entries.map(([name, entry]) => {
      const sizes = several(entry.problems ?? 0, "problem") + (entry.per_problem > 1 ? ` × ${entry.per_problem}` : "");
      const heading = make("th", {scope: "row", role: "rowheader"}, bdi(name), make("small", {}, sizes + (isNumber(entry.seconds) ? `, ${duration(entry.seconds)}` : "")));
      return make("tr", {role: "row"}, heading, columns.map((column) => drawFigure(column, entry.figures?.[column])));
    });
    by("figures").append(make("table", {role: "table", "aria-label": "Figures by benchmark"}, make("thead", {role: "rowgroup"}, head), make("tbody", {role: "rowgroup"}, rows)));
    for (const [name, entry] of entries) {
      const ids = entry.unreadable_golds ?? [];
      if (!ids.length) continue;
      const links = ids.flatMap((id, i) => [i ? ", " : "", make("a", {href: address({problem: `${name}/${id}`})}, bdi(id))]);
      by("unreadable").append(make("p", {class: "note"}, `${several(ids.length, "gold answer")} of `, bdi(name), " cannot be read by the grader: ", links));
    }
  }

  function drawDrift() {
    const {figures = {}, notes = [], curves, ...rest} = results.drift ?? {};
    if (!results.drift) return;
    const form = (x) => (isNumber(x) ? x.toLocaleString("en", {maximumSignificantDigits: 3}) : "–");
    const rows = Object.entries(figures).flatMap(([name, {value, low, high}]) => [make("dt", {}, bdi(name)), make("dd", {}, `${form(value)} [${form(low)}, ${form(high)}]`)]);
    by("drift").hidden = false;
    if (about.picture) by("drift").append(make("img", {src: about.picture, alt: "Drift along the text, as curves"})); // they are too long for words
    by("drift").append(...[].concat(notes).map((note) => make("p", {}, note)));
    if (rows.length) by("drift").append(make("dl", {class: "pairs"}, rows));
    if (Object.keys(rest).length) by("drift").append(pairs(rest));
  }

  // ---- Verdicts by benchmark

  function drawBenchmarks() {
    const entries = Object.entries(results.benchmarks ?? {});
    for (const [name, entry] of entries) {
      const own = problems.filter((problem) => problem.benchmark === name);
      const count = {right: 0, mixed: 0, wrong: 0};
      for (const problem of own) count[problem.verdict]++;
      const kinds = Object.entries(count).filter(([kind, n]) => n || kind !== "mixed");
      const stack = make("div", {class: "stack", "aria-hidden": "true"}, kinds.map(([kind, n]) => {
        const part = make("i", {class: kind});
        part.style.flexGrow = n;
        part.hidden = !n;
        return part;
      }));
      const words = kinds.map(([kind, n]) => `${whole(n)} ${kind}`).join(", ");
      const chips = (title, key, counts) => {
        const known = Object.entries(counts ?? {});
        if (key !== "verdict") known.sort((a, b) => b[1] - a[1]);
        if (!known.length) return null;
        const buttons = known.map(([counted, n]) => {
          const value = counted || "none"; // as samples without a rule or reason are listed
          const button = make("button", {type: "button"}, bdi(value), " ", make("span", {class: "n"}, isNumber(n) ? whole(n) : n));
          button.addEventListener("click", () => {
            show({...EMPTY, benchmark: name, [key]: value});
            by("problems-title").scrollIntoView();
            by("problems").focus({preventScroll: true});
          });
          return button;
        });
        return make("div", {}, make("h3", {}, title), make("div", {class: "chips"}, buttons));
      };
      const settings = entry.settings && Object.keys(entry.settings).length ? make("div", {}, make("h3", {}, "Settings"), pairs(entry.settings)) : null;
      const body = make("div", {class: "body"}, chips("Problems by verdict", "verdict", Object.fromEntries(kinds)), chips("Rules that found the answers", "rule", entry.rules), chips("Reasons", "reason", entry.reasons), settings);
      const summary = make("summary", {}, make("span", {class: "fold"}), bdi(name), stack, make("span", {class: "soft"}, words));
      by("benchmarks").append(make("details", {class: "benchmark", open: entries.length === 1}, summary, body));
    }
  }

  // ---- What is shown: a state, kept in the address

  const EMPTY = {q: "", benchmark: "", verdict: "", rule: "", reason: "", ending: "", sort: "", page: 1, problem: ""};
  const ENDINGS = {
    finished: (sample) => samples.finished[sample],
    "token budget used up": (sample) => samples.truncated[sample],
    "without an end": (sample) => !samples.finished[sample],
    "no answer": (sample) => samples.answer[sample] === null,
    "goes on after an answer": (sample) => samples.post_answer[sample] === true,
    "several answers": (sample) => samples.several_answers[sample] === true,
    "right up to the first answer only": (sample) => samples.correct_to_first_answer[sample] === true && !samples.correct[sample],
  };
  const collator = new Intl.Collator("en", {numeric: true});
  const rate = (problem) => problem.right / problem.samples.length;
  const ORDERS = {
    "": ["as evaluated", null],
    id: ["by id", (a, b) => collator.compare(a.key, b.key)],
    hardest: ["pass rate, lowest first", (a, b) => rate(a) - rate(b)],
    easiest: ["pass rate, highest first", (a, b) => rate(b) - rate(a)],
    longest: ["longest first", (a, b) => b.tokens - a.tokens],
    shortest: ["shortest first", (a, b) => a.tokens - b.tokens],
  };
  let state = {...EMPTY};
  let matching = []; // problems
  let sampleMatches = () => true;
  const filters = by("filters");

  function address(wanted) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries({...EMPTY, ...wanted})) if (String(value) !== String(EMPTY[name])) query.set(name, value);
    return `#${query}`.replaceAll("%2F", "/");
  }

  function fromAddress() {
    const query = new URLSearchParams(location.hash.slice(1));
    const wanted = {...EMPTY};
    for (const name of Object.keys(EMPTY)) if (query.has(name)) wanted[name] = query.get(name);
    wanted.page = Math.max(1, parseInt(wanted.page, 10) || 1);
    return wanted;
  }

  function drawFilters() {
    const fill = (name, entries) => {
      filters.elements[name].append(...entries.map(([value, label]) => {
        const option = document.createElement("option");
        option.value = value;
        option.textContent = plain(label);
        return option;
      }));
    };
    const sorted = (list) => list.filter(Boolean).sort(collator.compare).map((name) => [name, name]);
    fill("benchmark", [["", "all"], ...names.benchmark.map((name) => [name, name])]);
    fill("verdict", [["", "any"], ["right", "right"], ["wrong", "wrong"], ["mixed", "mixed over samples"]]);
    fill("rule", [["", "any"], ...sorted(names.rule)]);
    fill("reason", [["", "any"], ...sorted(names.reason)]);
    fill("ending", [["", "any"], ...Object.keys(ENDINGS).map((name) => [name, name])]);
    fill("sort", Object.entries(ORDERS).map(([name, [label]]) => [name, label]));
    let waiting;
    const changed = () => {
      const wanted = {...EMPTY};
      for (const name of Object.keys(EMPTY)) if (filters.elements[name]) wanted[name] = filters.elements[name].value;
      show(wanted);
    };
    filters.addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(changed, event.target.name === "q" ? 120 : 0);
    });
    filters.addEventListener("submit", (event) => event.preventDefault());
    by("clear").addEventListener("click", () => {
      show({...EMPTY});
      filters.elements.q.focus();
    });
  }

  function filtered() {
    const number = (kind) => names[kind].indexOf(state[kind]);
    const rule = state.rule && number("rule"), reason = state.reason && number("reason"), ending = ENDINGS[state.ending];
    sampleMatches = (sample) => (rule === "" || samples.rule[sample] === rule) && (reason === "" || samples.reason[sample] === reason) && (!ending || ending(sample));
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const found = problems.filter((problem) => (!state.benchmark || problem.benchmark === state.benchmark)
      && (!state.verdict || problem.verdict === state.verdict)
      && words.every((word) => problem.hay.includes(word))
      && problem.samples.some(sampleMatches));
    const order = ORDERS[state.sort]?.[1];
    return order ? found.sort(order) : found;
  }

  const isFilter = (name) => !["page", "problem", "sort"].includes(name);

  // Show a state; gives what ends when a problem that is to be open has been drawn.
  function show(wanted, {keep = false} = {}) {
    state = wanted;
    matching = filtered();
    const wantedProblem = byKey.get(wellFormed(state.problem));
    if (wantedProblem && !matching.includes(wantedProblem)) {
      state = {...EMPTY, sort: state.sort, problem: state.problem};
      matching = filtered();
    }
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    if (wantedProblem) state.page = Math.floor(matching.indexOf(wantedProblem) / PAGE) + 1;
    state.page = Math.min(pages, state.page);
    for (const name of Object.keys(EMPTY)) {
      const control = filters.elements[name];
      if (!control) continue;
      if (control.value !== String(state[name])) control.value = state[name];
      control.classList.toggle("set", isFilter(name) && state[name] !== "");
    }
    drawCount();
    drawPages(pages);
    drawList();
    if (!keep) remember();
    return wantedProblem ? open(wantedProblem) : Promise.resolve();
  }

  function remember() {
    const wanted = address(state);
    if (wanted !== location.hash && !(wanted === "#" && !location.hash)) history.replaceState(null, "", wanted);
  }

  function drawCount() {
    const all = problems.length === matching.length;
    const shown = matching.reduce((total, problem) => total + problem.samples.filter(sampleMatches).length, 0);
    const perSample = problems.some((problem) => problem.samples.length > 1) ? `, ${several(shown, "sample")}` : "";
    by("count").textContent = (all ? several(problems.length, "problem") : `${whole(matching.length)} of ${several(problems.length, "problem")}`) + perSample;
    by("clear").hidden = !Object.keys(EMPTY).some((name) => isFilter(name) && state[name] !== "");
  }

  function drawPages(pages) {
    for (const nav of document.querySelectorAll("nav.pages")) {
      const held = nav.contains(document.activeElement) ? document.activeElement.textContent : null;
      const go = (label, page) => {
        const button = make("button", {type: "button"}, label);
        button.disabled = page < 1 || page > pages;
        button.addEventListener("click", () => {
          show({...state, page, problem: ""});
          if (nav !== document.querySelector("nav.pages")) by("heads").scrollIntoView({block: "center"});
        });
        return button;
      };
      nav.replaceChildren(go("Previous", state.page - 1), make("span", {class: "soft"}, `page ${state.page} of ${whole(pages)}`), go("Next", state.page + 1));
      nav.hidden = pages === 1;
      if (held) [...nav.querySelectorAll("button")].find((button) => button.textContent === held && !button.disabled)?.focus();
    }
  }

  // ---- The list

  function pill(problem) {
    const n = problem.samples.length;
    return make("span", {class: `pill ${problem.verdict}`}, n === 1 ? problem.verdict : `${problem.verdict} ${problem.right}/${n}`);
  }

  // Its samples' answers, as [{answer, right, n}], the most frequent first; samples of one class gave the same.
  function votes(problem) {
    const found = new Map();
    for (const sample of problem.samples) {
      const group = samples.class[sample] ?? (samples.answer[sample] === null ? "none" : `a${samples.answer[sample]}`);
      if (!found.has(group)) found.set(group, {answer: samples.answer[sample], right: samples.correct[sample], n: 0});
      found.get(group).n++;
    }
    return [...found.values()].sort((a, b) => b.n - a.n);
  }

  function drawList() {
    const page = matching.slice((state.page - 1) * PAGE, state.page * PAGE);
    const several = names.benchmark.length > 1;
    const short = !several && page.every((problem) => problem.id.length < 9);
    by("list").classList.toggle("short", short);
    by("heads").classList.toggle("short", short);
    by("heads").hidden = !page.length;
    by("list").replaceChildren(...page.map((problem) => {
      const [vote] = votes(problem);
      const summary = make("summary", {},
        pill(problem),
        make("span", {class: "id line"}, several ? [bdi(problem.benchmark), " "] : null, bdi(problem.id)),
        make("bdi", {class: "text line"}, problem.text.slice(0, 300)),
        make("bdi", {class: "answer line"}, vote.answer ?? "–"),
        make("bdi", {class: "gold line"}, problem.gold ?? ""),
        make("span", {class: "tokens"}, whole(Math.round(problem.tokens)), make("span", {class: "unit"}, " tokens")));
      const row = make("details", {class: "problem"}, summary);
      row.problem = problem;
      row.addEventListener("toggle", () => {
        if (row.open) unfold(row);
        if (row.open) state.problem = problem.key;
        else if (state.problem === problem.key) state.problem = "";
        if (row.isConnected) remember();
      });
      return row;
    }));
    if (!page.length) by("list").append(make("p", {class: "none"}, problems.length ? "No problem matches all of these filters." : "There are no samples."));
  }

  const rowOf = (problem) => [...by("list").children].find((row) => row.problem === problem);

  async function open(problem) {
    const row = rowOf(problem);
    row.open = true;
    row.firstChild.focus({preventScroll: true});
    await unfold(row); // before it is as high as it will be, it cannot be scrolled to
    if (row.isConnected && row.open) row.scrollIntoView({block: "start"});
  }

  function unfold(row) {
    row.filled ??= fill(row);
    return row.filled;
  }

  async function fill(row) {
    const problem = row.problem;
    const asked = make("div", {class: "asked"},
      make("div", {}, make("h3", {}, "Problem"), make("p", {class: /^(\t| {4})/m.test(problem.text) ? "raw" : "prose", dir: "auto"}, problem.text)),
      problem.gold === null ? null : make("div", {}, make("h3", {}, "Gold"), make("p", {class: "raw", dir: "auto"}, problem.gold)));
    if (problem.samples.length > 1) {
      const list = votes(problem).map(({answer, right, n}) => make("li", {}, make("span", {class: "n"}, `${n} ×`), make("bdi", {class: `raw ${right ? "right" : "wrong"}`}, answer ?? "no answer", right ? " ✓" : " ✗")));
      asked.append(make("div", {}, make("h3", {}, "Answers"), make("ul", {class: "votes"}, list)));
    }
    asked.append(make("p", {class: "share hint"}, make("a", {href: address({problem: problem.key})}, "Link to this problem")));
    const written = make("div", {class: "written"});
    row.append(make("div", {class: "open"}, asked, written));
    const panel = make("div", problem.samples.length > 1 ? {role: "tabpanel", id: `panel${problem.number}`, tabindex: 0} : {});
    const first = problem.samples.find(sampleMatches) ?? problem.samples[0];
    if (problem.samples.length === 1) {
      written.append(panel);
      await drawSample(panel, first);
      return;
    }
    const tabs = problem.samples.map((sample) => {
      const right = samples.correct[sample];
      const tab = make("button", {type: "button", role: "tab", id: `tab${sample}`, "aria-controls": panel.id, class: (right ? "right" : "wrong") + (sampleMatches(sample) ? "" : " dim"), "aria-label": `sample ${samples.sample[sample]}, ${right ? "right" : "wrong"}`}, samples.sample[sample]);
      tab.addEventListener("click", () => choose(sample));
      return tab;
    });
    const strip = make("div", {role: "tablist", "aria-label": "Samples"}, tabs);
    let chosen = problem.samples.indexOf(first);
    const choose = async (sample) => {
      chosen = problem.samples.indexOf(sample);
      tabs.forEach((tab, i) => {
        tab.setAttribute("aria-selected", i === chosen);
        tab.tabIndex = i === chosen ? 0 : -1;
      });
      panel.setAttribute("aria-labelledby", tabs[chosen].id);
      await drawSample(panel, sample);
    };
    row.step = (by) => {
      chosen = (chosen + by + tabs.length) % tabs.length;
      return choose(problem.samples[chosen]);
    };
    strip.addEventListener("keydown", (event) => {
      const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!by) return;
      event.preventDefault();
      row.step(by);
      tabs[chosen].focus();
    });
    written.append(strip, panel);
    await choose(first);
  }

  function drawPieces(pieces, line) {
    return pieces.map((piece) => {
      if (typeof piece === "string") return piece;
      if (piece.answer !== undefined) return make("mark", {title: "the answer that was read", class: piece.answer.trim().includes("\n") ? "long" : null}, piece.answer);
      return make("span", {class: "cut"}, `${several(piece.cut, "character")} left out here to keep this page small; the whole is in samples.jsonl, line ${whole(line)}.`);
    });
  }

  async function drawSample(panel, sample) {
    panel.wanted = sample;
    const read = await detail(sample);
    if (panel.wanted !== sample) return; // another was chosen meanwhile
    const line = sample + 1;
    const facts = [["verdict", make("span", {class: `pill ${samples.correct[sample] ? "right" : "wrong"}`}, samples.correct[sample] ? "right" : "wrong")]];
    const answer = samples.answer[sample];
    const long = answer !== null && (answer.length > 80 || answer.includes("\n"));
    const marked = read.text.some((piece) => piece.answer !== undefined);
    facts.push(["answer", answer === null ? "none" : !long ? make("bdi", {class: "raw"}, answer) : marked ? "marked below" : "below"]);
    facts.push(["reason", bdi(names.reason[samples.reason[sample]])], ["rule", bdi(names.rule[samples.rule[sample]])]);
    if (isNumber(samples.tokens[sample])) facts.push(["tokens", whole(samples.tokens[sample])]);
    facts.push(["ending", samples.truncated[sample] ? "token budget used up" : samples.finished[sample] ? "finished" : "without an end"]);
    if (isNumber(samples.repetition[sample])) facts.push(["repetition", percent(samples.repetition[sample], 0)]);
    if (isNumber(samples.characters[sample])) facts.push(["characters", whole(samples.characters[sample])]);
    if (samples.post_answer[sample]) facts.push(["after the first answer", `goes on${samples.several_answers[sample] ? " to another answer" : ""}; ${samples.correct_to_first_answer[sample] ? "right" : "wrong"} up to it`]);
    for (const [name, [right, of]] of Object.entries(read.counts ?? {})) facts.push([name, `${right}/${of}`]);
    facts.push(["samples.jsonl", `line ${whole(line)}`]);
    const nodes = [make("dl", {class: "verdict"}, facts.map(([name, value]) => make("div", {}, make("dt", {}, bdi(name)), make("dd", {}, value))))];
    if (long && !marked) nodes.push(make("h3", {}, "Answer"), make("div", {class: "raw extra", dir: "auto"}, read.answer ? drawPieces(read.answer, line) : answer));
    if (read.thinking) {
      const label = `Thinking, ${several(read.thinking_length, "character")}` + (read.closed ? "" : ", never closed");
      nodes.push(make("details", {class: "think", open: !read.closed}, make("summary", {}, make("span", {class: "fold"}), label), make("div", {class: "raw", dir: "auto"}, drawPieces(read.thinking, line).map((piece, i) => (i === 0 && typeof piece === "string" ? piece.replace(/^\n+/, "") : piece)))));
    }
    if (read.text.length) nodes.push(make("div", {class: "raw said", dir: "auto"}, drawPieces(read.text, line)));
    else if (!read.thinking) nodes.push(make("p", {class: "hint"}, "It wrote nothing."));
    panel.replaceChildren(...nodes);
  }

  // ---- Keys and addresses

  async function move(by_) {
    const rows = [...by("list").querySelectorAll(".problem")];
    if (!rows.length) return;
    const active = document.activeElement.closest?.(".problem");
    const opened = rows.find((row) => row.open);
    const current = rows.indexOf(active ?? opened);
    const reading = current >= 0 && rows[current].open; // who reads goes on reading
    let next = current < 0 ? (by_ > 0 ? 0 : rows.length - 1) : current + by_;
    const position = (state.page - 1) * PAGE + next;
    if (position < 0 || position >= matching.length) return;
    const problem = matching[position];
    if (!rowOf(problem)) await show({...state, page: state.page + by_, problem: ""});
    else if (reading) rows[current].open = false;
    if (reading) return open(problem);
    const summary = rowOf(problem).firstChild;
    summary.focus({preventScroll: true});
    rowOf(problem).scrollIntoView({block: "nearest"});
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const keys = {
      j: () => move(1),
      k: () => move(-1),
      "/": () => filters.elements.q.focus(),
      "]": () => (document.activeElement.closest(".problem") ?? document.querySelector(".problem[open]"))?.step?.(1),
      "[": () => (document.activeElement.closest(".problem") ?? document.querySelector(".problem[open]"))?.step?.(-1),
    };
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });

  async function main() {
    drawHead();
    drawFigures();
    drawDrift();
    readIndex(await unpack("index"));
    drawBenchmarks();
    drawFilters();
    window.addEventListener("hashchange", () => {
      if (!location.hash || location.hash.includes("=")) show(fromAddress(), {keep: true});
    });
    by("state").textContent = "";
    await show(location.hash.includes("=") ? fromAddress() : {...EMPTY}, {keep: true});
    document.documentElement.dataset.ready = "";
  }

  main().catch((error) => {
    const old = typeof DecompressionStream === "undefined";
    by("state").className = "note";
    by("state").textContent = old ? "This browser is too old for this page (it lacks DecompressionStream): any of 2023 or later will do." : `The page cannot be drawn: ${error.message}`;
    throw error;
  });
})();
