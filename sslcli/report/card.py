"""`README.md` of a model folder: the model card that the hub shows, from what the run wrote down."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sslcli.calibration import Calibration
from sslcli.errors import printable
from sslcli.report.compare import unpaired
from sslcli.report.figures import Figures
from sslcli.report.record import Record, number
from sslcli.report.sentences import EN
from sslcli.report.words import Words

TAGS = {
    "text_classification": "text-classification",
    "token_classification": "token-classification",
    "image_classification": "image-classification",
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
}
CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
}
LABELS = 100  # that are listed by name


def card(record: Record, name: str, format: str = "hf") -> str:
    """Markdown under the YAML that the hub reads. What is not known (language, licence) is left out."""
    record = replace(record, metrics={k: v for k, v in record.metrics.items() if k != "seeds"})  # the model that leaves is of one seed
    figures, tag = Figures(Words("en"), record), _tag(record)
    top: dict[str, Any] = {"library_name": "transformers"} if format == "hf" else {"library_name": "onnx"} if format == "onnx" else {}
    top |= {"pipeline_tag": tag, "tags": ["self-supervised" if record.verb == "pretrain" else "few-labels", "sslcli"]}
    source = record.config.get("from")
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).exists() and source[0] not in "./":
        top["base_model"] = source
    if record.verb == "finetune" and record.score:
        top["metrics"] = [{"top1": "accuracy"}.get(record.score, record.score)]
    parts = [f"---\n{yaml.safe_dump(top, sort_keys=False, allow_unicode=True)}---", f"# {plain(name)}", *_said(figures)]
    parts += ["## Use", _fenced(_use(tag, format), "python" if format == "hf" else "")]
    parts += _scores(figures) + _made(figures)
    return "\n\n".join(parts) + "\n"


def write(record: Record, folder: Path, name: str, format: str = "hf") -> None:
    (folder / "README.md").write_text(card(record, name, format), encoding="utf-8")


def plain(value: object, limit: int = 300) -> str:
    """A text from outside as Markdown that means nothing but itself: no link, no markup, no end of a table's cell."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", printable(value, limit))


def _fenced(code: str, language: str) -> str:
    """A block of code that cannot end before its end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def _tag(record: Record) -> str:
    pictures = isinstance(record.config.get("data"), dict) and record.config["data"].get("kind") == "image"
    return TAGS.get(record.kind, "image-feature-extraction" if pictures else "feature-extraction")


def _said(figures: Figures) -> list[str]:
    record, key, split = figures.record, figures.record.score, figures.record.split
    kind = plain(record.kind.replace("_", " "))
    start = record.config.get("from")
    origin = f"started from {plain(start)}" if isinstance(start, str) and record.config.get("init") != "random" else "trained from scratch"
    found = [
        f"A network for {kind}, {origin}." if record.verb == "finetune" else f"A network pretrained without labels ({kind}), {origin}."
    ]
    ours = record.value(split, key)
    if key is None or split is None or ours is None:
        return found
    interval = record.interval(split, key)
    span = f" ({EN['interval']} {figures.shown(key, interval[0])} to {figures.shown(key, interval[1])})" if interval else ""
    found.append(f"{figures.words.name(key)} on the {split} data: {plain(figures.shown(key, ours))}{plain(span)}.")
    cheap = record.value("baseline", key)
    if cheap is not None:
        told = unpaired(cheap, record.interval("baseline", key), ours, interval)
        verdict = {"better": "win", "same": "draw", "worse": "lose"}[told.verdict(key)] if told else "draw"
        method = str(record.metrics["baseline"].get("method", "baseline"))
        found.append(plain(EN[verdict].format(method=method, cheap=figures.shown(key, cheap))))
    return found


def _use(tag: str, format: str) -> str:
    if format != "hf":
        return {"onnx": "onnxruntime.InferenceSession(...)"}.get(format, "torch.export.load(...)")
    reader = "AutoImageProcessor" if tag.startswith("image") else "AutoTokenizer"
    model = CLASSES.get(tag, "AutoModel")
    return f'from transformers import {model}, {reader}\n\nreader = {reader}.from_pretrained(".")\nmodel = {model}.from_pretrained(".")'


def _scores(figures: Figures) -> list[str]:
    rows = []
    for split in ("valid", "test", "baseline"):
        part = figures.record.metrics.get(split)
        for key, value in part.items() if isinstance(part, dict) else ():
            if number(value) is not None:
                interval = figures.record.interval(split, key)
                span = f"{figures.shown(key, interval[0])} to {figures.shown(key, interval[1])}" if interval else ""
                rows.append(f"| {plain(split)} | {plain(key)} | {plain(figures.shown(key, value))} | {plain(span)} |")
    return ["## Scores", "\n".join(["| part | score | value | 95 % interval |", "|---|---|---|---|", *rows])] if rows else []


def _made(figures: Figures) -> list[str]:
    record, found = figures.record, []
    labels = record.data.get("labels_in_order")
    if isinstance(labels, list) and labels:
        more = f" and {len(labels) - LABELS:,} more" if len(labels) > LABELS else ""
        found += ["## Labels", ", ".join(plain(label) for label in labels[:LABELS]) + more]
    found += _cuts(record, labels) if isinstance(labels, list) else []
    parts = [(split, facts) for split in ("train", "valid", "test") if isinstance(facts := record.data.get(split), dict)]
    counted = [f"- {split}: {plain(facts.get('documents', facts.get('examples', '')))}" for split, facts in parts]
    found += ["## Data", "Documents or examples of each part:", "\n".join(counted)] if counted else []
    if record.commands:
        found += ["## Made by", _fenced("\n".join(printable(c, 4000) for c in record.commands), "sh")]
    return found


def _cuts(record: Record, labels: list[Any]) -> list[str]:
    """Of several labels, from which probability on each is given: what the code under Use leaves to the reader."""
    cuts = Calibration.load(record.dir / "model", [str(x) for x in labels]).thresholds
    if cuts is None:
        return []
    each = ", ".join(f"{plain(label)} {cut:.3f}" for label, cut in list(zip(labels, cuts, strict=True))[:LABELS])
    why = (
        "They were fitted on held-out examples for the highest macro-F1; the scores above are of them, those of 0.5 everywhere are others."
    )
    return ["## Thresholds", f"A label is given where its probability (a sigmoid) is above: {each}.", why]
