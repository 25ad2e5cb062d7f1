"use strict";
// The ablation as a table whose cells carry a number and a colour.
(() => {
  const { html, t, byId } = bnkit;

  const PALEST = 12;

  /** The tint of a median in per cent: full for the best one, none from `limit` on. */
  const tintOf = (ablation, limit) => {
    const medians = ablation.rows
      .flatMap((row) => row.cells.map((cell) => cell.median))
      .filter((median) => median !== null && median > 0 && median < limit);
    if (!medians.length) return () => 0;
    const warm = bnkit.scale([Math.min(...medians), limit], [100, PALEST], true);
    return (median) => (median < limit ? Math.min(100, Math.round(warm(median))) : 0);
  };

  const cellOf = (cell, { tint, limit }, context) => {
    const td = html("td", {});
    const runs = { bad: cell.nonfinite, runs: cell.runs };
    if (cell.median === null) {
      td.className = "heat nonfinite";
      td.append(html("span", { "aria-hidden": "true" }, `∞ [${cell.nonfinite}]`));
    } else {
      const heat = tint(cell.median);
      // The two texts have the same contrast, 4.6, at this mixture of the colours of page.css.
      td.className = heat >= 73 ? "heat strong" : "heat";
      td.style.setProperty("--heat", `${heat}%`);
      const some = cell.nonfinite ? ` [${cell.nonfinite}]` : "";
      td.append(html("span", { "aria-hidden": "true" }, bnkit.number(cell.median) + some));
    }
    const words = cell.median === null
      ? t("heat.none", runs)
      : t("heat.cell", { ...runs, median: bnkit.number(cell.median) });
    const worse = cell.median !== null && cell.median >= limit;
    const notes = worse ? [words, t("heat.worse", { limit: bnkit.number(limit) })] : [words];
    td.append(html("span", { class: "for-readers" }, notes.join("; ")));
    const lines = [context, `${t("lr")} ${bnkit.power(cell.lr)}`, ...notes];
    td.addEventListener("pointermove", (event) => bnkit.showTip(lines, () => [event.clientX, event.clientY]));
    td.addEventListener("pointerleave", bnkit.hideTip);
    return td;
  };

  const rowOf = (row, heat) => {
    const norm = t(row.batch_norm ? "with.bn" : "without.bn");
    const init = t(`init.${row.init}`);
    const name = html(
      "th",
      { scope: "row" },
      html("span", { class: "row-init" }, `${row.activation} · ${init}`),
      html("span", { class: `chip ${row.batch_norm ? "bn" : "plain"}` }, norm),
    );
    const cells = row.cells.map((cell) => cellOf(cell, heat, `${row.activation} · ${init} · ${norm}`));
    return html("tr", { class: row.batch_norm ? "bn" : "plain" }, name, ...cells);
  };

  /** One body per pair of rows that differ in batch normalization only. */
  const bodies = (ablation, heat) => {
    const groups = new Map();
    for (const row of ablation.rows) {
      const key = `${row.activation} ${row.init}`;
      if (!groups.has(key)) groups.set(key, html("tbody", {}));
      groups.get(key).append(rowOf(row, heat));
    }
    return groups.values();
  };

  /** Fill the heat table of the ablation; costs from `limit` on are not tinted. */
  bnkit.drawAblation = (ablation, limit) => {
    const heat = { limit, tint: tintOf(ablation, limit) };
    const head = html(
      "tr",
      {},
      html("th", { scope: "col" }, t("heat.network")),
      ...ablation.lrs.map((lr) => html("th", { scope: "col" }, `${t("lr")} ${bnkit.power(lr)}`)),
    );
    byId("heat").replaceChildren(
      html("caption", {}, t("heat.caption", { seeds: ablation.seeds })),
      html("thead", {}, head),
      ...bodies(ablation, heat),
    );
  };
})();
