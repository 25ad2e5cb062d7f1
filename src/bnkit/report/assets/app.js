"use strict";
// The state of the page lives in the address (after #), so that a link shows what its sender saw.
(() => {
  const { byId } = bnkit;
  const dataText = byId("results").textContent;
  const results = JSON.parse(dataText);
  const { mofan, twins, leaving } = results;
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const activations = [...new Set(mofan.runs.map((run) => run.activation))];

  const defaults = () => ({
    lang: (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en",
    tab: "mofan",
    act: activations[0],
    step: mofan.record_steps[0],
    tf: false,
  });

  /** Read the state from the address; anything unknown falls back to the default. */
  const fromAddress = () => {
    const state = defaults();
    const given = new URLSearchParams(location.hash.slice(1));
    const known = {
      lang: ["en", "zh"],
      tab: tabs.map((tab) => tab.dataset.tab),
      act: activations,
      step: mofan.record_steps.map(String),
    };
    for (const [key, values] of Object.entries(known)) {
      if (values.includes(given.get(key))) state[key] = given.get(key);
    }
    state.step = Number(state.step);
    state.tf = given.get("tf") === "1";
    return state;
  };

  const toAddress = (state) => {
    const words = new URLSearchParams({ ...state, tf: state.tf ? "1" : "0" });
    const target = `#${words}`;
    if (location.hash === target) return;
    try {
      history.replaceState(null, "", target);
    } catch {
      // Some browsers refuse this for files on disk; the page works without a memory.
    }
  };

  const showTab = (state) => {
    for (const tab of tabs) {
      const current = tab.dataset.tab === state.tab;
      tab.setAttribute("aria-selected", String(current));
      tab.tabIndex = current ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !current;
    }
  };

  const draw = (state, changed) => {
    if (changed.has("lang")) {
      bnkit.setLanguage(state.lang);
      for (const button of document.querySelectorAll("[data-set-lang]")) {
        button.setAttribute("aria-pressed", String(button.dataset.setLang === state.lang));
      }
    }
    showTab(state);
    bnkit.drawMofan(mofan, state, changed);
    const words = changed.has("lang");
    if (mofan.ablation && words) bnkit.drawAblation(mofan.ablation, mofan.reference.best_constant);
    if (twins && (words || changed.has("size") || changed.has("tab"))) bnkit.drawTwins(twins);
    if (leaving && (words || changed.has("size") || changed.has("tab"))) bnkit.drawLeaving(leaving);
  };

  const change = (part) => {
    const changed = new Set(Object.keys(part).filter((key) => part[key] !== bnkit.state[key]));
    if (!changed.size) return;
    Object.assign(bnkit.state, part);
    bnkit.hideTip();
    draw(bnkit.state, changed);
    toAddress(bnkit.state);
  };

  const connectTabs = () => {
    tabs.forEach((tab, i) => {
      tab.addEventListener("click", () => change({ tab: tab.dataset.tab }));
      tab.addEventListener("keydown", (event) => {
        const count = tabs.length;
        const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + count, Home: 0, End: count - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        tabs[to % count].focus();
        change({ tab: tabs[to % count].dataset.tab });
      });
    });
    for (const link of document.querySelectorAll("[data-go]")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        change({ tab: link.dataset.go });
        const target = byId(link.dataset.anchor);
        target.scrollIntoView();
        target.focus({ preventScroll: true });
      });
    }
  };

  const connectSize = () => {
    let width = window.innerWidth;
    let waiting = 0;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => draw(bnkit.state, new Set(["size"])));
    });
  };

  const start = () => {
    bnkit.state = fromAddress();
    byId("download").href = URL.createObjectURL(new Blob([dataText], { type: "application/json" }));
    bnkit.connectMofan(mofan, change);
    connectTabs();
    connectSize();
    for (const button of document.querySelectorAll("[data-set-lang]")) {
      button.addEventListener("click", () => change({ lang: button.dataset.setLang }));
    }
    window.addEventListener("hashchange", () => change(fromAddress()));
    draw(bnkit.state, new Set(["lang", "act", "tab", "size"]));
    document.documentElement.classList.add("ready");
  };
  start();
})();
