// The page of a diagnosis: the language, and a scatter of stored against measured statistics.
(() => {
  const { layers } = JSON.parse(bnkit.byId("results").textContent);
  const SIZE = 300;
  const EDGE = 34;

  const choose = (language) => {
    document.documentElement.dataset.lang = language;
    document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
    for (const button of document.querySelectorAll("[data-set-lang]")) {
      button.setAttribute("aria-pressed", String(button.dataset.setLang === language));
    }
  };
  for (const button of document.querySelectorAll("[data-set-lang]")) {
    button.addEventListener("click", () => choose(button.dataset.setLang));
  }
  if ((navigator.language || "").toLowerCase().startsWith("zh")) choose("zh");

  const short = (value) => String(Number(value.toPrecision(3)));

  const scatter = (where, measured, stored, title, back) => {
    const all = [...measured, ...stored];
    const low = Math.min(...all);
    const high = Math.max(...all);
    const span = high - low || 1;
    const at = (value) => ((value - low) / span) * (SIZE - 2 * EDGE) + EDGE;
    const { root } = bnkit.picture({ width: SIZE, height: SIZE, title, desc: `${measured.length} channels` });
    root.append(
      bnkit.svg("rect", { class: "frame", x: EDGE, y: EDGE, width: SIZE - 2 * EDGE, height: SIZE - 2 * EDGE }),
      bnkit.svg("line", { class: "diagonal", x1: EDGE, y1: SIZE - EDGE, x2: SIZE - EDGE, y2: EDGE }),
      bnkit.svg("text", { x: EDGE, y: SIZE - 14 }, short(back(low))),
      bnkit.svg("text", { x: SIZE - EDGE, y: SIZE - 14, "text-anchor": "end" }, short(back(high))),
    );
    measured.forEach((value, index) => {
      const x = at(value).toFixed(2);
      const y = (SIZE - at(stored[index])).toFixed(2);
      const words = `${index}: ${short(back(value))}, ${short(back(stored[index]))}`;
      root.append(bnkit.svg("circle", { cx: x, cy: y, r: 3.5 }, bnkit.svg("title", {}, words)));
    });
    bnkit.byId(where).replaceChildren(root);
  };

  const show = (layer) => {
    const log = (values) => values.map((value) => Math.log10(Math.max(value, 1e-12)));
    scatter("means", layer.measured_mean, layer.stored_mean, `mean of ${layer.name}`, (v) => v);
    const power = (value) => 10 ** value;
    scatter("variances", log(layer.measured_var), log(layer.stored_var), `variance of ${layer.name}`, power);
  };

  if (layers.length) {
    const select = bnkit.byId("layer");
    layers.forEach((layer, index) => select.append(bnkit.html("option", { value: index }, layer.name || ".")));
    select.addEventListener("change", () => show(layers[Number(select.value)]));
    bnkit.byId("scatter").hidden = false;
    show(layers[0]);
  }
})();
