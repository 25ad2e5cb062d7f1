"use strict";
// Curves over training steps. A run that stops being finite ends in a cross; it never disappears.
(() => {
  const { svg, html } = bnkit;
  const finite = (value) => value !== null && value !== undefined;
  const CROSS = "M-5,-5L5,5M-5,5L5,-5";

  /** Split one series into stretches of finite values, with the place of each break. */
  const stretches = (series) => {
    const parts = [];
    const breaks = [];
    let part = null;
    series.values.forEach((value, i) => {
      if (finite(value)) {
        if (!part) parts.push((part = []));
        part.push(i);
      } else if (i === 0 || part) {
        breaks.push({ index: i, last: part ? i - 1 : null });
        part = null;
      }
    });
    return { parts, breaks };
  };
  bnkit.stretches = stretches;

  const domainOf = (spec) => {
    if (spec.y.domain) return spec.y.domain;
    const values = spec.series.flatMap((s) => s.values.filter(finite));
    values.push(...(spec.references || []).map((r) => r.value).filter(finite));
    if (!values.length) return spec.y.log ? [1, 10] : [0, 1];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (!spec.y.log) return [Math.min(0, low), high];
    // A value of 0 has no logarithm; it is drawn at the lower edge.
    const positive = Math.min(...values.filter((v) => v > 0), high || 1);
    return [positive / 1.3, (high || 1) * 1.3];
  };

  const frame = (spec, width) => {
    const wide = width >= 560;
    const lane = spec.series.some((s) => s.lane && s.values.some((v) => !finite(v)));
    const box = { left: 52, right: wide ? 84 : 14, top: lane ? 38 : 12, bottom: 44 };
    const height = wide ? 330 : 280;
    const steps = spec.series.flatMap((s) => s.steps);
    const [low, high] = domainOf(spec);
    const y = bnkit.scale([low, high], [height - box.bottom, box.top], Boolean(spec.y.log));
    return {
      ...box, width, height, wide, lane, low, high,
      x: bnkit.scale([0, Math.max(...steps, 1)], [box.left, width - box.right]),
      y: (value) => y(Math.max(value, low)),
      xMax: Math.max(...steps, 1),
    };
  };

  const axes = (root, spec, f) => {
    const ticks = spec.y.log ? bnkit.logTicks(f.low, f.high) : bnkit.ticks(f.low, f.high, 5);
    const group = svg("g", { class: "axes" });
    for (const value of ticks) {
      const y = f.y(value);
      group.append(
        svg("line", { class: "grid", x1: f.left, x2: f.width - f.right, y1: y, y2: y }),
        svg("text", { x: f.left - 8, y: y + 4, "text-anchor": "end" }, (spec.y.tick || spec.y.format)(value)),
      );
    }
    for (const value of bnkit.ticks(0, f.xMax, f.wide ? 6 : 4)) {
      const x = f.x(value);
      const y = f.height - f.bottom;
      group.append(
        svg("line", { class: "tick", x1: x, x2: x, y1: y, y2: y + 4 }),
        svg("text", { x, y: y + 18, "text-anchor": "middle" }, String(value)),
      );
    }
    const base = f.height - f.bottom;
    group.append(
      svg("line", { class: "base", x1: f.left, x2: f.width - f.right, y1: base, y2: base }),
      svg(
        "text",
        { class: "axis-name", x: (f.left + f.width - f.right) / 2, y: f.height - 6, "text-anchor": "middle" },
        spec.xLabel,
      ),
    );
    root.append(group);
  };

  const references = (root, spec, f) => {
    for (const { value, label } of spec.references || []) {
      if (!finite(value)) continue;
      const y = f.y(value);
      root.append(
        svg("line", { class: "reference", x1: f.left, x2: f.width - f.right, y1: y, y2: y }),
        svg(
          "text",
          { class: "reference-name", x: f.width - f.right - 6, y: y - 5, "text-anchor": "end" },
          `${label} ${bnkit.number(value)}`,
        ),
      );
    }
  };

  const lane = (root, series, f) => {
    const bad = series.values.map((v, i) => (finite(v) ? null : i)).filter(finite);
    if (!series.lane || !bad.length) return;
    const from = f.x(series.steps[bad[0]]);
    const to = f.x(series.steps[bad[bad.length - 1]]);
    root.append(
      svg("rect", {
        class: `lane ${series.css}`, x: from, y: 6, width: Math.max(to - from, 2), height: 22,
        fill: "url(#hatch)",
      }),
      svg("text", { class: "lane-name", x: (from + to) / 2, y: 21, "text-anchor": "middle" }, series.lane),
      svg("path", { class: `cross ${series.css}`, d: CROSS, transform: `translate(${from},17)` }),
    );
  };

  const curve = (root, series, f) => {
    const at = (i) => `${f.x(series.steps[i]).toFixed(1)},${f.y(series.values[i]).toFixed(1)}`;
    const { parts, breaks } = stretches(series);
    const css = `curve ${series.css}${series.thin ? " thin" : ""}`;
    for (const part of parts) {
      root.append(svg("path", { class: css, d: `M${part.map(at).join("L")}`, "data-key": series.key }));
    }
    for (const { last } of breaks) {
      if (last === null) continue;
      root.append(
        svg("path", { class: `cross ${series.css}`, d: CROSS, transform: `translate(${at(last)})` }),
      );
    }
  };

  /** Name each curve where it ends, pushed apart where two would overlap. */
  const endLabels = (root, spec, f) => {
    if (!f.wide) return;
    const labels = spec.series
      .filter((s) => !s.thin && finite(s.values[s.values.length - 1]))
      .map((s) => ({ s, y: f.y(s.values[s.values.length - 1]) }))
      .sort((a, b) => a.y - b.y);
    labels.forEach((label, i) => {
      if (i) label.y = Math.max(label.y, labels[i - 1].y + 17);
      const value = spec.y.format(label.s.values[label.s.values.length - 1]);
      root.append(
        svg(
          "text",
          { class: `end ${label.s.css}`, x: f.width - f.right + 8, y: label.y + 4 },
          `${label.s.short} ${value}`,
        ),
      );
    });
  };

  const valueText = (spec, series, i) => {
    if (finite(series.values[i])) return spec.y.format(series.values[i]);
    const state = series.states ? series.states[i] : "nan";
    return state === "inf" ? "∞" : "NaN";
  };

  /** A reading line that follows the pointer, or the arrow keys. */
  const reader = (host, root, spec, f) => {
    const main = spec.series.filter((s) => !s.thin);
    const steps = main[0].steps;
    const line = svg("line", { class: "reading-line", y1: f.top, y2: f.height - f.bottom });
    root.append(line);
    const hit = html("div", {
      class: "hit", tabindex: "0", role: "slider", "aria-label": spec.readLabel,
      "aria-valuemin": "0", "aria-valuemax": String(steps[steps.length - 1]),
    });
    let index = steps.length - 1;
    const show = (next, quiet) => {
      index = Math.max(0, Math.min(steps.length - 1, next));
      const x = f.x(steps[index]);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      const words = [
        `${spec.xLabel} ${steps[index]}`,
        ...main.map((s) => `${s.name}: ${valueText(spec, s, index)}`),
      ];
      hit.setAttribute("aria-valuenow", String(steps[index]));
      hit.setAttribute("aria-valuetext", words.join(", "));
      if (quiet) return;
      line.classList.add("shown");
      bnkit.showTip(words, () => {
        const box = hit.getBoundingClientRect();
        return [box.left + (x / f.width) * box.width, box.top + box.height / 2];
      });
    };
    const hide = () => {
      line.classList.remove("shown");
      bnkit.hideTip();
    };
    hit.addEventListener("pointermove", (event) => {
      const box = hit.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * f.width;
      const near = steps.map((s) => Math.abs(f.x(s) - x));
      show(near.indexOf(Math.min(...near)));
    });
    hit.addEventListener("pointerleave", hide);
    hit.addEventListener("blur", hide);
    hit.addEventListener("focus", () => hit.matches(":focus-visible") && show(index));
    hit.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1,
        ArrowUp: index + 1, Home: 0, End: steps.length - 1 };
      if (event.key === "Escape") hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key]);
    });
    show(index, true);
    return hit;
  };

  const legend = (spec) => {
    const seen = new Map(spec.series.filter((s) => !s.thin).map((s) => [s.css, s.name]));
    const items = [...seen].map(([css, name]) =>
      html(
        "li",
        {},
        bnkit.svg(
          "svg",
          { viewBox: "0 0 28 10", class: "swatch", "aria-hidden": "true" },
          svg("path", { class: `curve ${css}`, d: "M0,5H28" }),
        ),
        name,
      ),
    );
    return html("ul", { class: "legend" }, ...items);
  };

  /** Draw `spec` into `host`, replacing what was there. */
  bnkit.lineChart = (host, spec) => {
    const f = frame(spec, Math.round(host.clientWidth) || 720);
    const { root } = bnkit.picture({ ...f, title: spec.title, desc: spec.desc, css: "chart" });
    axes(root, spec, f);
    references(root, spec, f);
    for (const series of spec.series) curve(root, series, f);
    for (const series of spec.series) lane(root, series, f);
    endLabels(root, spec, f);
    const hit = reader(host, root, spec, f);
    host.replaceChildren(legend(spec), html("div", { class: "drawing" }, root, hit));
  };
})();
