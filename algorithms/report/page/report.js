"use strict";
/* The episode viewer. Every text comes in through textContent: what games and models write is shown, never obeyed. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const text = (i) => data.texts[i];
  const SVG = "http://www.w3.org/2000/svg";

  function add(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    for (const child of children) node.append(child);
    return node;
  }
  const el = (tag, attributes, ...children) => add(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => add(document.createElementNS(SVG, tag), attributes, children);
  const number = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits));

  // ------------------------------------------------------------------ what is shown
  const now = { a: 0, b: -1, game: null, turn: 0, all: false };

  const find = (run, game) => (run < 0 ? undefined : data.runs[run].episodes.find((e) => e.g === game));
  const shown = () => [find(now.a, now.game), find(now.b, now.game)];
  const lastTurn = () => Math.max(0, ...shown().filter(Boolean).map((e) => e.u.length - 1));

  function passes(episode) {
    const type = $("type").value, outcome = $("outcome").value, other = find(now.b, episode.g);
    if (type && text(episode.t) !== type) return false;
    if (outcome === "won" && !episode.s) return false;
    if (outcome === "lost" && episode.s) return false;
    if (outcome === "first" && !(other && episode.s && !other.s)) return false;
    if (outcome === "second" && !(other && !episode.s && other.s)) return false;
    if ($("apart").checked && !episode.d.length) return false;
    const words = $("words").value.trim().toLowerCase();
    return !words || `${text(episode.g)} ${text(episode.k)}`.toLowerCase().includes(words);
  }

  // ------------------------------------------------------------------ the list
  function drawList() {
    const found = data.runs[now.a].episodes.filter(passes);
    const items = found.map((episode) => {
      const other = find(now.b, episode.g);
      const marks = [episode, other].filter(Boolean).map((e) => el("span", { class: e.s ? "won" : "lost" }, e.s ? "won" : "lost"));
      const apart = episode.d.length ? [el("span", { class: "apart" }, `${episode.d.length} ≠`)] : [];
      const button = el("button", { type: "button", "data-game": episode.g },
        el("span", { class: "marks" }, ...marks, ...apart, `${episode.u.length} turns`), el("span", { class: "task" }, text(episode.k)));
      button.addEventListener("click", () => choose(episode.g));
      return el("li", {}, button);
    });
    $("list").replaceChildren(...items);
    $("count").textContent = `${found.length} of ${data.runs[now.a].episodes.length} episodes`;
    if (!found.some((e) => e.g === now.game)) now.game = found.length ? found[0].g : null;
    if (!found.length) now.turn = 0;
    now.turn = Math.min(now.turn, lastTurn());
    draw();
  }

  function choose(game) {
    now.game = game;
    now.turn = 0;
    draw();
  }

  function step(by) {
    const games = [...$("list").querySelectorAll("button")].map((b) => Number(b.dataset.game));
    const at = games.indexOf(now.game) + by;
    if (at >= 0 && at < games.length) choose(games[at]);
  }

  function turnTo(turn) {
    now.turn = Math.max(0, Math.min(turn, lastTurn()));
    draw();
  }

  // ------------------------------------------------------------------ one episode
  function draw() {
    for (const button of $("list").querySelectorAll("button")) {
      const is = Number(button.dataset.game) === now.game;
      button.toggleAttribute("aria-current", is);
      if (is) button.scrollIntoView({ block: "nearest" });
    }
    const panes = [];
    [now.a, now.b].forEach((run, i) => {
      if (run < 0 || now.game === null) return;
      const episode = find(run, now.game);
      const pane = el("article", { class: "pane", "data-pane": i }, el("h3", {}, text(data.runs[run].name)));
      panes.push(pane);
      if (episode) fillPane(pane, episode);
      else pane.append(el("p", {}, "This game is not among its episodes."));
    });
    if (!panes.length) panes.push(el("p", {}, "No episode passes the filters."));
    $("panes").replaceChildren(...panes);
    $("slider").max = lastTurn();
    $("slider").value = now.turn;
    $("turn").textContent = `turn ${now.turn + 1} of ${lastTurn() + 1}`;
    for (const holder of $("panes").querySelectorAll(".room")) drawRoom(holder);
  }

  function fillPane(pane, episode) {
    const t = Math.min(now.turn, episode.u.length - 1), turn = episode.u[t];
    pane.append(
      el("p", { class: "about" }, el("span", { class: episode.s ? "won" : "lost" }, episode.s ? "won" : "lost"), ` ${text(episode.k)} `,
        el("small", {}, `${text(episode.t)}, ${text(episode.g)}`)));
    if (!turn) { pane.append(el("p", {}, "An episode without turns.")); return; }
    pane.append(drawValues(episode, t), el("p", { class: "wrong" }, ...wrong(episode, t)));
    const said = [el("pre", { class: "feedback" }, text(turn.f))];
    if (turn.r !== undefined) said.push(el("p", { class: "reason" }, text(turn.r)));
    const command = el("p", { class: "command" }, "> ", el("b", {}, text(turn.c)));
    if (!turn.b) command.append(el("span", { class: "lost" }, " not admissible"));
    said.push(command);
    if (turn.o !== undefined) said.push(el("details", {}, el("summary", {}, "whole answer"), el("pre", {}, text(turn.o))));
    const holder = el("div", { class: "room" });
    holder.episode = episode;
    holder.turn = t;
    pane.append(el("div", {}, ...said), drawCommands(episode, turn), holder);
  }

  function wrong(episode, t) {
    const words = [];
    if (t < now.turn) words.push("This episode is over. ");
    if (episode.w !== undefined && episode.w !== null) {
      const link = el("button", { type: "button", class: "link" }, `turn ${episode.w + 1}`);
      link.addEventListener("click", () => turnTo(episode.w));
      words.push("After ", link, " the game could not be won in time any more, even with full knowledge. ");
    }
    const cost = episode.u[t].e, loss = episode.u[t].x;
    if (cost === null) words.push("It cannot be won any more.");
    else if (cost !== undefined) {
      const lost = loss === null ? "makes it impossible to win" : loss ? `costs ${loss} more than the best one` : "is one of the best";
      words.push(`The shortest way takes ${cost} more commands; this one ${lost}.`);
    }
    return words;
  }

  // ------------------------------------------------------------------ commands with bars
  function compared(turn) {
    const rows = new Map();
    const row = (c) => rows.get(c) || rows.set(c, { c, score: null, chance: null, q: null }).get(c);
    for (const [c, score, chance] of turn.n || []) {
      const one = row(c);
      if (score !== null) one.score = one.score === null ? score : Math.max(one.score, score);
      if (chance !== null) one.chance = one.chance === null ? chance : Math.max(one.chance, chance);
    }
    const done = row(turn.c);
    if (turn.p !== undefined && done.chance === null) done.chance = turn.p;
    const q = new Map((turn.q || []).map((value, i) => [turn.a[i], value]));
    const best = [...q].sort((x, y) => y[1] - x[1]);
    for (const [c] of now.all ? turn.a.map((x) => [x]) : best.slice(0, turn.n ? 1 : 4)) row(c);
    for (const one of rows.values()) if (q.has(one.c)) one.q = q.get(one.c);
    let kept = [...rows.values()];
    if (kept.length > 8 && !now.all) {
      // Of many: what was done, the best by each column.
      const top = (name, n) => kept.filter((r) => r[name] !== null).sort((x, y) => y[name] - x[name]).slice(0, n);
      const chosen = new Set([done, ...top("score", 3), ...top("chance", 2), ...top("q", 2)]);
      kept = kept.filter((r) => chosen.has(r));
    }
    return { rows: kept, best: best.length ? best[0][1] : null };
  }

  function drawCommands(episode, turn) {
    const { rows, best } = compared(turn);
    const scores = rows.map((r) => r.score).filter((s) => s !== null);
    const low = Math.min(0, ...scores), high = Math.max(1, ...scores), top = scores.length > 1 ? Math.max(...scores) : null;
    const key = scores.length ? "score" : rows.some((r) => r.q !== null) ? "q" : "chance";
    rows.sort((x, y) => (y[key] ?? -Infinity) - (x[key] ?? -Infinity));
    const columns = [["PRM score", "score", low, high], ["policy", "chance", 0, 1], ["exact Q*", "q", 0, 1]]
      .filter(([, name]) => rows.some((r) => r[name] !== null));
    const head = el("tr", {}, el("th", { scope: "col" }, "command"), ...columns.map(([name]) => el("th", { scope: "col" }, name)));
    const body = rows.map((r) => {
      const marks = [r.c === turn.c ? "▶" : "", r.score !== null && r.score === top ? "★" : "", best !== null && r.q === best ? "◆" : ""];
      const cells = columns.map(([, name, from, to]) => {
        const cell = el("td", {}, el("span", {}, number(r[name])));
        if (r[name] !== null) {
          const bar = el("i", { class: `bar ${name}` });
          bar.style.width = `${(100 * (r[name] - from)) / (to - from)}%`;
          cell.append(bar);
        }
        return cell;
      });
      return el("tr", r.c === turn.c ? { class: "done" } : {}, el("th", { scope: "row" }, `${marks.join("")} `, text(r.c)), ...cells);
    });
    const apart = episode.d.includes(episode.u.indexOf(turn)) ? el("p", { class: "apart" }, "The PRM's favourite is not the planner's.") : "";
    return el("div", {}, el("table", { class: "commands" }, el("thead", {}, head), el("tbody", {}, ...body)), apart);
  }

  // ------------------------------------------------------------------ the value along the episode
  function drawValues(episode, t) {
    const n = episode.u.length, width = 600, height = 110, x = (i) => 12 + (i * (width - 24)) / Math.max(1, n - 1), y = (v) => height - 18 - v * (height - 28);
    const lines = [
      ["score", (u) => (u.n || []).filter(([c]) => c === u.c).reduce((m, [, s]) => (s === null ? m : m === null ? s : Math.max(m, s)), null)],
      ["q", (u) => { const i = u.q ? u.a.indexOf(u.c) : -1; return i < 0 ? null : u.q[i]; }],
      ["best", (u) => (u.v === undefined ? null : u.v)],
      ["chance", (u) => (u.p === undefined ? null : u.p)],
    ];
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "values", role: "img", "aria-label": "values along the episode" });
    for (const v of [0, 0.5, 1]) picture.append(svg("line", { x1: 12, x2: width - 12, y1: y(v), y2: y(v), class: "grid" }));
    if (episode.w !== undefined && episode.w !== null) picture.append(svg("line", { x1: x(episode.w), x2: x(episode.w), y1: 4, y2: height - 12, class: "wrongline" }));
    picture.append(svg("line", { x1: x(t), x2: x(t), y1: 4, y2: height - 12, class: "here" }));
    const drawn = [];
    for (const [name, value] of lines) {
      const points = episode.u.map((u, i) => [i, value(u)]).filter(([, v]) => v !== null && v >= 0 && v <= 1);
      if (!points.length || (name === "chance" && drawn.length)) continue;
      drawn.push(name);
      picture.append(svg("polyline", { class: `line ${name}`, points: points.map(([i, v]) => `${x(i)},${y(v)}`).join(" ") }));
      if (name !== "best") for (const [i, v] of points) picture.append(svg("circle", { class: `dot ${name}`, cx: x(i), cy: y(v), r: 2.5 }));
    }
    episode.u.forEach((u, i) => {
      if (!u.b) picture.append(svg("circle", { class: "foreign", cx: x(i), cy: height - 8, r: 4 }));
      if (episode.d.includes(i)) picture.append(svg("rect", { class: "apartmark", x: x(i) - 3, y: height - 11, width: 6, height: 6 }));
      const hit = svg("rect", { class: "hit", x: x(i) - width / n / 2, y: 0, width: width / n, height });
      hit.addEventListener("click", () => turnTo(i));
      picture.append(hit);
    });
    const names = { score: "PRM score of the command", q: "exact Q* of it", best: "Q* of the best command", chance: "policy's probability" };
    const legend = drawn.map((name) => el("span", { class: `key ${name}` }, names[name]));
    return el("figure", {}, picture, el("figcaption", {}, ...legend));
  }

  // ------------------------------------------------------------------ the room
  function seen(episode, t) {
    const room = episode.m, found = new Set();
    for (let i = 0; i <= t; i++) {
      const state = episode.u[i].z;
      room.r.forEach((r, k) => { if (room.l[k] === state.l && (!room.o.includes(r) || state.o.includes(r))) found.add(r); });
    }
    return found;
  }

  function drawRoom(holder) {
    const { episode, turn: t } = holder, room = episode.m;
    if (!room) { holder.replaceChildren(el("p", {}, "No room: the game was not found on the machine that made this page, or plays otherwise.")); return; }
    const state = episode.u[t].z, known = seen(episode, t), wide = Math.max(260, holder.clientWidth || 600);
    const columns = Math.max(2, Math.floor(wide / 140)), w = wide / columns, line = 15, most = 8, picture = [];
    const boxes = room.r.map((r, k) => {
      const inside = (state.c && state.c[r]) || room.c[r] || [];
      return { r, here: room.l[k] === state.l, inside, rows: Math.min(inside.length, most + 1) };
    });
    let top = 4;
    for (let i = 0; i < boxes.length; i += columns) {
      const row = boxes.slice(i, i + columns), height = 26 + line * Math.max(1, ...row.map((b) => b.rows));
      row.forEach((box, k) => picture.push(drawBox(box, 4 + k * w, top, w - 8, height)));
      top += height + 8;
    }
    function drawBox(box, left, y, width, height) {
      const door = room.o.includes(box.r), open = state.o.includes(box.r);
      const kind = ["box", box.here ? "here" : "", door && !open ? "closed" : "", room.p.includes(box.r) ? "goal" : ""].join(" ");
      const name = `${box.here ? "● " : ""}${text(box.r)}${door ? (open ? " (open)" : " (closed)") : ""}`;
      const parts = [svg("rect", { class: kind, x: 2, y: 2, width: width - 4, height: height - 4, rx: 5 }), svg("text", { class: "name", x: 7, y: 17 }, name)];
      box.inside.slice(0, most).forEach((o, i) => {
        const done = state.y && state.y[o] ? ` (${state.y[o]})` : "";
        const look = `thing ${known.has(box.r) ? "" : "unseen"} ${room.g.includes(o) ? "goal" : ""}`;
        parts.push(svg("text", { class: look, x: 11, y: 32 + i * line }, text(o) + done));
      });
      if (box.inside.length > most) parts.push(svg("text", { class: "thing", x: 11, y: 32 + most * line }, `and ${box.inside.length - most} more`));
      // A picture of its own: what is too long is cut at its edge.
      return svg("svg", { "data-receptacle": text(box.r), x: left, y, width, height }, svg("title", {}, `${name}: ${box.inside.map(text).join(", ") || "nothing"}`), ...parts);
    }
    const held = state.h === undefined ? "nothing" : text(state.h) + (state.y && state.y[state.h] ? ` (${state.y[state.h]})` : "");
    holder.replaceChildren(
      el("p", { class: "hand" }, "In hand: ", el("b", { class: state.h !== undefined && room.g.includes(state.h) ? "goal" : "" }, held), el("small", {}, " ● the player, grey: not seen yet, bold: what the task is about")),
      svg("svg", { viewBox: `0 0 ${wide} ${top}`, class: "map", role: "img", "aria-label": "the room" }, ...picture));
  }

  // ------------------------------------------------------------------ controls
  function fillSelect(select, options) {
    select.replaceChildren(...options.map(([value, name]) => el("option", { value }, name)));
  }

  function begin() {
    const runs = data.runs.map((run, i) => [i, text(run.name)]);
    fillSelect($("first"), runs);
    fillSelect($("second"), [[-1, "nothing"], ...runs]);
    const types = [...new Set(data.runs.flatMap((run) => run.episodes.map((e) => text(e.t))))].sort();
    fillSelect($("type"), [["", "all"], ...types.map((t) => [t, t])]);
    const outcomes = [["", "all"], ["won", "won"], ["lost", "lost"], ["first", "first alone won"], ["second", "second alone won"]];
    fillSelect($("outcome"), outcomes);
    $("second").value = -1;
    $("first").addEventListener("change", (e) => { now.a = Number(e.target.value); drawList(); });
    $("second").addEventListener("change", (e) => { now.b = Number(e.target.value); drawList(); });
    for (const id of ["type", "outcome", "apart"]) $(id).addEventListener("change", drawList);
    $("words").addEventListener("input", drawList);
    $("all").addEventListener("change", (e) => { now.all = e.target.checked; draw(); });
    $("slider").addEventListener("input", (e) => turnTo(Number(e.target.value)));
    for (const [id, by] of [["back", -1], ["on", 1]]) $(id).addEventListener("click", () => turnTo(now.turn + by));
    const keys = {
      ArrowLeft: () => turnTo(now.turn - 1), ArrowRight: () => turnTo(now.turn + 1), Home: () => turnTo(0), End: () => turnTo(lastTurn()),
      n: () => step(1), p: () => step(-1), a: () => $("all").click(), d: () => $("apart").click(),
      w: () => { const at = shown().filter(Boolean).map((e) => e.w).find((w) => w !== undefined && w !== null); if (at !== undefined) turnTo(at); },
    };
    document.addEventListener("keydown", (event) => {
      const typing = event.target.matches("select, input[type=search], textarea");
      if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    window.addEventListener("resize", () => { for (const holder of document.querySelectorAll(".room")) drawRoom(holder); });
    drawList();
  }

  if (data.runs.length) begin();
})();
