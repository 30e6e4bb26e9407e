"""The page's charts and what is said above them: each function gives a lead and the markup below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.report import charts
from export.report.charts import Bar
from export.report.markup import table, tag, text

Figures = Mapping[str, Any]
Section = tuple[str, ...]

_CLASSES = 20
_LAYERS = 30
_LAYER_WIDTH = 900.0  # layers have long names
NO_CALIBRATION = "No calibration data: no file here was calibrated, or its manifest does not say how."


def percent(value: float) -> str:
    """A figure in [0, 1] as percent; a dash where the split has no such object."""
    return f"{value * 100:.2f}" if value >= 0 else "–"


def points(value: float) -> str:
    """A signed change in points of AP, with a real minus sign."""
    return f"{value:+.2f}".replace("-", "−").replace("−0.00", "±0.00").replace("+0.00", "±0.00")


def _measured(figures: Figures) -> list[Figures]:
    return [file for file in figures["files"] if file["measured"]]


def accuracy(figures: Figures) -> Section:
    """AP of every step from zero, and beside it how much of its budget each file's loss took."""
    reference, files = figures["reference"], _measured(figures)
    kept = [Bar(reference["name"], reference["figures"]["AP"] * 100, percent(reference["figures"]["AP"]), "reference")]
    lost = []
    for file in files:
        ap, change, budget = file["measured"]["figures"]["AP"], file["measured"]["change"], file["budget"]
        kept.append(Bar(file["name"], max(ap, 0) * 100, percent(ap), _kind(file)))
        # A loss with no budget at all is as far over it as the chart shows.
        share = max(-change, 0) / budget if budget else (2.0 if change < 0 else 0.0)
        beyond = f" ({share:.0f}×)" if share > 2 else ""
        lost.append(Bar(file["name"], min(share, 2.0), f"{points(change)} of −{budget:.2f}{beyond}", _kind(file)))
    left = charts.bars("AP of every step", kept, axis="AP in percent, from zero")
    right = charts.bars(
        "Loss of each file against its budget", lost, axis="loss as a share of the budget", limit=1.0, limit_label="budget"
    )
    lead = (
        "Left: AP, averaged over IoU 0.50–0.95. Right: the loss against PyTorch in points; beyond the dashed line a file fails."
    )
    cards = _card("AP", left) + (_card("Loss against budget", right) if lost else "")
    return lead, tag("div", cards, class_="row")


def _kind(file: Figures) -> str:
    return "bad" if file["status"] == "failed" else "plain"


def _card(heading: str, *content: str) -> str:
    return tag("div", tag("h3", text(heading)), *content, class_="card")


def classes(figures: Figures) -> Section:
    """The classes that changed most, a chart per file on one scale; all of them in a table to open."""
    files = _measured(figures)
    before = {name: ap for name, ap in figures["reference"]["per_class"].items() if ap >= 0}
    if not files:
        return ("No file ran to the end.",)
    changes = {file["name"]: {k: (file["measured"]["per_class"][k] - ap) * 100 for k, ap in before.items()} for file in files}
    largest = {name: max(abs(of[name]) for of in changes.values()) for name in before}
    chosen = sorted(
        sorted(before, key=lambda name: -largest[name])[:_CLASSES], key=lambda name: min(of[name] for of in changes.values())
    )
    reach = max([*largest.values(), 0.1])
    cards = []
    for file, of in changes.items():
        rows = [Bar(name, of[name], points(of[name]), "bad" if of[name] < 0 else "good") for name in chosen]
        chart = charts.diverging(f"Change of AP by class, {file}", rows, reach, axis="points of AP: loss ← 0 → gain")
        cards.append(_card(file, chart))
    heading = ("class", figures["reference"]["name"], *(text(name) for name in changes))
    every = [
        [
            text(name),
            percent(ap),
            *(f"{percent(f['measured']['per_class'][name])} ({points(changes[f['name']][name])})" for f in files),
        ]
        for name, ap in before.items()
    ]
    listed = tag(
        "details", tag("summary", f"All {len(before)} classes with objects"), table(heading, every, label="AP by class")
    )
    some = f"The {len(chosen)} classes that changed most" if len(chosen) < len(before) else "All classes"
    return (
        f"{some}, the worst loss first; every chart has the same scale.",
        tag("div", *cards, class_="row"),
        listed,
    )


