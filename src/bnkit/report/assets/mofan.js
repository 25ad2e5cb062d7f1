"use strict";
// The tutorial's tab: activation, step, the two rows of histograms and the cost curves.
(() => {
  const { byId, t } = bnkit;
  const PLAY_MS = 900;
  let timer = null;
  let grid = null;

  const runsOf = (mofan, activation) =>
    mofan.runs
      .filter((run) => run.activation === activation)
      .sort((a, b) => Number(a.batch_norm) - Number(b.batch_norm));

  const firstBad = (cost) => cost.state.findIndex((state) => state !== "finite");

  /** "inf at step 0, NaN at the next record, step 5" in words. */
  const badStory = (cost) => {
    const at = firstBad(cost);
    if (at < 0) return null;
    const nan = cost.state.indexOf("nan");
    const inf = cost.state.indexOf("inf");
    const words = [];
    if (inf >= 0) words.push(t("cost.inf", { step: cost.steps[inf] }));
    const next = inf >= 0 && nan === inf + 1;
    if (nan >= 0) words.push(t(next ? "cost.next" : "cost.nan", { step: cost.steps[nan] }));
    return words.join(t("comma"));
  };

  const costSeries = (run) => {
    const name = t(run.batch_norm ? "with.bn" : "without.bn");
    const story = badStory(run.cost);
    return {
      key: run.batch_norm ? "bn" : "plain",
      css: run.batch_norm ? "bn" : "plain",
      name,
      short: name,
      steps: run.cost.steps,
      values: run.cost.values,
      states: run.cost.state,
      lane: story ? `${name}: ${story}` : null,
    };
  };

  const costDescription = (series) =>
    series
      .map((s) => {
        const known = s.values.filter((v) => v !== null);
        const end = known.length ? bnkit.number(known[known.length - 1]) : "";
        return s.lane || `${s.name}: ${bnkit.number(known[0])} → ${end}`;
      })
      .join("; ");

  const drawCost = (mofan, activation) => {
    const series = runsOf(mofan, activation).map(costSeries);
    const reference = mofan.reference || {};
    bnkit.lineChart(byId("cost"), {
      title: t("cost.title", { activation }),
      desc: costDescription(series),
      readLabel: t("cost.read"),
      xLabel: t("step"),
      y: { log: true, format: bnkit.number, tick: bnkit.tick },
      series,
      references: ["noise_variance", "best_constant"].map((key) => ({
        value: reference[key],
        label: t(`reference.${key}`),
      })),
    });
  };

  const applyStep = (mofan, state) => {
    const index = Math.max(0, mofan.record_steps.indexOf(state.step));
    byId("step").value = String(index);
    byId("step").setAttribute("aria-valuetext", `${t("step")} ${state.step}`);
    byId("step-value").textContent = state.step;
    const asTensorFlow = state.tf && state.act === "relu";
    const top = asTensorFlow ? 1 : bnkit.shareTop(runsOf(mofan, state.act));
    grid({ step: state.step, asTensorFlow, top });
    byId("scale-note").textContent = t("scale.note", { top: bnkit.percent(top) });
    byId("tf-note").hidden = !asTensorFlow;
    byId("tf-switch").hidden = state.act !== "relu";
    byId("tf").checked = state.tf;
  };

  const stop = () => {
    clearInterval(timer);
    timer = null;
    byId("play").dataset.label = "play";
    byId("play").setAttribute("aria-label", t("play"));
    byId("play").classList.remove("playing");
  };

  const play = (mofan, change) => {
    const steps = mofan.record_steps;
    const next = () => {
      const index = steps.indexOf(bnkit.state.step) + 1;
      if (index < steps.length) change({ step: steps[index] });
      if (index >= steps.length - 1) stop();
    };
    if (bnkit.state.step === steps[steps.length - 1]) change({ step: steps[0] });
    byId("play").dataset.label = "pause";
    byId("play").setAttribute("aria-label", t("pause"));
    byId("play").classList.add("playing");
    timer = setInterval(next, PLAY_MS);
  };

  /** Connect the controls; `change` takes the part of the state that is new. */
  bnkit.connectMofan = (mofan, change) => {
    for (const input of document.querySelectorAll("input[name=activation]")) {
      input.addEventListener("change", () => change({ act: input.value }));
    }
    byId("step").addEventListener("input", (event) => {
      if (timer) stop();
      change({ step: mofan.record_steps[Number(event.target.value)] });
    });
    byId("play").addEventListener("click", () => (timer ? stop() : play(mofan, change)));
    byId("tf").addEventListener("change", (event) => change({ tf: event.target.checked }));
  };

  /** Draw what changed between two states; a new language or activation redraws everything. */
  bnkit.drawMofan = (mofan, state, changed) => {
    if (!grid || changed.has("lang") || changed.has("act")) {
      const input = document.querySelector(`input[name=activation][value="${CSS.escape(state.act)}"]`);
      input.checked = true;
      grid = bnkit.panelGrid(byId("panels"), runsOf(mofan, state.act));
    }
    applyStep(mofan, state);
    if (["lang", "act", "tab", "size"].some((key) => changed.has(key))) drawCost(mofan, state.act);
  };
})();
