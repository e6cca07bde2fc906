"use strict";
// The data's form is written down in html.rs. All text goes through textContent.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { records, texts, shapes, spans, messages } = data;
  const NO = 0, AT = 1, NAME = 2, SESSION = 3, INPUT = 4, EFFECTS = 5, TOUCHED = 6, TEXTS = 7, DIFFERS = 8;
  const KINDS = ["container", "turn", "delivery"];
  const ROW = 28, BOOT = 4294967296;

  const make = (tag, className, text) => {
    const it = document.createElement(tag);
    if (className) it.className = className;
    if (text !== undefined) it.textContent = text;
    return it;
  };
  const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  const number = (no) => `${Math.floor(no / BOOT)}.${no % BOOT}`;
  const pad = (n, width) => String(n).padStart(width, "0");
  const clock = (us, digits = 3) => {
    const whole = Math.floor(us / 1e6), rest = Math.floor(us - whole * 1e6);
    const text = `${pad(Math.floor(whole / 3600), 2)}:${pad(Math.floor(whole / 60) % 60, 2)}:${pad(whole % 60, 2)}`;
    return digits ? `${text}.${pad(rest, 6).slice(0, digits)}` : text;
  };
  const lasting = (us) => {
    if (us < 1e3) return `${Math.round(us)} µs`;
    if (us < 1e6) return `${(us / 1e3).toFixed(us < 1e4 ? 2 : 1)} ms`;
    if (us < 6e7) return `${(us / 1e6).toFixed(2)} s`;
    const s = Math.round(us / 1e6);
    if (s < 3600) return `${Math.floor(s / 60)} min ${pad(s % 60, 2)} s`;
    return `${Math.floor(s / 3600)} h ${pad(Math.floor(s / 60) % 60, 2)} min`;
  };
  // The value of a place in the data: null, a boolean, a number, a text, a list, or a Fields.
  class Fields { constructor(keys, values) { this.keys = keys; this.values = values; } }
  const TIMES = new Set(["at", "since", "last_sign", "idle_since", "considered", "wait_until", "deadline", "started",
    "seen", "until", "Until", "At", "process_after", "not_before", "timestamp"]);
  // Machine time counts from the first start, so it stays far below what the calendar counts from 1970.
  const time = (us) => us < 1e14 ? clock(us, 6) : new Date(us / 1e3).toISOString();
  const decode = (it, key) => {
    if (typeof it === "number" && TIMES.has(key) && it >= 0 && it < 8e18) return time(it);
    if (!Array.isArray(it)) return it;
    if (it[0] === -1) return it.slice(1).map((item) => decode(item));
    if (it.length === 1) return texts[it[0]];
    const keys = shapes[it[0]].map((key) => texts[key]);
    return new Fields(keys, it.slice(1).map((item, n) => decode(item, keys[n])));
  };

  // Places: of a record's number, of what an effect ended in, of every component's changes.
  const placeOf = new Map(), endOf = new Map(), changes = new Map(), bySession = new Map();
  const boots = [];
  records.forEach((row, place) => {
    placeOf.set(row[NO], place);
    if (texts[row[NAME]] === "booted") boots.push(place);
    const own = bySession.get(row[SESSION]);
    if (own) own.push(place); else bySession.set(row[SESSION], [place]);
    const input = row[INPUT];
    if (Array.isArray(input) && input.length > 1 && input[0] >= 0) {
      const at = shapes[input[0]].findIndex((key) => texts[key] === "effect");
      if (at >= 0 && Array.isArray(input[at + 1])) endOf.set(texts[input[at + 1][0]], place);
    }
    row[TOUCHED].forEach((it, index) => {
      const list = changes.get(it[0]);
      if (list) list.push([place, index]); else changes.set(it[0], [[place, index]]);
    });
  });
  const first = records.length ? records[0][AT] : 0;
  const last = Math.max(first + 1, records.length ? records[records.length - 1][AT] : 1);
  const messageOf = new Map(messages.map((it) => [it[0], it]));

  // Lanes: the host, then every session that has something to show.
  const nameOf = new Map(data.sessions.map(([no, name]) => [no, name || `s${no}`]));
  const shown = new Set(spans.map((it) => it[1]));
  const lanes = [{ no: 0, title: "Host", name: "start, channels, policy" }];
  for (const no of [...nameOf.keys()].sort((a, b) => a - b)) {
    if (data.session === null || shown.has(no) || bySession.has(no)) {
      lanes.push({ no, title: `s${no}`, name: nameOf.get(no) });
    }
  }
  // Spans of one kind that overlap are put one below the other, up to four; more share the last.
  for (const lane of lanes) {
    lane.marks = bySession.get(lane.no) || [];
    lane.rows = [];
    const own = spans.map((it, index) => [it, index]).filter(([it]) => it.length > 2 && it[1] === lane.no);
    for (let kind = 0; kind < 3; kind++) {
      const ends = [];
      const some = own.filter(([it]) => it[0] === kind).sort((a, b) => a[0][5] - b[0][5]);
      const rows = [];
      for (const [span] of some) {
        let row = ends.findIndex((end) => end <= span[5]);
        if (row < 0) row = Math.min(ends.length, 3);
        ends[row] = Math.max(ends[row] || 0, span[7]);
        (rows[row] = rows[row] || []).push(span);
      }
      rows.forEach((list) => lane.rows.push({ kind, spans: list }));
    }
  }

  // What is chosen and what is shown.
  let chosen = -1, filtered = [], matching = null, about = null, view = { from: first, to: last };
  const fitView = () => { const edge = (last - first) * 0.015; view = { from: first - edge, to: last + edge }; };
  fitView();

  // ---- the head
  document.title = `${data.name} · Lamplighter journal`;
  $("name").textContent = data.name;
  $("summary").textContent = records.length === 0 ? "No records" : [
    plural(records.length, "record", "records"), plural(lanes.length - 1, "session", "sessions"),
    plural(messages.filter((it) => it[3]).length, "message in", "messages in"), `over ${lasting(last - first)}`,
  ].join(" · ");
  const notes = [];
  if (data.session !== null) notes.push(`Only what is about session ${data.session} is on this page.`);
  if (data.recordsLeftOut > 0) {
    notes.push(`${plural(data.recordsLeftOut, "record is", "records are")} left out: a page holds `
      + `${records.length.toLocaleString("en")}. Export a single segment, or one session, to see the others.`);
  }
  if (data.detailsEnd) {
    notes.push(`From record ${data.detailsEnd} on, inputs, effects and states are left out to keep this page small.`);
  }
  if (data.end) notes.push(`The journal ends early: ${data.end}`);
  $("notes").hidden = notes.length === 0;
  notes.forEach((text) => $("notes").append(make("p", "", text)));
  const pick = $("session");
  [["", "all"], ...lanes.map((it) => [String(it.no), it.no ? `${it.title} · ${it.name}` : "the host alone"])]
    .forEach(([value, text]) => { const it = make("option", "", text); it.value = value; pick.append(it); });

  // ---- filters
  const mentions = (it, wanted) => {
    if (!Array.isArray(it)) return false;
    if (it.length === 1) return it[0] >= 0 && wanted.has(it[0]);
    for (let n = 1; n < it.length; n++) if (mentions(it[n], wanted)) return true;
    return false;
  };
  const search = (query) => {
    matching = null;
    about = null;
    if (!query) return;
    const exact = new Set();
    for (const [no, , id] of messages) {
      const name = texts[id].toLowerCase();
      if (name === query || name.startsWith(`${query}:`)) exact.add(no);
    }
    // An id goes before the number that this host gave to a message.
    if (exact.size === 0) for (const [no] of messages) if (`m${no}` === query) exact.add(no);
    const wanted = new Set();
    if (exact.size === 0) texts.forEach((text, n) => { if (text.toLowerCase().includes(query)) wanted.add(n); });
    const subject = new Set(exact);
    if (exact.size === 0) {
      const bringing = new Set(records.filter((it) => (it[TEXTS] || []).some((t) => wanted.has(t)))
        .map((it) => it[NO]));
      for (const [no, , id, , , seen] of messages) if (wanted.has(id) || bringing.has(seen)) subject.add(no);
    }
    // A message and what answers it belong together.
    for (const [no, , , , answers] of messages) if (subject.has(answers)) subject.add(no);
    for (const [no, , , , answers] of messages) if (answers && exact.has(no)) subject.add(answers);
    about = subject;
    const components = new Set();
    texts.forEach((text, n) => {
      const found = /^(?:Inbound|Outbound)\(m(\d+)\)$/.exec(text);
      if (found && subject.has(Number(found[1]))) components.add(n);
    });
    matching = new Uint8Array(records.length);
    records.forEach((row, place) => {
      const hit = row[TOUCHED].some((it) => components.has(it[0])) || (wanted.size > 0 && (wanted.has(row[NAME])
        || mentions(row[INPUT], wanted) || row[EFFECTS].some((it) => wanted.has(it[0]) || mentions(it[1], wanted))
        || (row[TEXTS] || []).some((it) => wanted.has(it))));
      if (hit) matching[place] = 1;
    });
    messages.forEach(([no, , , , , seen]) => {
      if (subject.has(no) && placeOf.has(seen)) matching[placeOf.get(seen)] = 1;
    });
  };
  const applyFilters = () => {
    const query = $("query").value.trim().toLowerCase();
    search(query);
    const only = pick.value === "" ? null : Number(pick.value);
    filtered = [];
    records.forEach((row, place) => {
      if ((only === null || row[SESSION] === only) && (!matching || matching[place])) filtered.push(place);
    });
    const all = filtered.length === records.length;
    let text = all ? plural(records.length, "record", "records")
      : `${filtered.length.toLocaleString("en")} of ${plural(records.length, "record", "records")}`;
    if (about && about.size > 0) text += ` · ${plural(about.size, "message", "messages")} and what became of them`;
    $("count").textContent = text;
    layLanes();
    list.replaceChildren();
    rows.clear();
    drawList();
    if (chosen >= 0) reveal();
    drawSoon();
    writeHash();
  };

  // ---- lanes
  const canvas = $("canvas"), box = $("lanes"), names = $("names"), AXIS = 26;
  let laid = [], height = AXIS;
  const layLanes = () => {
    const only = pick.value === "" ? null : Number(pick.value);
    laid = lanes.filter((lane) => only === null || lane.no === only);
    let top = AXIS;
    names.replaceChildren();
    for (const lane of laid) {
      lane.top = top;
      lane.height = Math.max(44, 24 + lane.rows.length * 19 + 6);
      top += lane.height;
      const button = make("button", "lane");
      button.type = "button";
      button.style.top = `${lane.top}px`;
      button.style.height = `${lane.height}px`;
      button.setAttribute("aria-pressed", String(only === lane.no));
      button.setAttribute("aria-label", `${lane.title} ${lane.name}, `
        + `${plural(lane.marks.length, "record", "records")}. `
        + (only === lane.no ? "Show all sessions" : "Show only this"));
      button.append(make("b", "", lane.title));
      const folder = make("span", "", lane.no ? lane.name.replace(/^.*\//, "") : lane.name);
      folder.title = lane.name;
      button.append(folder);
      button.addEventListener("click", () => { pick.value = only === lane.no ? "" : String(lane.no); applyFilters(); });
      names.append(button);
    }
    height = top;
    names.style.height = `${height}px`;
    $("inner").style.height = `${height - 1}px`;
    box.style.height = `${Math.min(height - 1, Math.max(200, Math.round(innerHeight * 0.4)))}px`;
  };
  const gutter = () => parseInt(getComputedStyle(document.documentElement).getPropertyValue("--gutter"), 10);
  let colours = null;
  const colour = (name) => {
    colours = colours || getComputedStyle(document.documentElement);
    return colours.getPropertyValue(`--${name}`).trim();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours = null; drawSoon(); });
  let asked = false;
  const drawSoon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; draw(); }); } };
  const side = () => ({ left: gutter(), width: Math.max(50, box.clientWidth - gutter() - 12) });
  const xOf = (at, { left, width }) => left + (at - view.from) / (view.to - view.from) * width;
  const atOf = (x, { left, width }) => view.from + (x - left) / width * (view.to - view.from);
  const lowest = (places, at) => {
    let [low, high] = [0, places.length];
    while (low < high) {
      const mid = (low + high) >> 1;
      if (records[places[mid]][AT] < at) low = mid + 1; else high = mid;
    }
    return low;
  };
  const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7,
    2e7, 3e7, 6e7, 12e7, 3e8, 6e8, 12e8, 18e8, 36e8, 72e8, 108e8, 216e8, 432e8, 864e8];

  const draw = () => {
    const [w, h, ratio] = [box.clientWidth, box.clientHeight, devicePixelRatio || 1];
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
      canvas.style.height = `${h}px`;
    }
    const pen = canvas.getContext("2d"), area = side(), scroll = box.scrollTop;
    const { left, width } = area;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    pen.font = "11px " + colour("sans");
    pen.textBaseline = "middle";
    $("range").textContent = records.length ? `${lasting(view.to - view.from)} in view` : "";

    const step = STEPS.find((it) => it / (view.to - view.from) * width >= 104) || STEPS[STEPS.length - 1];
    const digits = step >= 1e6 ? 0 : step >= 1e3 ? 3 : 6;
    pen.lineWidth = 1;
    const ticks = [];
    for (let at = Math.ceil(Math.max(view.from, 0) / step) * step; at <= view.to; at += step) ticks.push(at);
    pen.fillStyle = colour("faint");
    ticks.forEach((at) => pen.fillRect(Math.round(xOf(at, area)), AXIS, 1, h - AXIS));
    pen.save();
    pen.beginPath();
    pen.rect(left, AXIS, w - left, h - AXIS);
    pen.clip();
    laid.forEach((lane) => {
      const top = lane.top - scroll;
      if (top > h || top + lane.height < AXIS) return;
      drawLane(pen, lane, top, area);
    });
    pen.restore();
    pen.fillStyle = colour("line");
    laid.forEach((lane) => {
      const bottom = Math.round(lane.top + lane.height - scroll);
      if (bottom > AXIS && bottom < h) pen.fillRect(0, bottom - 1, w, 1);
    });
    for (const place of boots.slice(1)) {
      const x = Math.round(xOf(records[place][AT], area));
      if (x < left) continue;
      pen.fillStyle = colour("muted");
      for (let y = AXIS; y < h; y += 8) pen.fillRect(x, y, 1, 4);
    }
    // The axis is drawn last, so that lanes pass below it.
    pen.fillStyle = colour("panel");
    pen.fillRect(0, 0, w, AXIS - 1);
    pen.fillStyle = colour("line");
    pen.fillRect(0, AXIS - 1, w, 1);
    pen.fillRect(left, 0, 1, h);
    pen.fillStyle = colour("muted");
    pen.textAlign = "center";
    ticks.forEach((at) => {
      const text = clock(at, digits), half = pen.measureText(text).width / 2, spot = xOf(at, area);
      const x = Math.min(Math.max(spot, left + half + 6), w - half - 6);
      if (Math.abs(x - spot) < half) pen.fillText(text, x, AXIS / 2);
    });
    if (chosen >= 0) {
      const x = Math.round(xOf(records[chosen][AT], area));
      if (x >= left) {
        pen.fillStyle = colour("accent");
        pen.fillRect(x, AXIS - 6, 1, h);
        pen.beginPath();
        pen.moveTo(x - 5, AXIS - 7);
        pen.lineTo(x + 6, AXIS - 7);
        pen.lineTo(x + .5, AXIS);
        pen.fill();
      }
    }
    names.style.clipPath = `inset(${scroll + AXIS}px 0 0 0)`;
    if (records.length === 0) {
      pen.fillStyle = colour("muted");
      pen.textAlign = "left";
      pen.fillText("This journal has no records.", left + 16, AXIS + 22);
    }
  };

  const drawLane = (pen, lane, top, area) => {
    const { left, width } = area;
    if (chosen >= 0 && records[chosen][SESSION] === lane.no) {
      pen.globalAlpha = .45;
      pen.fillStyle = colour("chosen");
      pen.fillRect(left, top, width + 12, lane.height);
      pen.globalAlpha = 1;
    }
    // One mark for each column of pixels that has a record.
    const from = lowest(lane.marks, view.from), base = lane.no ? top + 6 : top + lane.height / 2 - 7;
    let dimmed = -9, lit = -9;
    for (let n = from; n < lane.marks.length; n++) {
      const row = records[lane.marks[n]];
      if (row[AT] > view.to) break;
      const x = Math.round(xOf(row[AT], area));
      if (matching && !matching[lane.marks[n]]) {
        if (x <= dimmed || x <= lit) continue;
        pen.fillStyle = colour("dim");
        dimmed = x;
      } else {
        if (x <= lit) continue;
        pen.fillStyle = row[DIFFERS] != null ? colour("bad-edge") : colour("tick");
        lit = x;
      }
      pen.fillRect(x - .5, base, 2, 12);
    }
    if (chosen >= 0 && records[chosen][SESSION] === lane.no) {
      pen.fillStyle = colour("accent");
      pen.fillRect(Math.round(xOf(records[chosen][AT], area)) - 1, base - 2, 4, 16);
    }
    lane.rows.forEach((row, n) => {
      const y = top + 24 + n * 19;
      let last = -9;
      for (const span of row.spans) {
        if (span[7] < view.from || span[5] > view.to) continue;
        const x = Math.max(left - 6, xOf(span[5], area)), end = Math.min(left + width + 20, xOf(span[7], area));
        // What is narrower than a pixel and lies on the one before would only be painted over it.
        if (end - x < 1 && Math.round(x) === last) continue;
        last = Math.round(x);
        drawSpan(pen, span, Math.round(x), y, Math.max(3, Math.round(end) - Math.round(x)), 16);
      }
    });
  };
  const drawSpan = (pen, span, x, y, w, h) => {
    const kind = span[9] === 0 ? "bad" : KINDS[span[0]], dim = matching && !spanMatches(span);
    pen.globalAlpha = dim ? .3 : 1;
    pen.beginPath();
    pen.roundRect(x + .5, y + .5, Math.max(2, w - 1), h - 1, Math.min(3, w / 2));
    pen.fillStyle = colour(kind);
    pen.fill();
    pen.strokeStyle = colour(`${kind}-edge`);
    pen.setLineDash(span[9] === 2 ? [4, 3] : []);
    pen.stroke();
    pen.setLineDash([]);
    // Not by colour alone: a bad end has a thick edge.
    if (span[9] === 0) {
      pen.fillStyle = colour("bad-edge");
      pen.fillRect(x + w - Math.min(4, w), y, Math.min(4, w), h);
    }
    const from = Math.max(x, gutter());
    const room = x + w - from - 12;
    if (room > 24) {
      pen.fillStyle = colour(`${kind}-text`);
      pen.textAlign = "left";
      pen.fillText(fitted(pen, spanTitle(span), room), from + 6, y + h / 2 + .5);
    }
    pen.globalAlpha = 1;
  };
  const fitted = (pen, text, room) => {
    if (pen.measureText(text).width <= room) return text;
    let n = Math.floor(text.length * room / pen.measureText(text).width);
    while (n > 0 && pen.measureText(`${text.slice(0, n)}…`).width > room) n--;
    return n > 2 ? `${text.slice(0, n)}…` : "";
  };
  const spanTitle = (span) => {
    const label = texts[span[2]], how = span[9] === 1 ? "" : ` · ${texts[span[8]]}`;
    return `${span[0] === 0 ? label : `${KINDS[span[0]]} ${label}`}${how}`;
  };
  const spanMatches = (span) => span[0] === 0 || (about !== null && about.has(span[3]));

  const under = (event) => {
    const place = canvas.getBoundingClientRect(), area = side();
    const x = event.clientX - place.left, y = event.clientY - place.top + box.scrollTop;
    if (x < area.left || event.clientY - place.top < AXIS) return null;
    const lane = laid.find((it) => y >= it.top && y < it.top + it.height);
    if (!lane) return null;
    const row = lane.rows[Math.floor((y - lane.top - 24) / 19)];
    if (y >= lane.top + 24 && row) {
      let best = null;
      for (const span of row.spans) {
        const [begin, end] = [xOf(span[5], area), Math.max(xOf(span[5], area) + 3, xOf(span[7], area))];
        if (x >= begin - 2 && x <= end + 2) best = span;
      }
      if (best) return { span: best };
    }
    const n = lowest(lane.marks, atOf(x, area));
    const near = [lane.marks[n - 1], lane.marks[n]].filter((it) => it !== undefined)
      .sort((a, b) => Math.abs(xOf(records[a][AT], area) - x) - Math.abs(xOf(records[b][AT], area) - x))[0];
    if (near === undefined || Math.abs(xOf(records[near][AT], area) - x) > 12) return null;
    return { place: near };
  };
  const zoom = (factor, at) => {
    const middle = at !== undefined ? at
      : chosen >= 0 && inView(chosen) ? records[chosen][AT] : (view.from + view.to) / 2;
    const size = Math.min((last - first) * 1.03, Math.max(40, (view.to - view.from) * factor));
    const share = (middle - view.from) / (view.to - view.from);
    setView(middle - share * size, size);
  };
  const setView = (from, size) => {
    const edge = (last - first) * 0.015 + 20;
    const start = Math.min(Math.max(from, first - edge), Math.max(first - edge, last + edge - size));
    view = { from: start, to: start + size };
    drawSoon();
  };
  const pan = (share) => setView(view.from + (view.to - view.from) * share, view.to - view.from);
  const inView = (place) => records[place][AT] >= view.from && records[place][AT] <= view.to;
  const tip = $("tip");
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, from: view.from, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      const by = event.clientX - drag.x;
      if (Math.abs(by) > 3) drag.moved = true;
      if (drag.moved) setView(drag.from - by / side().width * (view.to - view.from), view.to - view.from);
      tip.hidden = true;
      return;
    }
    const found = under(event);
    tip.hidden = !found;
    if (!found) return;
    if (found.span) {
      const span = found.span;
      tip.textContent = `${KINDS[span[0]]} ${texts[span[2]]}\n${lasting(span[7] - span[5])} · ${texts[span[8]]}`;
    } else {
      const row = records[found.place];
      tip.textContent = `${number(row[NO])} ${texts[row[NAME]]}\n${clock(row[AT])}`;
    }
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 350)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerup", (event) => {
    const moved = drag && drag.moved;
    drag = null;
    if (moved) return;
    const found = under(event);
    if (!found) return;
    if (found.span) {
      const place = placeOf.get(found.span[4]) ?? placeOf.get(found.span[6]);
      if (place !== undefined) choose(place);
    } else choose(found.place);
  });
  canvas.addEventListener("dblclick", (event) => {
    zoom(.4, atOf(event.clientX - canvas.getBoundingClientRect().left, side()));
  });
  box.addEventListener("wheel", (event) => {
    const across = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (event.ctrlKey || event.metaKey) {
      zoom(Math.exp(event.deltaY * .003), atOf(event.clientX - canvas.getBoundingClientRect().left, side()));
    } else if (across) pan((event.deltaX || event.deltaY) / 900);
    else return;
    event.preventDefault();
  }, { passive: false });
  box.addEventListener("scroll", drawSoon);
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") pan(-.15);
    else if (event.key === "ArrowRight") pan(.15);
    else return;
    event.preventDefault();
  });
  $("in").addEventListener("click", () => zoom(.5));
  $("out").addEventListener("click", () => zoom(2));
  $("fit").addEventListener("click", () => { fitView(); drawSoon(); });

  // ---- the list: only rows in sight are there
  const list = $("list"), rows = new Map(), filler = make("div");
  filler.setAttribute("aria-hidden", "true");
  const positionOf = (place) => {
    let [low, high] = [0, filtered.length];
    while (low < high) { const mid = (low + high) >> 1; if (filtered[mid] < place) low = mid + 1; else high = mid; }
    return filtered[low] === place ? low : -1;
  };
  const drawList = () => {
    if (filtered.length === 0) {
      list.replaceChildren(make("p", "empty", records.length === 0
        ? "This journal has no records. A daemon that runs on its folder writes the first one at once."
        : "No record fits the filter. Try a message's id, a word of its text, or another session; Esc empties it."));
      rows.clear();
      return;
    }
    if (filler.parentNode !== list) list.replaceChildren(filler);
    filler.style.height = `${filtered.length * ROW}px`;
    const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
    const to = Math.min(filtered.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
    for (const [position, row] of rows) {
      if (position >= from && position < to) continue;
      if (row === document.activeElement) list.focus({ preventScroll: true });
      row.remove();
      rows.delete(position);
    }
    for (let position = from; position < to; position++) {
      let row = rows.get(position);
      if (!row) {
        row = makeRow(position);
        rows.set(position, row);
        list.append(row);
      }
      const is = filtered[position] === chosen;
      row.setAttribute("aria-selected", String(is));
      row.tabIndex = is ? 0 : -1;
    }
    const position = chosen < 0 ? -1 : positionOf(chosen);
    list.tabIndex = rows.has(position) ? -1 : 0;
  };
  const makeRow = (position) => {
    const place = filtered[position], record = records[place], row = make("div", "row");
    if (record[DIFFERS] != null) row.classList.add("differs");
    row.id = `r${number(record[NO])}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-setsize", String(filtered.length));
    row.setAttribute("aria-posinset", String(position + 1));
    row.style.top = `${position * ROW}px`;
    const did = record[EFFECTS].map((it) => texts[it[0]]);
    row.append(make("span", "no", number(record[NO])), make("span", "at", clock(record[AT])),
      make("span", "who", record[SESSION] ? `s${record[SESSION]}` : "host"), make("span", "what", texts[record[NAME]]),
      make("span", "did", did.length ? `→ ${did.join(", ")}` : ""));
    row.addEventListener("click", () => { choose(place); focusRow(); });
    return row;
  };
  list.addEventListener("scroll", drawList);
  const reveal = () => {
    const position = positionOf(chosen);
    if (position < 0) return;
    const top = position * ROW;
    if (top < list.scrollTop + ROW) list.scrollTop = Math.max(0, top - ROW * 2);
    else if (top + ROW * 2 > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW * 3 - list.clientHeight;
    drawList();
  };
  const focusRow = () => rows.get(positionOf(chosen))?.focus({ preventScroll: true });
  const move = (by) => {
    if (filtered.length === 0) return;
    const now = chosen < 0 ? -1 : positionOf(chosen);
    const to = now < 0 ? (by < 0 && by !== -Infinity ? filtered.length - 1 : 0) : now + by;
    choose(filtered[Math.min(filtered.length - 1, Math.max(0, to))]);
    focusRow();
  };
  const page = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 2);
  list.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1, PageUp: -page(), PageDown: page(), Home: -Infinity,
      End: Infinity }[event.key];
    if (by !== undefined) move(by);
    else if (event.key === "Enter" && chosen >= 0) $("details-title").focus();
    else if (event.key === " " && chosen < 0) move(1);
    else return;
    event.preventDefault();
  });

  // ---- one record
  const choose = (place, quiet) => {
    chosen = place;
    if (!inView(place)) setView(records[place][AT] - (view.to - view.from) / 2, view.to - view.from);
    const lane = laid.find((it) => it.no === records[place][SESSION]);
    if (lane && (lane.top < box.scrollTop + AXIS || lane.top + lane.height > box.scrollTop + box.clientHeight)) {
      box.scrollTop = lane.top - AXIS;
    }
    if (!quiet) writeHash();
    drawList();
    reveal();
    drawDetails();
    drawSoon();
  };
  const jump = (place, text, what) => {
    const it = make("button", "link", text);
    it.type = "button";
    it.setAttribute("aria-label", `${what} ${text}`);
    it.addEventListener("click", () => {
      if (positionOf(place) < 0) { $("query").value = ""; pick.value = ""; applyFilters(); }
      choose(place);
      $("details-title").focus({ preventScroll: true });
    });
    return it;
  };
  const isFlat = (it) => !(it instanceof Fields)
    && !(Array.isArray(it) && it.some((e) => e instanceof Fields || Array.isArray(e)));
  const flat = (it) => {
    if (it === null) return "none";
    if (it === true) return "yes";
    if (it === false) return "no";
    if (Array.isArray(it)) return it.length ? it.map(flat).join(", ") : "empty";
    return it === "" ? "empty" : String(it);
  };
  const words = (key) => key.replace(/([a-z])([A-Z])/g, "$1 $2").replace(/_/g, " ").toLowerCase();
  // A variant with one value is shown beside its name, and an address as it is written elsewhere.
  const short = (it) => {
    if (isFlat(it)) return flat(it);
    if (it instanceof Fields && it.keys.length === 1 && isFlat(it.values[0])) {
      return `${words(it.keys[0])} ${flat(it.values[0])}`;
    }
    if (it instanceof Fields && it.keys.join() === "channel_type,platform_id,thread_id") {
      const [channel, chat, thread] = it.values;
      return channel === null ? "nowhere" : `${channel} ${flat(chat)}${thread === null ? "" : `, thread ${thread}`}`;
    }
    return null;
  };
  const isUnset = (it) => it === null || it === false || (Array.isArray(it) && it.length === 0);
  const isPair = (it) => Array.isArray(it) && it.length === 2 && typeof it[0] === "string";
  // A list becomes fields: pairs by what they are about, everything else by its place.
  const fieldsOf = (it) => it instanceof Fields ? it
    : it.every(isPair) ? new Fields(it.map((pair) => pair[0]), it.map((pair) => pair[1]))
    : new Fields(it.map((_, n) => String(n + 1)), it);
  const tree = (it, before) => {
    const grid = make("dl", "tree"), fields = fieldsOf(it), unset = [];
    // What is not so is told in one line, unless it is what changed.
    const fold = !before && it instanceof Fields && fields.values.filter(isUnset).length > 1;
    fields.keys.forEach((name, n) => {
      let key = words(name), value = fields.values[n];
      if (fold && isUnset(value)) { unset.push(key); return; }
      let text = short(value);
      // A variant, or a list of one, needs no level of its own.
      while (text === null) {
        const inner = fieldsOf(value);
        if (inner.keys.length !== 1) break;
        key += ` · ${words(inner.keys[0])}`.replace(/ · 1$/, "");
        value = inner.values[0];
        text = short(value);
      }
      if (text === null) {
        grid.append(make("dt", "wide", key));
        const inner = make("dd", "wide");
        inner.append(tree(value));
        grid.append(inner);
        return;
      }
      grid.append(make("dt", "", key));
      const dd = make("dd", isUnset(value) ? "none" : "", text);
      const was = before ? before(name) : undefined;
      if (was !== undefined && short(was) !== null) dd.append(make("span", "was", short(was)));
      grid.append(dd);
    });
    if (unset.length) grid.append(make("dt", "", "no or none"), make("dd", "unset", unset.join(", ")));
    return grid;
  };
  const value = (it) => {
    if (it === null || (Array.isArray(it) && it.length === 0)) return make("p", "none", "nothing more to say");
    return short(it) === null || it instanceof Fields ? tree(it) : make("p", "", short(it));
  };
  /// A component as it stood after its n-th change: from the last one that is told in full.
  const stateOf = (name, n) => {
    const told = changes.get(name);
    const part = (k) => records[told[k][0]][TOUCHED][told[k][1]];
    let k = n;
    while (k >= 0 && part(k)[1] === 0) k--;
    if (k < 0 || part(k)[1] === 2) return null;
    const whole = decode(part(k)[2]);
    for (k++; k <= n; k++) {
      const change = decode(part(k)[2]);
      if (!(change instanceof Fields)) continue;
      change.keys.forEach((key, at) => { whole.values[whole.keys.indexOf(key)] = change.values[at]; });
    }
    return whole;
  };
  const section = (title) => {
    const it = make("section");
    it.append(make("h3", "", title));
    $("details-body").append(it);
    return it;
  };
  const drawDetails = (missing) => {
    const body = $("details-body");
    body.replaceChildren();
    body.scrollTop = 0;
    if (chosen < 0) {
      $("details-title").textContent = "Record";
      $("details-when").textContent = "";
      body.append(make("p", "empty", missing ? `There is no record ${missing} on this page.`
        : records.length ? "Choose a record in the list or in the timeline to see what led to it, what it asked for, "
          + "and the state that it left. Press ? for the keys." : "There is no record to choose."));
      return;
    }
    const row = records[chosen];
    $("details-title").textContent = `${number(row[NO])} ${texts[row[NAME]]}`;
    const since = chosen > 0 ? `, ${lasting(row[AT] - records[chosen - 1][AT])} after the one before` : "";
    $("details-when").textContent = `${clock(row[AT], 6)}${since}`;
    if (row[DIFFERS] != null) {
      body.append(make("p", "differs-box", `This build decides otherwise.\n${texts[row[DIFFERS]]}`));
    }
    const who = section("Session");
    who.append(make("p", "", row[SESSION] ? `s${row[SESSION]} · ${nameOf.get(row[SESSION])}`
      : "none: this is about the host"));
    for (const text of row[TEXTS] || []) section("Text").append(make("p", "message", texts[text]));
    const left = row[INPUT] === null && row[TOUCHED].length === 0;
    const input = section("Input");
    if (left) input.append(make("p", "", "Left out: the page would be too large. Export a segment, or one session."));
    else {
      const it = decode(row[INPUT]);
      input.append(value(it));
      const cause = it instanceof Fields && it.keys.includes("effect") ? it.values[it.keys.indexOf("effect")] : null;
      const from = typeof cause === "string" ? placeFor(cause.replace(/\.\d+$/, "")) : undefined;
      if (from !== undefined) {
        const line = make("p");
        line.append("asked for by ", jump(from, `${number(records[from][NO])} ${texts[records[from][NAME]]}`, "Go to"));
        input.append(line);
      }
    }
    const did = section(row[EFFECTS].length ? `Effects (${row[EFFECTS].length})` : "Effects");
    if (row[EFFECTS].length === 0) did.append(make("p", "", "None: nothing was asked for."));
    row[EFFECTS].forEach(([name, details], index) => {
      const item = make("div", "item"), head = make("div", "item-head"), id = `${number(row[NO])}.${index}`;
      head.append(make("b", "", texts[name]), make("code", "", id));
      const end = endOf.get(id);
      if (end !== undefined) {
        const text = `${number(records[end][NO])} ${texts[records[end][NAME]]}`;
        const line = make("span", "none", `after ${lasting(records[end][AT] - row[AT])}: `);
        line.append(jump(end, text, "Ended in"));
        head.append(line);
      }
      item.append(head);
      if (!left && details !== null) item.append(value(decode(details)));
      did.append(item);
    });
    const within = spans.filter((it) => it.length > 2 && it[1] === row[SESSION]
      && it[4] <= row[NO] && it[6] >= row[NO]);
    if (row[SESSION] && within.length) {
      const part = section("Part of");
      for (const span of within.slice(0, 12)) {
        const line = make("div", "part");
        line.append(make("i", `key ${span[9] === 0 ? "bad" : span[9] === 2 ? "open" : KINDS[span[0]]}`),
          make("span", "", `${KINDS[span[0]]} ${texts[span[2]]}, ${lasting(span[7] - span[5])}, ${texts[span[8]]}:`));
        const [begin, end] = [placeOf.get(span[4]), placeOf.get(span[6])];
        if (begin !== undefined && begin !== chosen) line.append(jump(begin, number(span[4]), "From"));
        if (end !== undefined && end !== chosen) line.append(jump(end, number(span[6]), "To"));
        part.append(line);
      }
    }
    if (left) return;
    const state = section("State afterwards");
    if (row[TOUCHED].length === 0) state.append(make("p", "", "Nothing changed but the clock."));
    row[TOUCHED].forEach(([name, how, part]) => {
      const item = make("div", "item"), head = make("div", "item-head");
      head.append(make("b", "", component(texts[name])));
      item.append(head);
      state.append(item);
      if (how === 2) { head.append(make("span", "none", "closed, and gone from the state")); return; }
      const n = changes.get(name).findIndex(([place]) => place === chosen);
      const now = stateOf(name, n), past = n > 0 ? stateOf(name, n - 1) : null;
      const changed = past && now instanceof Fields
        ? now.keys.filter((key, at) => JSON.stringify(now.values[at])
          !== JSON.stringify(past.values[past.keys.indexOf(key)]))
        : null;
      if (changed && changed.length) {
        item.append(tree(new Fields(changed, changed.map((key) => now.values[now.keys.indexOf(key)])),
          (key) => past.values[past.keys.indexOf(key)]));
      } else if (changed) head.append(make("span", "none", "looked at, not changed"));
      else head.append(make("span", "none", past || how === 0 ? "" : "for the first time here"));
      const more = make("details");
      more.append(make("summary", "", changed ? `All ${now.keys.length} fields` : "All fields"));
      more.addEventListener("toggle", () => { if (more.open && more.children.length === 1) more.append(value(now)); });
      if (!changed && now instanceof Fields && now.keys.length <= 4) item.append(value(now));
      else item.append(more);
    });
  };
  const component = (name) => name.replace(/^(\w+)\((.*)\)$/, (_, kind, no) => `${kind.toLowerCase()} ${no}`)
    .replace(/^[A-Z]\w+$/, (all) => all.toLowerCase());
  const placeFor = (text) => {
    const found = /^(\d+)\.(\d+)$/.exec(text);
    return found ? placeOf.get(Number(found[1]) * BOOT + Number(found[2])) : undefined;
  };

  // ---- the address
  const writeHash = () => {
    const hash = new URLSearchParams();
    if (chosen >= 0) hash.set("record", number(records[chosen][NO]));
    if (pick.value !== "") hash.set("session", pick.value === "0" ? "host" : `s${pick.value}`);
    if ($("query").value.trim()) hash.set("q", $("query").value.trim());
    const text = hash.toString();
    try {
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    } catch {
      // Some places that show a page do not let it change its address; nothing else depends on it.
    }
  };
  const readHash = () => {
    const hash = new URLSearchParams(location.hash.slice(1));
    const session = (hash.get("session") || "").replace(/^s/, "").replace("host", "0");
    pick.value = lanes.some((it) => String(it.no) === session) ? session : "";
    $("query").value = hash.get("q") || "";
    const wanted = hash.get("record"), place = wanted ? placeFor(wanted) : undefined;
    chosen = place === undefined ? -1 : place;
    applyFilters();
    if (chosen >= 0) choose(chosen, true); else drawDetails(wanted);
  };
  addEventListener("hashchange", readHash);

  // ---- keys
  const along = (by) => {
    if (chosen < 0) return;
    const own = bySession.get(records[chosen][SESSION]), to = own[own.indexOf(chosen) + by];
    if (to !== undefined) choose(to);
  };
  const keys = { "?": () => $("keys").showModal(), "/": () => $("query").focus(), j: () => move(1), k: () => move(-1),
    n: () => along(1), p: () => along(-1), "+": () => zoom(.5), "=": () => zoom(.5), "-": () => zoom(2),
    0: () => { fitView(); drawSoon(); }, "[": () => pan(-.25), "]": () => pan(.25) };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, select, dialog");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === $("query")) {
      $("query").value = "";
      applyFilters();
      list.focus();
    } else if (!typing && keys[event.key]) {
      keys[event.key]();
      event.preventDefault();
    }
  });
  let typed = 0;
  $("query").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(applyFilters, 120); });
  pick.addEventListener("change", applyFilters);
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); applyFilters(); });
  $("help").addEventListener("click", () => $("keys").showModal());
  $("skip").addEventListener("click", () => { if (chosen < 0) move(1); else focusRow(); });
  new ResizeObserver(() => { layLanes(); drawList(); drawSoon(); }).observe(document.body);
  canvas.setAttribute("aria-label", `Timeline of ${plural(records.length, "record", "records")} in `
    + `${plural(lanes.length, "lane", "lanes")}, `
    + `${plural(spans.filter((it) => it[0] === 0).length, "container", "containers")}, `
    + `${plural(spans.filter((it) => it[0] === 1).length, "turn", "turns")}, `
    + `${plural(spans.filter((it) => it[0] === 2).length, "delivery", "deliveries")}`);
  readHash();
})();
