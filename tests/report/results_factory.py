"""A small document of the schema of `results.json`, with every case that the page must show."""

from typing import Any

import numpy as np

STEPS = [0, 50, 100, 150, 200, 250]
COST_STEPS = list(range(0, 251, 5))
SAMPLES = 500
UNITS = 30


def both(en: str, zh: str) -> dict[str, str]:
    return {"en": en, "zh": zh}


def _values(activation: str, batch_norm: bool, layer: int, step: int, rng: Any) -> np.ndarray:
    """Draw the entries that reach `layer`: the shapes of the real experiment, not its numbers."""
    if layer == 0:
        x = np.linspace(-7, 10, SAMPLES)
        return (x - x.mean()) / x.std() if batch_norm else x
    z = rng.normal(size=(SAMPLES, UNITS)) * (1.0 if batch_norm else 4.0**layer)
    if activation == "tanh":
        return np.tanh(z)
    if not batch_norm and step > 0:
        return np.full_like(z, np.nan)
    z[:, : 0 if batch_norm else 3 * layer // 2] = -1.0
    values = np.maximum(z, 0.0)
    if batch_norm and layer == 7 and step == 250:
        values.flat[:300] = np.nan
        values.flat[300:450] = np.inf
    return values


def _record(values: np.ndarray, activation: str, layer: int, step: int, edges: Any) -> dict:
    finite = values[np.isfinite(values)]
    hidden = layer > 0
    relu = activation == "relu" and hidden
    inside = (finite >= edges[0]) & (finite <= edges[-1])
    any_finite = finite.size > 0
    return {
        "step": step,
        "counts": np.histogram(finite, bins=edges)[0].tolist(),
        "entries": int(values.size),
        "nan": int(np.isnan(values).sum()),
        "posinf": int(np.isposinf(values).sum()),
        "neginf": int(np.isneginf(values).sum()),
        "outside": float((~inside).sum() / values.size),
        "nonfinite": float(1 - finite.size / values.size),
        "zero": float((finite == 0).mean()) if any_finite else None,
        "saturated": float((np.abs(finite) > 0.99).mean())
        if any_finite and hidden and not relu
        else None,
        "dead": float((values == 0).all(axis=0).mean()) if relu else None,
        "zero_if_nan_is_zero": float((np.nan_to_num(values) == 0).mean()) if relu else None,
        "mean": float(finite.mean()) if any_finite else None,
        "sd": float(finite.std()) if any_finite else None,
    }


def _cost(activation: str, batch_norm: bool) -> dict[str, Any]:
    steps = np.array(COST_STEPS)
    floor = {("relu", True): 58.0, ("tanh", True): 80.0, ("tanh", False): 590.0}
    if (activation, batch_norm) not in floor:
        return {
            "steps": COST_STEPS,
            "values": [None] * len(COST_STEPS),
            "state": ["inf"] + ["nan"] * (len(COST_STEPS) - 1),
        }
    values = floor[activation, batch_norm] + 1000.0 * np.exp(-steps / 20.0)
    return {"steps": COST_STEPS, "values": values.tolist(), "state": ["finite"] * len(COST_STEPS)}


def _run(activation: str, batch_norm: bool, rng: Any) -> dict[str, Any]:
    layers = []
    for layer in range(8):
        low, high = (-7, 10) if layer == 0 else (-1, 1)
        edges = np.linspace(low, high, 16)
        records = [
            _record(_values(activation, batch_norm, layer, s, rng), activation, layer, s, edges)
            for s in STEPS
        ]
        layers.append({"layer": layer, "edges": edges.tolist(), "records": records})
    return {
        "activation": activation,
        "batch_norm": batch_norm,
        "cost": _cost(activation, batch_norm),
        "layers": layers,
    }


def _claims() -> list[dict[str, Any]]:
    verdicts = ("reproduced", "direction only", "not reproduced", "contradicted", "artefact")
    return [
        {
            "id": f"claim-{index}",
            "quote": "所有的神经元都已经死了",
            "claim": both(
                f"Claim {index}: every neuron is dead.", f"说法 {index}：神经元全部死亡。"
            ),
            "measured": both("NaN in 100 % of the entries.", "100 % 的条目是 NaN。"),
            "verdict": verdict,
        }
        for index, verdict in enumerate(verdicts)
    ]


def _ablation() -> dict[str, Any]:
    lrs = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    medians = {
        ("relu", "normal", False): [None] * 5,
        ("relu", "normal", True): [925.0, 92.5, 57.8, 60.1, None],
        ("relu", "he", False): [193.0, 188.0, 240.0, None, None],
        ("relu", "he", True): [1098.0, 205.0, 59.5, 60.6, None],
        ("tanh", "normal", False): [796.0, 604.0, 604.0, 650.0, None],
        ("tanh", "normal", True): [813.0, 430.0, 81.0, 62.2, None],
    }
    rows = []
    for (activation, init, batch_norm), values in medians.items():
        cells = [
            {"lr": lr, "median": value, "nonfinite": 10 if value is None else 0, "runs": 10}
            for lr, value in zip(lrs, values, strict=True)
        ]
        if (init, batch_norm) == ("he", False):
            cells[2]["nonfinite"] = 4
        rows.append(
            {"activation": activation, "init": init, "batch_norm": batch_norm, "cells": cells}
        )
    return {"seeds": 10, "lrs": lrs, "rows": rows}


def mofan_part(*, ablation: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "config": {
            "seed": 1,
            "hidden_layers": 7,
            "units": UNITS,
            "samples": SAMPLES,
            "lr": 0.001,
            "steps": 251,
            "eps": 0.001,
            "weight_sd": 1.0,
            "bias": 0.1,
        },
        "record_steps": STEPS,
        "reference": {"best_constant": 737.7, "predict_zero": 1215.0, "noise_variance": 62.7},
        "runs": [_run(a, b, rng) for a in ("relu", "tanh") for b in (False, True)],
        "claims": _claims(),
        "ablation": _ablation() if ablation else None,
    }


def _arm_run(seed: int, batch_norm: bool) -> dict[str, Any]:
    steps = list(range(0, 301, 20))
    speed = 40.0 if batch_norm else 120.0
    loss: list[float | None] = [2.3 * float(np.exp(-s / speed)) + 0.02 + 0.01 * seed for s in steps]
    accuracy: list[float | None] = [1.0 - 0.9 * float(np.exp(-s / speed)) for s in steps]
    if seed == 2 and not batch_norm:
        loss[8:] = [None] * (len(steps) - 8)
        accuracy[8:] = [0.1] * (len(steps) - 8)
    return {
        "seed": seed,
        "steps": steps,
        "train_loss": loss,
        "val_accuracy": accuracy,
        "test_accuracy": accuracy[-1],
    }


def twins_part() -> dict[str, Any]:
    names = {"bn": both("with batch norm", "有批标准化"), "plain": both("without", "没有批标准化")}
    modes = {
        "eval": 0.98,
        "train-1": 0.11,
        "train-32": 0.979,
        "never-updated": 0.16,
        "ema-0.001": 0.27,
    }
    return {
        "config": {
            "data": "digits",
            "train": 1000,
            "val": 300,
            "test": 497,
            "batch": 32,
            "lr": {"with": 3.0, "without": 0.3},
            "lr_rule": both("each arm uses its best rate", "每组使用自己最好的学习率"),
            "steps": 300,
            "seeds": [0, 1, 2],
            "channels": [16, 16, 32, 32],
            "parameters": {"with": 17000, "without": 16800},
        },
        "arms": [
            {"id": arm, "name": name, "runs": [_arm_run(seed, arm == "bn") for seed in range(3)]}
            for arm, name in names.items()
        ],
        "mode": {
            "rows": [
                {"id": key, "name": both(key, f"{key} 模式"), "accuracy": a, "sd": 0.01, "runs": 3}
                for key, a in modes.items()
            ]
        },
        "layers": [
            {"name": f"features.{i}", "distance_mean_z": 0.1 * i, "ratio_var": 1.0 + 0.02 * i}
            for i in (1, 4, 7)
        ],
    }


def _repair(key: str, before: float, after: float, **more: Any) -> dict[str, Any]:
    verdicts = ("error", "warning", "ok", "unknown")
    row = {
        "id": key,
        "name": both(f"The fault {key}", f"故障 {key}"),
        "expected": "BN201",
        "code": "BN201",
        "rule": "stats-at-init",
        "severity": "error",
        "certainty": "proved",
        "said": both("The statistics were lost.", "统计量已经丢失。"),
        "layers": [
            {"name": f"features.{i}", "verdict": verdict} for i, verdict in enumerate(verdicts)
        ],
        "eval_accuracy": 0.101,
        "batch_accuracy": 1.0,
        "before": before,
        "steps": ["BN201: recalibrate"],
        "refused": None,
        "mend": both("bnkit fix --recalibrate", "bnkit fix --recalibrate"),
        "after": after,
        "errors_after": 0,
    }
    return row | more


def repairs_part() -> dict[str, Any]:
    hand = {
        "code": "BN505",
        "expected": "BN505",
        "rule": "input-shift",
        "certainty": "measured",
        "steps": [],
        "refused": "BN505 has no automatic mend: prepare the input as in training",
        "mend": both("by hand; recalibration was refused", "手动处理；拒绝重新校准"),
    }
    missed = {"code": None, "rule": None, "severity": None, "certainty": None, "layers": []}
    missed |= {"eval_accuracy": None, "batch_accuracy": None, "errors_after": 2}
    return {
        "config": {"seed": 1, "lr": 3.0, "batches": 16, "faults": 3},
        "accuracy": 0.998,
        "findings": 0,
        "rows": [
            _repair("lost", 0.1, 0.9985),
            _repair("pixels", 0.373, 0.998, **hand),
            _repair("missed", 0.5, 0.5, **missed),
        ],
    }


def _fold_check(kind: str, dtype: str, error: float | None, **more: Any) -> dict[str, Any]:
    return {
        "id": kind,
        "inputs": both(f"inputs {kind}", f"输入 {kind}"),
        "dtype": dtype,
        "relative_error": error,
        "noise": 3e-7 if dtype == "float32" else 2e-16,
        "passes": True,
        "note": "",
    } | more


def _latency(images: int, ratio: float) -> dict[str, Any]:
    return {
        "images": images,
        "before": 0.0004,
        "after": 0.0004 * ratio,
        "ratio": ratio,
        "low": ratio - 0.02,
        "high": ratio + 0.03,
        "rounds": 31,
        "others": None,
    }


def _onnx_file(kind: str, norms: int, **more: Any) -> dict[str, Any]:
    return {
        "id": kind,
        "name": both(f"the file {kind}", f"文件 {kind}"),
        "file": f"{kind}.onnx",
        "size": 70_000,
        "nodes": 12 + norms,
        "norms": norms,
        "relative_error": 4e-7,
        "same": 480,
        "problem": None,
    } | more


def leaving_part() -> dict[str, Any]:
    refused = {"relative_error": None, "same": None, "problem": "InferenceError: <not> valid"}
    return {
        "config": {"seed": 1, "lr": 3.0, "example": 64, "test": 480},
        "holds": True,
        "dtype": "float32",
        "tolerance": 2e-6,
        "tolerance64": 1e-12,
        "max_error": 9.5e-7,
        "relative_error": 3.1e-7,
        "relative_error_varied": 5e-6,
        "relative_error64": 8e-16,
        "checks": [
            _fold_check("given", "float64", 8e-16),
            _fold_check("given", "float32", 3.1e-7),
            _fold_check("zeros", "float64", 0.0),
            _fold_check("zeros", "float32", 5e-6, passes=False),
            _fold_check("huge", "float64", None, noise=None, note="the original gives NaN"),
        ],
        "layers": [
            {"name": "features.1", "action": "folded", "into": ["features.0"], "reason": ""},
            {"name": "features.4", "action": "refused", "into": [], "reason": "it is shared"},
        ],
        "accuracy": 0.998,
        "accuracy_after": 0.998,
        "same": 480,
        "latencies": [_latency(1, 0.62), _latency(64, 1.2)],
        "export": {
            "files": [_onnx_file("unfolded", 4), _onnx_file("folded", 0, **refused)],
            "engine": "onnx.reference 1.23.2",
            "without": both("ONNX Runtime is not installed", "没有安装 ONNX Runtime"),
        },
    }


def demo_results() -> dict[str, Any]:
    """Build the whole document of `bnkit demo`."""
    return {
        "schema": "bnkit.demo/1",
        "bnkit": "0.1.0.dev0",
        "created": "2026-11-20T18:00:00Z",
        "seconds": 41.2,
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "numpy": "2.4.6",
            "platform": "Linux-x86_64",
            "threads": 2,
        },
        "findings": [
            {"id": key, "text": both(f"The finding about {key}.", f"关于 {key} 的发现。")}
            for key in ("mofan", "twins", "mode", "doctor", "leaving")
        ],
        "mofan": mofan_part(),
        "twins": twins_part(),
        "repairs": repairs_part(),
        "leaving": leaving_part(),
    }


def mofan_results() -> dict[str, Any]:
    """Build the document of `bnkit lab mofan` without the ablation."""
    results = demo_results()
    del results["twins"], results["repairs"], results["leaving"]
    results["schema"] = "bnkit.lab.mofan/1"
    results["findings"] = results["findings"][:1]
    results["mofan"]["ablation"] = None
    return results
