"""The report says what metrics.json says, in both languages, and nothing that stands in a run folder can make it do anything."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sslcli.errors import BadInput
from sslcli.report import card, sections
from sslcli.report.compare import between, unpaired
from sslcli.report.page import Page, write
from sslcli.report.record import Record
from sslcli.report.sentences import EN, ZH

MARK = "document.documentElement.setAttribute('pwned',1)"
PAYLOADS = [
    f"<script>{MARK}</script>",
    f"</title><script>{MARK}</script>",
    f"</style><script>{MARK}</script>",
    f"</td></table><script>{MARK}</script>",
    f"<img src=x onerror={MARK}>",
    f'"><img src=x onerror="{MARK}">',
    f"'><svg onload={MARK}>",
    f'" onmouseover="{MARK}" x="',
    f"' autofocus onfocus='{MARK}",
    f"<svg><script>{MARK}</script></svg>",
    f"<svg/onload={MARK}>",
    f"<svg><animate onbegin={MARK} attributeName=x dur=1s>",
    f"<math><mtext><script>{MARK}</script></mtext></math>",
    f"<iframe srcdoc='<script>parent.{MARK}</script>'>",
    f"<iframe src=javascript:parent.{MARK}>",
    f"<object data=javascript:{MARK}>",
    f"<embed src=javascript:{MARK}>",
    f"<a href=javascript:{MARK}>x</a>",
    f"<details open ontoggle={MARK}>",
    f"<body onload={MARK}>",
    f"<video><source onerror={MARK}></video>",
    f"<input autofocus onfocus={MARK}>",
    f"<marquee onstart={MARK}>",
    f"<style>@import 'javascript:{MARK}'</style>",
    "<meta http-equiv=refresh content='0;url=http://evil.example/'>",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "<base href=http://evil.example/>",
    f"<!--><script>{MARK}</script>-->",
    f"&lt;script&gt;{MARK}&lt;/script&gt;<scr\0ipt>",
    f"{{{{constructor.constructor('{MARK}')()}}}}${{{MARK}}}\u202e\ud800",
]
assert len(PAYLOADS) == 30
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "article", "header", "section", "footer", "h1", "h2", "h3", "h4", "p", "b"),
    *("small", "code", "pre", "div", "span", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img"),
    *("data", "details", "summary", "svg", "line", "text", "polyline", "circle", "rect"),
}


class Parsed(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[str, str, str]] = []  # value, where it stands, as text
        self.text: list[str] = []
        self._open: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs) if tag == "data" else None

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._open and self._open.get("data-from"):
            self.numbers.append((str(self._open["value"]), str(self._open["data-from"]), data))
        self._open = None


def make(
    folder: Path, names: list[str], accuracy: float = 0.75, rows: int = 40, cheap: float = 0.4, seed: int = 0, **config: object
) -> Path:
    """A run folder as fine-tuning leaves it; `names` are put wherever a name can stand."""
    folder.mkdir(parents=True)
    right = round(accuracy * rows)
    low_high = [round(accuracy - 0.1, 6), round(accuracy + 0.1, 6)]
    report = {n: {"precision": 0.5, "recall": 0.25, "f1-score": 1 / 3, "support": 7} for n in names}
    metrics = {
        "train": {"steps": 1234, "seconds": 61.5, "examples_per_second": 77.7, "peak_memory_bytes": 123456789},
        "test": {"accuracy": right / rows, "accuracy_interval": low_high, "macro_f1": 0.123456, "report": report, names[0]: 0.5},
        "baseline": {"method": names[-1], "accuracy": cheap, "accuracy_interval": [cheap - 0.1, cheap + 0.1], "majority_accuracy": 0.05},
    }
    data = {
        "train": {"examples": 96, "tokens": 1801, "cut_rows": 0},
        "files": {"train": [{"file": n, "bytes": 5, "sha256": n} for n in names]},
        "labels_in_order": names,
    }
    log = [{"step": i, "loss": 2 / i, **({names[0]: 1.0} if i == 1 else {})} for i in range(1, 40)]
    log += [{"step": 39, "valid": {"accuracy": 0.5, "loss": 0.5}}, {"step": 20, "valid": {"accuracy": 0.4, "loss": 0.9}}]
    predictions = []
    for i in range(rows):
        gold, other = names[i % len(names)], names[(i + 1) % len(names)]
        said = gold if (i + seed) % rows < right else other
        predictions.append({"id": i, "input": names[i % len(names)], "gold": gold, "prediction": said, "probabilities": {said: 0.9}})
    tree = {
        "task": {"kind": "text_classification"},
        "data": {"kind": "text", "train": [n for n in names if "${" not in n]},
        "from": None,
        "seed": 0,
        **config,
    }
    environment = {"ssl": "0", "command": ["/bin/ssl", "finetune", *names], "started": names[0], "packages": {names[0]: names[-1]}}
    for name, value in {"metrics": metrics, "data": data, "environment": environment, "receipts": dict.fromkeys(names, 1)}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
    for name, lines in {"metrics.jsonl": log, "predictions.jsonl": predictions}.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def at(metrics: dict, pointer: str) -> float:
    value: object = metrics
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]  # type: ignore[index]
    return value  # type: ignore[return-value]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_number_is_that_of_metrics_json(tmp_path: Path, language: str) -> None:
    folder = make(tmp_path / "run", ["a/b~c", "cat", "dog"])
    found = Parsed(Page(language=language).html([Record.open(folder)])).numbers
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(found) > 40
    seen = set()
    for value, place, shown in found:
        run, _, pointer = place.rpartition("#")
        true = at(metrics, pointer)
        assert run == str(folder) and float(value) == true
        seen.add(pointer)
        if "%" in shown:
            assert float(shown.rstrip("% ")) == pytest.approx(100 * true, abs=0.05 + 1e-9)
        elif not shown.endswith(("MB", "s", "秒")):
            assert float(shown.replace(",", "")) == pytest.approx(true, rel=1e-3, abs=6e-5)
    assert {"/test/accuracy", "/test/accuracy_interval/0", "/baseline/accuracy", "/test/report/a~1b~0c/recall", "/train/steps"} <= seen


def test_nothing_in_a_run_folder_is_obeyed(tmp_path: Path) -> None:
    folder = make(tmp_path / "<img src=x onerror=alert(1)>", PAYLOADS)
    (folder / "<svg onload=alert(1)>.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"<script>alert(1)</script>")
    records = [Record.open(folder), Record.open(make(tmp_path / "second", PAYLOADS[::-1]))]
    for language in ("en", "zh"):
        for shown in (records[:1], records):
            page = Parsed(Page(language=language).html(shown))
            assert {tag for tag, _ in page.elements} <= TAGS
            for tag, attributes in page.elements:
                assert not {a for a in attributes if a.startswith("on") or a in ("href", "style", "srcdoc", "action")}, (tag, attributes)
                assert tag != "img" or str(attributes["src"]).startswith("data:image/")
            policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
            assert "default-src 'none'" in str(policy) and "script" not in str(policy) and "unsafe" not in str(policy)
            text = "".join(page.text)
            assert "\u202e" not in text and "\0" not in text
            assert all(p[:9] in text for p in PAYLOADS[:28])  # shown, not lost


@pytest.mark.slow
def test_a_browser_runs_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    path = tmp_path / "report.html"
    write([Record.open(make(tmp_path / "run", PAYLOADS))], path, Page(language="en"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]

    def opened(page: Path) -> subprocess.CompletedProcess:
        return subprocess.run([browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)

    (tmp_path / "bare.html").write_text(f"<!doctype html><html><head></head><body>{PAYLOADS[0]}")
    assert " pwned=" in opened(tmp_path / "bare.html").stdout.split("<head>")[0]  # what is not escaped does run
    done = opened(path)
    assert "<main>" in done.stdout and " pwned=" not in done.stdout.split("<head>")[0]
    assert "CONSOLE" not in done.stderr  # neither an error nor a request that the policy refused


def test_both_languages_have_every_sentence() -> None:
    assert EN.keys() == ZH.keys()
    for key, sentence in EN.items():
        fields = {part.split("}")[0] for part in sentence.split("{")[1:]}
        assert fields == {part.split("}")[0] for part in ZH[key].split("{")[1:]}, key


@pytest.mark.parametrize(("accuracy", "cheap", "key"), [(0.9, 0.4, "win"), (0.6, 0.55, "draw"), (0.3, 0.8, "lose")])
def test_it_says_so_when_the_network_does_not_beat_what_is_cheap(tmp_path: Path, accuracy: float, cheap: float, key: str) -> None:
    folder = make(tmp_path / "run", ["cat", "dog", "ship"], accuracy=accuracy, cheap=cheap)
    text = "".join(Parsed(Page(language="en").html([Record.open(folder)])).text)
    said = {k: EN[k].split("{")[0] in text for k in ("win", "draw", "lose")}
    assert said == {k: k == key for k in said}


def test_runs_on_the_same_examples_are_compared_in_pairs(tmp_path: Path) -> None:
    names = ["cat", "dog"]
    one, two, three = (
        Record.open(make(tmp_path / "one", names, 0.5)),
        Record.open(make(tmp_path / "two", names, 0.8)),
        Record.open(make(tmp_path / "three", names, 0.8, rows=50)),
    )
    paired, apart = between(one, two), between(one, three)
    assert paired is not None and paired.paired == 40 and paired.value == pytest.approx(0.3)
    # every example that one had right two had as well: a difference of 12 in 40, as sure as a single share is
    assert 0.15 < paired.low < 0.3 < paired.high < 0.46 and paired.verdict("accuracy") == "better" and paired.verdict("loss") == "worse"
    assert apart is not None and not apart.paired and apart.verdict("accuracy") == "better"
    flat = unpaired(0.5, (0.4, 0.6), 0.6, (0.5, 0.7))
    assert flat is not None and flat.low == pytest.approx(0.1 - 2**0.5 * 0.1) and flat.verdict("accuracy") == "same"
    # scores that are not those of the file at hand are never paired
    (two.dir / "metrics.json").write_text((three.dir / "metrics.json").read_text().replace("0.8", "0.7"))
    again = between(one, Record.open(two.dir))
    assert again is not None and not again.paired
    text = "".join(Parsed(Page(language="en").html([one, three])).text)
    assert "three scores highest" in text and EN["clear"] in text and "unpaired" in text


def test_the_file_stays_small(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", [f"label {i}" for i in range(3000)], rows=6000)
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
    for i in range(4):
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "linked.png").symlink_to(folder / "0.png")
    page = Page(language="en").html([Record.open(folder)])
    assert len(page.encode()) < 5_000_000
    shown = [a["alt"] for t, a in Parsed(page).elements if t == "img"]
    assert "linked.png" not in shown and (len(shown) == 4 or "Left out" in page)
    assert sections._fitting(folder / "0.png", 10) == ("webp", None)


def test_the_card_is_markdown_that_the_hub_reads(tmp_path: Path) -> None:
    text = card.card(
        Record.open(make(tmp_path / "run", ["a|b", *PAYLOADS, "```\n---\nx: 1", "[x](javascript:1)"], **{"from": "org/base"})), "x"
    )
    _, top, rest = text.split("---\n", 2)
    assert yaml.safe_load(top) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["few-labels", "sslcli"],
        "base_model": "org/base",
        "metrics": ["accuracy"],
    }
    prose = "".join(rest.split("\n## Made by")[0].split("```")[::2])
    assert not re.search(r"(?<!\\)[<\[]|(?<!\\)a\|", prose)
    for line in (x for x in prose.splitlines() if x.startswith("| test")):
        assert line.replace("\\|", "").count("|") == 5
    made = rest.split("## Made by\n\n")[1]
    fence = made.split("sh\n")[0]
    assert set(fence) == {"`"} and made.count(fence) == 2 and made.rstrip().endswith(fence)


def test_a_folder_that_is_no_finished_run_is_one_line(tmp_path: Path, ssl) -> None:
    folder = make(tmp_path / "run", ["cat", "dog"])
    (tmp_path / "mine.html").write_text("<p>mine")
    for words, what in (
        (("run=none",), "no such folder"),
        (("run=run", "out=mine.html"), "something else"),
        (("run=run", f"out={tmp_path}"), "is a folder"),
        (("run=[run,run]",), "each once"),
        (("run=run", "report.language=fr"), "report.language=fr"),
    ):
        done = ssl("report", *words)
        assert done.code == 2 and what in done.err, done.err
    assert ssl("report", "run=run").code == 0 and ssl("report", "run=run", "report.language=zh").code == 0  # its own is written over
    assert 'lang="zh-CN"' in (folder / "report.html").read_text()
    make(tmp_path / "other", ["cat", "dog"])
    assert ssl("report", "run=[run,other]").code == 0 and (folder / "comparison.html").is_file()
    assert 'lang="zh-CN"' in (folder / "report.html").read_text(), "a run's own report stays"
    (folder / "metrics.json").write_text("[1")
    assert "not JSON" in ssl("report", "run=run").err
    (folder / "metrics.json").unlink()
    with pytest.raises(BadInput, match=r"no metrics\.json"):
        Record.open(folder)


@pytest.mark.parametrize(
    "metrics", ["{}", '{"test": 3, "baseline": [], "train": "x", "valid": {"loss": NaN}}', '{"test": {"accuracy": "x"}}']
)
def test_odd_values_do_not_stop_a_report(tmp_path: Path, metrics: str) -> None:
    folder = make(tmp_path / "run", ["cat", "dog"])
    (folder / "metrics.json").write_text(metrics)
    (folder / "data.json").write_text('{"train": 3, "files": {"train": 3, "test": [1]}, "labels_in_order": "x"}')
    (folder / "environment.json").write_text('{"command": "x"}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n[1]\n{"step": "x", "valid": 3}\n{"step"')
    (folder / "predictions.jsonl").write_text('{"gold": ["a"], "prediction": ["b"]}\n')
    record = Record.open(folder)
    assert "<main>" in Page(language="zh").html([record]) and card.card(record, "x")
