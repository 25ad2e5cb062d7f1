"use strict";
// The two rows of histograms. A panel without one finite number is hatched and says why;
// it never shows a bar.
(() => {
  const { svg, html, t, percent } = bnkit;
  const W = 120;
  const H = 112;
  const LEFT = 5;
  const BASE = 96;
  const TOP = 6;

  const zeroBin = (edges) => Math.max(0, edges.findIndex((edge) => edge > 0) - 1);

  /** The counts that are drawn: TensorFlow's fused relu turned NaN into 0, so there it joins a bar. */
  const drawnCounts = (layer, record, asTensorFlow) => {
    if (!asTensorFlow || !record.nan || layer.layer === 0) return record.counts;
    const counts = [...record.counts];
    counts[zeroBin(layer.edges)] += record.nan;
    return counts;
  };

  /** The top of the shared vertical scale: one for all panels and steps of an activation. */
  bnkit.shareTop = (runs) => {
    const shares = runs.flatMap((run) =>
      run.layers.flatMap((layer) =>
        layer.records.flatMap((r) => r.counts.map((count) => count / r.entries)),
      ),
    );
    return Math.min(1, Math.ceil(Math.max(0.1, ...shares) * 10) / 10);
  };

  const layerName = (layer) =>
    layer === 0 ? t("panel.input") : t("panel.layer", { layer });
  const rowName = (run) => t(run.batch_norm ? "with.bn" : "without.bn");

  const infinite = (record) => record.posinf + record.neginf;

  /** Badges of one record, as [kind, words]; only what is there is said. */
  const badges = (record, asTensorFlow) => {
    const out = [];
    const add = (kind, key, share) => {
      if (share) out.push([kind, t(key, { share: percent(share) })]);
    };
    if (asTensorFlow && record.nan) {
      out.push(["artefact", t("badge.artefact", { share: percent(record.zero_if_nan_is_zero) })]);
    } else {
      add("nan", "badge.nan", record.nan / record.entries);
    }
    add("nan", "badge.inf", infinite(record) / record.entries);
    add("outside", "badge.outside", record.outside);
    add("dead", "badge.dead", record.dead);
    add("saturated", "badge.saturated", record.saturated);
    return out;
  };

  const summary = (record) => {
    const lines = [];
    if (record.mean !== null) {
      lines.push(t("tip.mean", { mean: bnkit.number(record.mean), sd: bnkit.number(record.sd) }));
    }
    if (record.zero !== null) lines.push(t("tip.zero", { share: percent(record.zero) }));
    return [...lines, ...badges(record, false).map(([, words]) => words)];
  };

  const blank = (record) => {
    const words = [];
    if (record.nan) words.push("NaN");
    if (infinite(record)) words.push("∞");
    return svg(
      "g",
      { class: "nonfinite" },
      svg("rect", { class: "hatched", x: LEFT, y: TOP, width: W - 2 * LEFT, height: BASE - TOP, fill: "url(#hatch)" }),
      svg("rect", { class: "plate", x: W / 2 - 36, y: 30, width: 72, height: 42, rx: 8 }),
      svg("text", { class: "big", x: W / 2, y: 50, "text-anchor": "middle" }, words.join(" ")),
      svg("text", { class: "share", x: W / 2, y: 65, "text-anchor": "middle" }, percent(record.nonfinite)),
    );
  };

  class Panel {
    constructor(run, layer) {
      this.run = run;
      this.layer = layer;
      const picture = bnkit.picture({ width: W, height: H, css: "histogram", hidden: true });
      this.svg = picture.root;
      this.title = this.svg.querySelector("title");
      this.desc = this.svg.querySelector("desc");
      this.body = svg("g", {});
      this.svg.append(this.body, this.axis());
      this.hit = html("div", {
        class: "hit", tabindex: "-1", role: "img",
        "aria-labelledby": picture.titleId, "aria-describedby": picture.descId,
      });
      this.badges = html("div", { class: "badges" });
      this.tag = html("div", { class: "tag" });
      this.element = html(
        "div",
        {
          class: `panel ${run.batch_norm ? "bn" : "plain"}`,
          "data-layer": layer.layer, "data-bn": String(run.batch_norm),
        },
        this.tag,
        html("div", { class: "drawing" }, this.svg, this.hit),
        this.badges,
      );
      this.listen();
    }

    axis() {
      const { edges } = this.layer;
      const [low, high] = [edges[0], edges[edges.length - 1]];
      const label = (x, anchor, value) =>
        svg("text", { x, y: H - 4, "text-anchor": anchor }, bnkit.tick(value));
      const zero = LEFT + ((0 - low) / (high - low)) * (W - 2 * LEFT);
      return svg(
        "g",
        { class: "axes" },
        svg("line", { class: "base", x1: LEFT, x2: W - LEFT, y1: BASE, y2: BASE }),
        svg("line", { class: "tick", x1: zero, x2: zero, y1: BASE, y2: BASE + 3 }),
        label(LEFT, "start", low),
        label(zero, "middle", 0),
        label(W - LEFT, "end", high),
      );
    }

    draw({ step, asTensorFlow, top }) {
      const record = this.layer.records.find((r) => r.step === step);
      this.record = record;
      this.altered = asTensorFlow && record.nan > 0 && this.layer.layer > 0;
      this.counts = drawnCounts(this.layer, record, asTensorFlow);
      const empty = record.nonfinite >= 1 && !this.altered;
      this.element.classList.toggle("empty", empty);
      this.element.classList.toggle("altered", this.altered);
      if (empty) this.body.replaceChildren(blank(record));
      else this.bars(top);
      const shown = badges(record, this.altered);
      // The plate inside an empty panel already says NaN and how much.
      const below = empty ? shown.filter(([kind]) => kind !== "nan") : shown;
      this.badges.replaceChildren(
        ...below.map(([kind, words]) => html("span", { class: `badge ${kind}` }, words)),
      );
      this.tag.textContent = rowName(this.run);
      this.title.textContent = this.heading();
      const note = this.altered ? [t("tf.note.short")] : [];
      this.desc.textContent = [...note, ...summary(record)].join("; ");
    }

    bars(top) {
      const slot = (W - 2 * LEFT) / this.counts.length;
      if (this.body.childElementCount !== this.counts.length || !this.body.querySelector(".bar")) {
        this.body.replaceChildren(
          ...this.counts.map((_, i) =>
            svg("rect", { class: "bar", x: (LEFT + i * slot + 0.4).toFixed(2), width: (slot - 0.8).toFixed(2), y: BASE, height: 0 }),
          ),
        );
      }
      [...this.body.children].forEach((bar, i) => {
        const share = Math.min(1, this.counts[i] / this.record.entries / top);
        // A bin with a few entries must not look like an empty one.
        const height = this.counts[i] ? Math.max(0.6, share * (BASE - TOP)) : 0;
        bar.setAttribute("height", height.toFixed(2));
        bar.setAttribute("y", (BASE - height).toFixed(2));
        bar.setAttribute("data-count", this.counts[i]);
        bar.classList.toggle("unreal", this.altered && this.counts[i] !== this.record.counts[i]);
      });
    }

    heading() {
      return `${layerName(this.layer.layer)} · ${rowName(this.run)} · ${t("step")} ${this.record.step}`;
    }

    binLines(i) {
      const { edges } = this.layer;
      const values = {
        low: bnkit.tick(edges[i]), high: bnkit.tick(edges[i + 1]),
        count: this.counts[i], entries: this.record.entries,
        share: percent(this.counts[i] / this.record.entries),
      };
      return [t("tip.bin", values), t("tip.count", values)];
    }

    listen() {
      const { hit } = this;
      hit.addEventListener("pointermove", (event) => {
        const box = hit.getBoundingClientRect();
        const x = (((event.clientX - box.left) / box.width) * W - LEFT) / (W - 2 * LEFT);
        const bin = Math.floor(x * this.counts.length);
        const known = !this.element.classList.contains("empty") && bin >= 0 && bin < this.counts.length;
        const lines = known ? this.binLines(bin) : [];
        const words = [this.heading(), ...lines, ...summary(this.record)];
        bnkit.showTip(words, () => [event.clientX, event.clientY]);
      });
      hit.addEventListener("pointerleave", bnkit.hideTip);
      hit.addEventListener("blur", bnkit.hideTip);
      hit.addEventListener("focus", () => {
        if (!hit.matches(":focus-visible")) return;
        bnkit.showTip([this.heading(), ...summary(this.record)], () => {
          const box = hit.getBoundingClientRect();
          return [box.right - 8, box.top + box.height / 2];
        });
      });
    }
  }

  /** One stop for the Tab key; the arrows walk over the grid. */
  const roving = (host, rows) => {
    const cell = { row: 0, column: 0 };
    const hitAt = ({ row, column }) => rows[row][column].hit;
    hitAt(cell).tabIndex = 0;
    host.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (event.key === "Escape") bnkit.hideTip();
      if (!move) return;
      event.preventDefault();
      hitAt(cell).tabIndex = -1;
      cell.row = Math.max(0, Math.min(rows.length - 1, cell.row + move[0]));
      cell.column = Math.max(0, Math.min(rows[0].length - 1, cell.column + move[1]));
      hitAt(cell).tabIndex = 0;
      hitAt(cell).focus();
    });
  };

  /** Build the grid for the runs of one activation; returns `draw(view)`. */
  bnkit.panelGrid = (host, runs) => {
    const rows = runs.map((run) => run.layers.map((layer) => new Panel(run, layer)));
    const gutter = html(
      "div",
      { class: "gutter" },
      html("div", {}),
      ...runs.map((run) => html("div", { class: run.batch_norm ? "bn" : "plain" }, rowName(run))),
    );
    const names = [];
    const columns = runs[0].layers.map((layer, i) => {
      const name = html("div", { class: "layer-name" }, layerName(layer.layer));
      names.push(name);
      return html("div", { class: "layer" }, name, ...rows.map((row) => row[i].element));
    });
    const grid = html("div", { class: "panels" }, gutter, ...columns);
    roving(grid, rows);
    host.replaceChildren(grid);
    return (view) => rows.flat().forEach((panel) => panel.draw(view));
  };
})();
