"use strict";
// Elements, the tooltip and the scales that every figure uses. Text always enters as text nodes:
// a results document can never become markup.
const bnkit = {};
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  let serial = 0;

  const fill = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  };

  bnkit.html = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);
  bnkit.svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);
  bnkit.byId = (id) => document.getElementById(id);
  bnkit.newId = (stem) => `${stem}-${(serial += 1)}`;

  /** An SVG picture with a title and a description for those who do not see it. */
  bnkit.picture = ({ width, height, title, desc, css, hidden }) => {
    const titleId = bnkit.newId("title");
    const descId = bnkit.newId("desc");
    const root = bnkit.svg(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        class: css,
        role: hidden ? null : "img",
        "aria-hidden": hidden ? "true" : null,
        "aria-labelledby": hidden ? null : titleId,
        "aria-describedby": hidden ? null : descId,
      },
      bnkit.svg("title", { id: titleId }, title || ""),
      bnkit.svg("desc", { id: descId }, desc || ""),
    );
    return { root, titleId, descId };
  };

  /** Map `domain` to `range`, with logarithms where asked. */
  bnkit.scale = (domain, range, log) => {
    const f = log ? Math.log10 : (v) => v;
    const [a, b] = domain.map(f);
    const span = b - a || 1;
    return (value) => range[0] + ((f(value) - a) / span) * (range[1] - range[0]);
  };

  /** Round steps of 1, 2 or 5 that cut [low, high] into about `count` parts. */
  bnkit.ticks = (low, high, count) => {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((m) => m * power >= raw * 0.999) * power;
    const out = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
      out.push(Number((i * step).toPrecision(12)));
    }
    return out;
  };

  /** Decades inside [low, high]; with 2 and 5 when decades alone would be too few. */
  bnkit.logTicks = (low, high) => {
    const decades = [];
    const fine = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
      for (const m of [1, 2, 5]) {
        const value = Number(`${m}e${e}`);
        if (value < low || value > high) continue;
        fine.push(value);
        if (m === 1) decades.push(value);
      }
    }
    if (decades.length < 3) return fine;
    const every = Math.ceil(decades.length / 7);
    return decades.filter((_, i) => i % every === 0);
  };

  const tip = bnkit.html("div", { class: "tip", "aria-hidden": "true" });

  let anchor = null;

  const placeTip = () => {
    const [x, y] = anchor();
    const box = tip.getBoundingClientRect();
    const roomy = x + 16 + box.width < document.documentElement.clientWidth;
    const left = Math.max(4, roomy ? x + 14 : x - 14 - box.width);
    const top = Math.max(4, Math.min(y - box.height / 2, window.innerHeight - box.height - 4));
    tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  };

  /** Show lines of text, the first one as a heading, near the point of the window `at()` names. */
  bnkit.showTip = (lines, at) => {
    if (!tip.isConnected) document.body.append(tip);
    tip.replaceChildren(...lines.map((line) => bnkit.html("div", {}, line)));
    tip.classList.add("shown");
    anchor = at;
    placeTip();
  };
  bnkit.hideTip = () => tip.classList.remove("shown");
  // The Tab key may scroll what it reaches into view after the tip was placed.
  window.addEventListener("scroll", () => tip.classList.contains("shown") && placeTip());
})();
