"use strict";
// The network that leaves training: how far the folded one is from the original, and how fast it is.
(() => {
  const { svg, html, t, pick, byId, number } = bnkit;
  const finite = (value) => value !== null && value !== undefined;
  const ROW = 36;
  const TOP = 26;
  const BOTTOM = 44;
  const RIGHT = 18;
  const SQUARE = "M-5,-5H5V5H-5Z";

  const left = (width) => (width >= 420 ? 150 : 122);

  /** Rows with a name at the left, over a shared axis. */
  const sheet = (host, rows, words) => {
    const width = Math.round(host.clientWidth) || 560;
    const height = TOP + rows.length * ROW + BOTTOM;
    const { root } = bnkit.picture({ width, height, css: "chart", ...words });
    const base = height - BOTTOM;
    rows.forEach(({ name, note }, i) => {
      const y = TOP + (i + 0.5) * ROW;
      const at = { x: left(width) - 16, "text-anchor": "end" };
      root.append(
        svg("line", { class: "grid", x1: left(width), x2: width - RIGHT, y1: y, y2: y }),
        svg("text", { class: "row-name", y: note ? y - 2 : y + 4, ...at }, name),
      );
      if (note) root.append(svg("text", { class: "row-note", y: y + 13, ...at }, note));
    });
    root.append(svg("line", { class: "base", x1: left(width), x2: width - RIGHT, y1: base, y2: base }));
    return { root, width, base, middle: (i) => TOP + (i + 0.5) * ROW };
  };

  const tickAt = (f, x, words) =>
    f.root.append(
      svg("line", { class: "tick", x1: x, x2: x, y1: f.base, y2: f.base + 4 }),
      svg("text", { x, y: f.base + 18, "text-anchor": "middle" }, words),
    );

  const axisName = (f, words) =>
    f.root.append(
      svg("text", { class: "axis-name", x: (left(f.width) + f.width - RIGHT) / 2, y: f.base + 38, "text-anchor": "middle" }, words),
    );

  const mark = (kind, at, words) => {
    const round = kind === "before" || kind.startsWith("exact");
    const shape = round
      ? svg("circle", { class: `mark ${kind}`, r: 5 })
      : svg("path", { class: `mark ${kind}`, d: kind === "noise" ? "M0,-9V9" : SQUARE });
    shape.setAttribute("transform", `translate(${at.map((v) => v.toFixed(1))})`);
    if (words) shape.append(svg("title", {}, words));
    return shape;
  };

  const legend = (items) =>
    html(
      "ul",
      { class: "legend" },
      ...items.map(([kind, words]) =>
        html(
          "li",
          {},
          svg("svg", { viewBox: "0 0 28 20", class: "swatch mark-key", "aria-hidden": "true" }, mark(kind, [14, 10])),
          words,
        ),
      ),
    );

  const wordsOf = (check) => {
    const head = `${pick(check.inputs)}, ${check.dtype}`;
    return check.note ? `${head}: ${check.note}` : `${head}: ${number(check.relative_error, 2)}`;
  };

  /** A logarithmic axis with a place of its own for an error of exactly 0. */
  const errorAxis = (f, values) => {
    const positive = values.filter((v) => v > 0);
    const low = 10 ** Math.floor(Math.log10(Math.min(...positive)));
    const high = 10 ** Math.ceil(Math.log10(Math.max(...positive)) + 0.01);
    const zero = left(f.width) + 8;
    const log = bnkit.scale([low, high], [zero + 30, f.width - RIGHT - 10], true);
    const every = f.width >= 420 ? 1 : 2;
    bnkit.logTicks(low, high).forEach((value, i) => {
      if (i % every === 0) tickAt(f, log(value), bnkit.power(value));
    });
    if (values.includes(0)) tickAt(f, zero, "0");
    return (value) => (value > 0 ? log(value) : zero);
  };

  const limit = (f, x, words) =>
    f.root.append(
      svg("line", { class: "reference", x1: x, x2: x, y1: TOP - 6, y2: f.base }),
      svg("text", { class: "reference-name", x, y: TOP - 11, "text-anchor": "middle" }, words),
    );

  const drawErrors = (leaving) => {
    const host = byId("leaving-errors");
    const ids = [...new Set(leaving.checks.map((check) => check.id))];
    const rows = ids.map((id) => ({ name: pick(leaving.checks.find((c) => c.id === id).inputs) }));
    const desc = leaving.checks.map(wordsOf).join("; ");
    const f = sheet(host, rows, { title: t("leaving.errors"), desc });
    const limits = { [leaving.dtype]: leaving.tolerance, float64: leaving.tolerance64 };
    const isWork = (check) => check.dtype === leaving.dtype;
    const shown = leaving.checks
      .flatMap((c) => [c.relative_error, isWork(c) ? c.noise : null])
      .filter(finite);
    const x = errorAxis(f, [...shown, ...Object.values(limits)]);
    for (const [dtype, value] of Object.entries(limits)) limit(f, x(value), dtype);
    for (const check of leaving.checks) {
      const y = f.middle(ids.indexOf(check.id));
      const work = isWork(check);
      if (work && finite(check.noise)) f.root.append(mark("noise", [x(check.noise), y]));
      if (!finite(check.relative_error)) continue;
      const kind = `${work ? "work" : "exact"}${check.passes ? "" : " over"}`;
      f.root.append(mark(kind, [x(check.relative_error), y], wordsOf(check)));
    }
    axisName(f, t("leaving.error"));
    const key = [["work", leaving.dtype], ["exact", "float64"], ["noise", t("leaving.noise")]];
    host.replaceChildren(legend(key), f.root);
  };

  const ms = (seconds) => number(1000 * seconds);

  const timeWords = (one) =>
    t("leaving.times.row", {
      images: one.images, before: ms(one.before), after: ms(one.after), ratio: one.ratio.toFixed(2),
      low: one.low.toFixed(2), high: one.high.toFixed(2), rounds: one.rounds,
    });

  const dumbbell = (f, x, one, y) => {
    const side = one.ratio > 1 ? 12 : -12;
    f.root.append(
      svg("line", { class: "dumbbell", x1: x(1), x2: x(one.ratio), y1: y, y2: y }),
      svg("path", { class: "spread", d: `M${x(one.low)},${y}H${x(one.high)}M${x(one.low)},${y - 7}V${y + 7}M${x(one.high)},${y - 7}V${y + 7}` }),
      mark("before", [x(1), y]),
      mark("work", [x(one.ratio), y], timeWords(one)),
      svg(
        "text",
        { class: "end bn", x: x(side > 0 ? one.high : one.low) + side, y: y + 4, "text-anchor": side > 0 ? "start" : "end" },
        one.ratio.toFixed(2),
      ),
    );
  };

  const drawTimes = (leaving) => {
    const host = byId("leaving-times");
    if (!host) return;
    const rows = leaving.latencies.map((one) => ({
      name: t("leaving.images", { n: one.images }),
      note: `${ms(one.before)} → ${ms(one.after)} ms`,
    }));
    const desc = leaving.latencies.map(timeWords).join("; ");
    const f = sheet(host, rows, { title: t("leaving.times"), desc });
    const top = Math.max(1.1, ...leaving.latencies.map((one) => one.high * 1.15));
    const x = bnkit.scale([0, top], [left(f.width), f.width - RIGHT]);
    for (const value of bnkit.ticks(0, top, 5)) tickAt(f, x(value), String(value));
    limit(f, x(1), t("leaving.original"));
    leaving.latencies.forEach((one, i) => dumbbell(f, x, one, f.middle(i)));
    axisName(f, t("leaving.ratio"));
    const key = [["before", t("leaving.original")], ["work", t("leaving.folded")]];
    host.replaceChildren(legend(key), f.root);
  };

  /** Draw the figures of the tab about leaving training. */
  bnkit.drawLeaving = (leaving) => {
    drawErrors(leaving);
    drawTimes(leaving);
  };
})();
