"use strict";
// The twin networks: curves of every seed with their median, and one network judged in many modes.
(() => {
  const { svg, html, t, pick, byId, exact } = bnkit;
  const finite = (value) => value !== null && value !== undefined;

  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const half = sorted.length / 2;
    return sorted.length % 2
      ? sorted[Math.floor(half)]
      : (sorted[half - 1] + sorted[half]) / 2;
  };

  /** The median over the seeds; none where half of the runs or more are not finite. */
  const medianSeries = (arm, field) =>
    arm.runs[0].steps.map((_, i) => {
      const values = arm.runs.map((run) => run[field][i]).filter(finite);
      return values.length * 2 > arm.runs.length ? median(values) : null;
    });

  const seriesOf = (twins, field) =>
    twins.arms.flatMap((arm) => {
      const css = arm.id === "bn" ? "bn" : "plain";
      const seeds = arm.runs.map((run) => ({
        key: `${arm.id}-${run.seed}`, css, thin: true, name: pick(arm.name),
        steps: run.steps, values: run[field],
      }));
      const middle = {
        key: arm.id, css, name: pick(arm.name), short: t(css === "bn" ? "with.bn" : "without.bn"),
        steps: arm.runs[0].steps,
        values: medianSeries(arm, field),
      };
      return arm.runs.length > 1 ? [...seeds, middle] : [middle];
    });

  const describe = (series, format) =>
    series
      .filter((s) => !s.thin)
      .map((s) => {
        const last = s.values[s.values.length - 1];
        return `${s.name}: ${finite(last) ? format(last) : "NaN"}`;
      })
      .join("; ");

  const drawCurves = (twins) => {
    const loss = seriesOf(twins, "train_loss");
    const accuracy = seriesOf(twins, "val_accuracy");
    const shown = accuracy.flatMap((s) => s.values.filter(finite));
    // Accuracies near one differ in their last digits, so the axis starts where the curves do.
    const low = Math.max(0, Math.floor(Math.min(...shown, 1) * 10) / 10);
    const common = { xLabel: t("step"), readLabel: t("cost.read") };
    bnkit.lineChart(byId("loss"), {
      ...common, title: t("loss.title"), desc: describe(loss, bnkit.number),
      y: { log: true, format: bnkit.number, tick: bnkit.tick }, series: loss,
    });
    bnkit.lineChart(byId("accuracy"), {
      ...common, title: t("accuracy.title"), desc: describe(accuracy, exact),
      y: { domain: [low, 1], format: exact, tick: bnkit.percent }, series: accuracy,
    });
  };

  const spread = (values) => {
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    if (values.length < 2) return { mean, sd: null };
    const ss = values.reduce((a, b) => a + (b - mean) ** 2, 0);
    return { mean, sd: Math.sqrt(ss / (values.length - 1)) };
  };

  const drawTest = (twins) => {
    const rows = twins.arms.map((arm) => {
      const known = arm.runs.map((run) => run.test_accuracy).filter(finite);
      const { mean, sd } = known.length ? spread(known) : { mean: null, sd: null };
      const words = mean === null ? "–" : exact(mean) + (sd === null ? "" : ` ± ${bnkit.points(sd)}`);
      return html(
        "div",
        { class: `figure-number ${arm.id === "bn" ? "bn" : "plain"}` },
        html("dt", {}, pick(arm.name)),
        html("dd", {}, words, html("small", {}, t("test.runs", { runs: arm.runs.length }))),
      );
    });
    byId("test-accuracy").replaceChildren(...rows);
  };

  const modeNote = (row) => {
    const [kind, value] = row.id.split(/-(?=[\d.]+$)/);
    if (row.id === "train-1") return t("mode.train-1");
    const key = `mode.${kind}`;
    return bnkit.has(key) ? t(key, { value, complement: Number((1 - value).toPrecision(6)) }) : null;
  };

  const bar = (row) => {
    const x = (share) => Math.max(0, Math.min(100, share * 100));
    const root = svg("svg", { viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true", class: "mode-bar" });
    root.append(
      svg("rect", { class: "track", x: 0, y: 4, width: 100, height: 12 }),
      svg("rect", { class: "value", x: 0, y: 4, width: x(row.accuracy), height: 12 }),
    );
    if (row.sd) {
      const [from, to] = [x(row.accuracy - row.sd), x(row.accuracy + row.sd)];
      root.append(
        svg("path", { class: "whisker", d: `M${from},10H${to}M${from},5V15M${to},5V15` }),
      );
    }
    return root;
  };

  const drawModes = (mode) => {
    const rows = [...mode.rows].sort((a, b) => b.accuracy - a.accuracy);
    const reference = rows.find((row) => row.id === "eval");
    byId("modes").replaceChildren(
      ...rows.map((row) => {
        const note = modeNote(row);
        const words = exact(row.accuracy) + (row.sd === null ? "" : ` ± ${bnkit.points(row.sd)}`);
        const lost = (reference?.accuracy ?? row.accuracy) - row.accuracy;
        const state = row === reference ? "right" : lost > 0.05 ? "wrong" : "near";
        return html(
          "tr",
          { class: state, "data-mode": row.id },
          html("th", { scope: "row" }, pick(row.name), note ? html("small", {}, note) : null),
          html("td", { class: "bar-cell" }, bar(row)),
          html("td", { class: "amount" }, words),
        );
      }),
    );
  };

  const drawLayers = (layers) => {
    byId("layers").replaceChildren(
      ...layers.map((layer) =>
        html(
          "tr",
          {},
          html("th", { scope: "row" }, html("code", {}, layer.name)),
          html("td", { class: "amount" }, layer.distance_mean_z.toFixed(3)),
          html("td", { class: "amount" }, layer.ratio_var.toFixed(3)),
        ),
      ),
    );
  };

  /** Draw the whole tab of the twin networks. */
  bnkit.drawTwins = (twins) => {
    drawCurves(twins);
    drawTest(twins);
    if (twins.mode) drawModes(twins.mode);
    if (twins.layers?.length) drawLayers(twins.layers);
  };
})();