def _calibrations(figures: Figures) -> Iterator[tuple[str, Figures]]:
    """(file name, what calibration kept of its work) of the files whose manifest holds it."""
    for file in figures["files"]:
        found = ((file["manifest"] or {}).get("details") or {}).get("calibration")
        if isinstance(found, Mapping) and found:
            yield file["name"], found


def sensitivity(figures: Figures) -> Section:
    """How much each layer suffers from quantization, the most sensitive first."""
    cards = []
    for name, found in _calibrations(figures):
        layers = [layer for layer in found.get("sensitivity") or () if layer["snr_db"] is not None]
        kept = dict.fromkeys(found.get("float_layers") or (), "FP32") | dict.fromkeys(found.get("half_layers") or (), "FP16")
        if layers:
            cards += [_sensitivity_card(name, layers, kept)]
    if not cards:
        return (NO_CALIBRATION,)
    lead = "Signal-to-noise ratio of a layer's output when it alone is quantized: a short bar is a sensitive layer."
    return lead, *cards


def _sensitivity_card(name: str, layers: Sequence[Figures], kept: Mapping[str, str]) -> str:
    ordered = sorted(layers, key=lambda layer: layer["snr_db"])
    rows = []
    for layer in ordered[:_LAYERS]:
        drop = layer.get("ap_drop")
        loss = "" if drop is None else f", {points(-drop)} AP"
        where = f", stays {kept[layer['layer']]}" if layer["layer"] in kept else ""
        note = f"{layer['snr_db']:.1f} dB{loss}{where}"
        rows.append(Bar(layer["layer"], layer["snr_db"], note, "reference" if where else "plain"))
    more = f", the {_LAYERS} most sensitive of {len(layers)}" if len(layers) > _LAYERS else ""
    chart = charts.bars(f"Sensitivity of the layers of {name}", rows, axis=f"dB{more}; gray: not quantized", width=_LAYER_WIDTH)
    return _card(name, chart)


def calibration(figures: Figures) -> Section:
    """How ranges were found, and the histogram of any layer."""
    cards = []
    for number, (name, found) in enumerate(_calibrations(figures)):
        images = found.get("images") or ()
        said = [f"method {found['method']}"] if found.get("method") else []
        said += [f"for {found['target']}"] if found.get("target") else []
        said += [f"{len(images)} images" + (f", seed {found['seed']}" if "seed" in found else "")] if images else []
        for key, what in (("float_layers", "FP32"), ("half_layers", "FP16")):
            said += [f"layers kept in {what}: {len(found[key])}"] if found.get(key) else []
        cards.append(
            _card(name, tag("p", text(", ".join(said) or "no particulars"), class_="soft"), _histograms(number, found))
        )
    return (
        ("Where the range of each activation was cut, so that 8 bits are spent on values that occur.", *cards)
        if cards
        else (NO_CALIBRATION,)
    )


def _histograms(number: int, found: Figures) -> str:
    """Every histogram below one another; the page's script leaves one of them visible, chosen by the picker."""
    histograms, ranges = found.get("histograms") or {}, found.get("ranges") or {}
    if not histograms:
        return tag("p", "No histograms were kept.")
    drawn = []
    for tensor, histogram in histograms.items():
        limits = ranges.get(tensor)
        kept = f", range {limits['low']:.4g} to {limits['high']:.4g}" if limits else ""
        caption = tag("figcaption", tag("code", text(tensor)), text(kept))
        drawn.append(tag("figure", charts.histogram(f"Calibration histogram of {tensor}", histogram), caption))
    shown, options = f"histograms-{number}", [tag("option", text(tensor)) for tensor in histograms]
    picker = tag("select", *options, data_shows=shown, aria_label="Layer whose histogram to show")
    return tag("label", "Layer: ", picker, hidden="hidden") + tag("div", *drawn, id=shown)
