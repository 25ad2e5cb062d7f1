"use strict";
// The ablation as a table whose cells carry a number and a colour.
(() => {
  const { html, t, byId } = bnkit;

  /** 0 for the best median of the table, 1 for the worst, on a logarithmic scale. */
  const coolness = (ablation) => {
    const medians = ablation.rows
      .flatMap((row) => row.cells.map((cell) => cell.median))
      .filter((median) => median !== null && median > 0);
    if (!medians.length) return () => 1;
    return bnkit.scale([Math.min(...medians), Math.max(...medians)], [0, 1], true);
  };

  const cellOf = (cell, cool, context) => {
    const td = html("td", {});
    const runs = { bad: cell.nonfinite, runs: cell.runs };
    if (cell.median === null) {
      td.className = "heat nonfinite";
      td.append(html("span", { "aria-hidden": "true" }, `∞ [${cell.nonfinite}]`));
    } else {
      const heat = Math.round((1 - cool(cell.median)) * 100);
      // The two texts have the same contrast, 4.6, at this mixture of the colours of page.css.
      td.className = heat >= 73 ? "heat strong" : "heat";
      td.style.setProperty("--heat", `${heat}%`);
      const some = cell.nonfinite ? ` [${cell.nonfinite}]` : "";
      td.append(html("span", { "aria-hidden": "true" }, bnkit.number(cell.median) + some));
    }
    const words = cell.median === null
      ? t("heat.none", runs)
      : t("heat.cell", { ...runs, median: bnkit.number(cell.median) });
    td.append(html("span", { class: "for-readers" }, words));
    const lines = [context, `${t("lr")} ${bnkit.power(cell.lr)}`, words];
    td.addEventListener("pointermove", (event) => bnkit.showTip(lines, () => [event.clientX, event.clientY]));
    td.addEventListener("pointerleave", bnkit.hideTip);
    return td;
  };

  const rowOf = (row, cool) => {
    const norm = t(row.batch_norm ? "with.bn" : "without.bn");
    const init = t(`init.${row.init}`);
    const name = html(
      "th",
      { scope: "row" },
      html("span", { class: "row-init" }, `${row.activation} · ${init}`),
      html("span", { class: `chip ${row.batch_norm ? "bn" : "plain"}` }, norm),
    );
    const cells = row.cells.map((cell) => cellOf(cell, cool, `${row.activation} · ${init} · ${norm}`));
    return html("tr", { class: row.batch_norm ? "bn" : "plain" }, name, ...cells);
  };

  /** One body per pair of rows that differ in batch normalization only. */
  const bodies = (ablation, cool) => {
    const groups = new Map();
    for (const row of ablation.rows) {
      const key = `${row.activation} ${row.init}`;
      if (!groups.has(key)) groups.set(key, html("tbody", {}));
      groups.get(key).append(rowOf(row, cool));
    }
    return groups.values();
  };

  /** Fill the heat table of the ablation. */
  bnkit.drawAblation = (ablation) => {
    const cool = coolness(ablation);
    const head = html(
      "tr",
      {},
      html("th", { scope: "col" }, t("heat.network")),
      ...ablation.lrs.map((lr) => html("th", { scope: "col" }, `${t("lr")} ${bnkit.power(lr)}`)),
    );
    byId("heat").replaceChildren(
      html("caption", {}, t("heat.caption", { seeds: ablation.seeds })),
      html("thead", {}, head),
      ...bodies(ablation, cool),
    );
  };
})();
