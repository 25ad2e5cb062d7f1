"use strict";
// Words and numbers in the language of the page.
(() => {
  const strings = JSON.parse(bnkit.byId("strings").textContent);
  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  let language = "en";

  bnkit.setLanguage = (value) => {
    language = value;
    document.documentElement.lang = value === "zh" ? "zh-Hans" : "en";
    document.documentElement.dataset.lang = value;
    document.title = bnkit.pick(JSON.parse(bnkit.byId("page-title").textContent));
    for (const element of document.querySelectorAll("[data-label]")) {
      element.setAttribute("aria-label", bnkit.t(element.dataset.label));
    }
    for (const element of document.querySelectorAll("time[data-local]")) {
      element.textContent = localTime(element.dateTime);
    }
  };

  bnkit.language = () => language;
  /** The words of a {en, zh} text of the results. */
  bnkit.pick = (text) => text[language] ?? text.en;
  /** The words of the page itself; `{name}` is replaced from `values`. */
  bnkit.t = (key, values) =>
    strings[key][language].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
  bnkit.has = (key) => key in strings;

  /** A share in per cent that never rounds something to nothing or a part to the whole. */
  bnkit.percent = (share) => {
    if (share > 0 && share < 0.005) return "<1\u00a0%";
    if (share < 1 && share > 0.995) return ">99\u00a0%";
    return `${bnkit.points(share, 0)}\u00a0%`;
  };

  /** A share in per cent with one decimal. */
  bnkit.exact = (share) => `${bnkit.points(share)}\u00a0%`;

  /** A share in points, rounded half up on its decimal value: the rule of bnkit.lab.shares. */
  bnkit.points = (share, digits = 1) => {
    const [mantissa, exponent] = share.toPrecision(12).split("e");
    const whole = Math.round(Number(`${mantissa}e${Number(exponent || 0) + 2 + digits}`));
    return (whole / 10 ** digits).toFixed(digits);
  };

  /** A number at an axis or an edge: no zeros at its end. */
  bnkit.tick = (value) => {
    const text = bnkit.number(value);
    return /^−?\d+\.\d+$/.test(text) ? text.replace(/\.?0+$/, "") : text;
  };

  /** Three digits that a person can read; `–` where there is no number. */
  bnkit.number = (value, digits = 3) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e5 || size < 1e-3)) return scientific(value, digits);
    if (size >= 1000) return String(Math.round(value));
    return (size === 0 ? "0" : value.toPrecision(digits)).replace("-", "−");
  };

  /** A power of ten as people write it: 10⁻³ for 0.001. */
  bnkit.power = (value) => {
    const text = scientific(value, 2);
    return text.startsWith("1×") ? text.slice(2) : text;
  };

  const scientific = (value, digits) => {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const raised = [...String(Math.abs(Number(exponent)))].map((d) => SUPERSCRIPTS[d]).join("");
    const sign = Number(exponent) < 0 ? "⁻" : "";
    return `${Number(mantissa)}×10${sign}${raised}`.replace("-", "−");
  };

  const localTime = (iso) => {
    const format = { dateStyle: "long", timeStyle: "short", timeZone: "UTC" };
    const date = new Date(iso);
    if (Number.isNaN(date.getTime())) return iso;
    const locale = language === "zh" ? "zh-CN" : "en-GB";
    return `${new Intl.DateTimeFormat(locale, format).format(date)} UTC`;
  };
})();
