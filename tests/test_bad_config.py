"""Every kind of broken YAML and override ends in one line that names key or place; exit 2, or 10 where it would run or read something."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.conftest import TINY

OVERRIDES = [
    ("Y1 unknown key", ["optmizer.lr=1"], 2, r"optmizer\.lr: no such key; did you mean optimizer\.lr\?"),
    ("Y1 unknown key at the end", ["trainer.step=1"], 2, r"trainer\.step: no such key; did you mean trainer\.steps\?"),
    ("Y1 a new key", ["+trainer.colour=red"], 2, r"trainer\.colour: no such key"),
    ("Y2 unknown choice", ["model=bert_tny"], 2, r"model=bert_tny: no such model; did you mean bert_tiny\? \(one of .*gpt_small"),
    ("Y2 unknown kind", ["objective.kind=masked_ln"], 2, r"objective\.kind=masked_ln: no such objective; did you mean masked_lm\?"),
    ("Y3 wrong type", ["optimizer.lr=fast"], 2, r"optimizer\.lr=fast: .*number"),
    ("Y3 a group as a value", ["trainer=7"], 2, r"trainer=7: no such trainer"),
    ("Y4 negative", ["optimizer.lr=-1"], 2, r"optimizer\.lr=-1: .*greater than 0"),
    ("Y4 zero", ["trainer.batch_size=0"], 2, r"trainer\.batch_size=0: .*greater than or equal to 1"),
    ("Y4 above one", ["objective=masked_lm", "objective.rate=1.5"], 2, r"objective\.rate=1\.5: .*less than 1"),
    ("Y4 not finite", ["optimizer.lr=inf"], 2, r"optimizer\.lr=inf: .*finite"),
    (
        "Y4 not among the words",
        ["objective=masked_lm", "objective.masking=words"],
        2,
        r"objective\.masking=words: .*'token', 'whole_word' or 'span'",
    ),
    ("Y10 missing key", ["run.dir=${nothing.here}"], 2, r"run\.dir: .*nothing\.here"),
    ("Y10 cycle", ["trainer.steps=${trainer.epochs}", "trainer.epochs=${trainer.steps}"], 2, r"trainer\.\w+|circle"),
    ("Y11 the environment", ["run.dir=${oc.env:HF_TOKEN}"], 10, r"only environment names that begin with SSL_"),
    ("Y11 a resolver that computes", ["run.dir=${eval:1+1}"], 10, r"only \$\{now:\}"),
    ("Y11 a resolver that was cleared", ["run.dir=${oc.decode:abc}"], 10, r"only \$\{now:\}"),
    ("Y12 _target_", ["+optimizer._target_=os.system"], 10, r"optimizer\._target_: a configuration may not name code"),
    ("Y12 _target_ deep", ["+data.columns.x={_target_:pathlib.Path.write_text}"], 10, r"_target_: a configuration may not name code"),
    ("Y12 Hydra itself", ["hydra.job_logging.root.level=10"], 10, r"Hydra itself is not configurable"),
    ("Y12 a callback", ["+hydra.callbacks.x._target_=os.system"], 10, r"Hydra itself is not configurable"),
    ("Y13 mandatory values", ["data=files", "run.dir=???"], 2, r"data\.train: missing"),
    ("Y14 no equals sign", ["optimizer.lr"], 2, r"optimizer\.lr: not an override; write optimizer\.lr=<value>"),
    ("Y14 bad quoting", ["data.train='a"], 2, r"not an override; quote the value"),
    ("Y14 a value with a comma", ["optimizer.lr=1e-3,1e-4"], 2, r"several values; add -m to sweep over them"),
    ("Y14 force-add of what is not there", ["++trainer.colour=red"], 2, r"trainer\.colour: no such key"),
    ("Y14 remove what is not there", ["~nothing"], 2, r"nothing: no such key"),
    ("Y15 a path that is missing", ["data.train=nowhere.txt"], 2, r"data\.train=nowhere\.txt: no such file"),
    ("Y15 a model that is missing", ["from=./nowhere"], 2, r"from=\./nowhere: no such folder"),
    ("Y16 steps and epochs", ["trainer.steps=5", "trainer.epochs=1"], 2, r"steps=5 and epochs=1.* contradict"),
    ("Y16 heads and width", ["model.width=100", "model.heads=3"], 2, r"width=100 is not divisible by heads=3"),
    (
        "Y16 show more than all",
        ["objective=masked_lm", "objective.show_mask=0.9", "objective.show_random=0.2"],
        2,
        r"show_mask=0\.9 and show_random=0\.2 add up",
    ),
    ("Y16 from and model", ["from=./here", "model=bert_tiny"], 2, r"from and model are both given"),
    ("Y16 longer than the model", ["model=bert_tiny", "data.max_length=4096"], 2, r"data\.max_length=4096 is more than the model's 512"),
    ("a misspelt group", ["modle=bert_tiny"], 2, r"modle: no such key; did you mean model\?"),
    ("Y17 a word that is no label", ["data.labels=[true,off]"], 2, r"data\.labels\.0=True: .*string"),
]


@pytest.mark.parametrize(("name", "words", "code", "expected"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_overrides(ssl, tmp_path: Path, corpus: Path, name: str, words: list[str], code: int, expected: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    given = [] if any(w.startswith(("data=", "data.train=")) for w in words) else [f"data.train={corpus}"]
    small = [] if any(w.startswith(("model", "from")) for w in words) else TINY
    done = ssl("pretrain", *given, *small, *(["run.dir=run"] if not any("run.dir" in w for w in words) else []), *words)
    assert done.code == code, done.err
    assert re.search(expected, done.err), f"{done.err}\nis not\n{expected}"
    lines = [line for line in done.err.strip().splitlines() if not line.startswith("training a wordpiece tokenizer")]
    assert all(line.startswith("error: ") for line in lines) and "Traceback" not in done.err
    assert "planted_secret" not in done.err + done.out and not (tmp_path / "run").exists()


FILES = [
    ("Y3 wrong type in a file", "optimizer:\n  lr: fast\n", 2, r"optimizer\.lr=fast: .*\(experiment/mine\.yaml:3\)"),
    ("Y5 tab", "optimizer:\n\tlr: 1\n", 2, r"mine\.yaml:3:1: a tab; indent with spaces"),
    ("Y5 unclosed bracket", "data: {labels: [a, b\n", 2, r"mine\.yaml:\d+:\d+: "),
    ("Y6 duplicate key", "seed: 1\nseed: 2\n", 2, r"mine\.yaml:3: the key seed stands twice \(first in line 2\)"),
    ("Y7 empty", None, 2, r"mine\.yaml: the file is empty"),
    ("Y7 a list", "- a\n- b\n", 2, r"mine\.yaml: holds a sequence; expected keys and values"),
    ("Y8 python tag", "seed: !!python/object/apply:os.system ['true']\n", 10, r"mine\.yaml:2: the tag .*python.* would make an object"),
    ("Y8 a tag of one's own", "seed: !boom 1\n", 10, r"mine\.yaml:2: the tag !boom"),
    (
        "Y9 alias bomb",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdef", "bcdefg", strict=True)),
        2,
        r"mine\.yaml:.*(aliases|values once)",
    ),
    ("Y9 many values", "a: [" + "1," * 30_000 + "1]\n", 2, r"more than 20000 values"),
    ("Y9 depth", "a: " + "[" * 40 + "]" * 40 + "\n", 2, r"nested deeper than 32"),
    ("Y9 large", "a: " + "x" * 1_100_000 + "\n", 2, r"bytes of YAML, more than 1000000"),
    ("Y10 interpolation to nothing", "run:\n  dir: ${nowhere}\n", 2, r"run\.dir: .*nowhere"),
    ("Y11 the environment", "run:\n  dir: ${oc.env:HF_TOKEN}\n", 10, r"only environment names that begin with SSL_"),
    ("Y12 _target_", "optimizer:\n  _target_: os.system\n", 10, r"mine\.yaml:\d: _target_ would name code"),
    ("Y12 _target_ in a list", "data:\n  labels: [{_target_: os.system}]\n", 10, r"mine\.yaml:\d: _target_ would name code"),
    ("Y12 Hydra itself", "hydra:\n  job: {name: x}\n", 10, r"mine\.yaml:2: a file may not configure Hydra"),
    ("Y12 plugins", "plugins: [os]\n", 10, r"plugins: only the command line may name packages"),
    ("Y13 mandatory", "defaults: [override /data: files]\n", 2, r"data\.train: missing"),
    ("Y17 Norway", "data:\n  labels: [yes, no]\n", 2, r"data\.labels\.\d=(True|False).*put it in quotes"),
    ("Y17 octal", "seed: 010\n", 2, r"mine\.yaml:2: 010 is octal in YAML \(8\)"),
    ("Y1 unknown key", "trainer:\n  stepz: 3\n", 2, r"trainer\.stepz.*(did you mean trainer\.steps|not in struct|no such key)"),
    ("not UTF-8", b"run: {dir: caf\xe9}\n", 2, r"mine\.yaml \(byte \d+\): not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "code", "expected"), FILES, ids=[f[0] for f in FILES])
def test_files(ssl, tmp_path: Path, corpus: Path, name: str, content: str | bytes | None, code: int, expected: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    path = tmp_path / "mine" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    head = b"# @package _global_\n"
    path.write_bytes(b"" if content is None else head + (content.encode() if isinstance(content, str) else content))
    since = time.process_time()
    run = [] if "run:" in str(content) else ["run.dir=run"]
    train = [] if "files" in str(content) else [f"data.train={corpus}"]
    done = ssl("pretrain", "--config-dir", tmp_path / "mine", "experiment=mine", *train, *TINY, *run)
    assert time.process_time() - since < 5
    assert done.code == code, done.err
    assert re.search(expected, done.err), f"{done.err}\nis not\n{expected}"
    assert all(line.startswith("error: ") for line in done.err.strip().splitlines()) and "Traceback" not in done.err
    assert "planted_secret" not in done.err + done.out and not (tmp_path / "run").exists()


def test_numbers_in_files_are_typed_by_the_schema(ssl, tmp_path: Path) -> None:
    """`1e-3` is text in YAML 1.1; the signature says that it is a number."""
    path = tmp_path / "mine" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\noptimizer:\n  lr: 1e-3\n")
    (tmp_path / "corpus.txt").write_text("some words\n" * 40)
    done = ssl(
        "pretrain",
        "objective=masked_lm",
        "--config-dir",
        "mine",
        "experiment=mine",
        "data.train=corpus.txt",
        *TINY,
        "trainer.steps=1",
        "trainer.log_every=1",
        "run.dir=run",
    )
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["lr"] == pytest.approx(1e-3)


def test_all_errors_at_once(ssl, corpus: Path) -> None:
    words = ["objective=masked_lm", "optimizer.lr=-1", "trainer.stepz=3", "model.dropout=2", "objective.rate=x", "model=bert_mni"]
    done = ssl("pretrain", f"data.train={corpus}", *words, "run.dir=run")
    assert done.code == 2
    for key in ("optimizer.lr", "trainer.stepz", "model.dropout", "objective.rate", "model=bert_mni"):
        assert sum(key in line for line in done.err.splitlines()) == 1, (key, done.err)


def test_only_allowed_environment_names_are_read_and_none_is_written_down(ssl, tmp_path: Path, corpus: Path, monkeypatch) -> None:
    monkeypatch.setenv("SSL_PLACE", "from-the-environment")
    done = ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=1", "run.dir=${oc.env:SSL_PLACE}")
    assert done.code == 0, done.err
    run = tmp_path / "from-the-environment"
    assert run.is_dir() and "dir: from-the-environment" in (run / "config.yaml").read_text()


def test_a_run_of_a_newer_version_is_refused(ssl, tmp_path: Path, corpus: Path) -> None:
    assert ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=1", "run.dir=run").code == 0
    path = tmp_path / "run" / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99, "ssl": "9.0"}))
    done = ssl("evaluate", "run=run")
    assert done.code == 2 and "written by ssl 9.0" in done.err and "upgrade" in done.err


def test_a_distributed_checkpoint_of_torch_is_never_opened(ssl, tmp_path: Path, labelled: Path) -> None:
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"\x80\x04.")
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"x")
    done = ssl("finetune", "from=dcp", f"data.train={labelled}", "run.dir=run")
    assert done.code == 10 and "is a distributed checkpoint of torch" in done.err and not (tmp_path / "run" / "model").exists()


def test_a_plugin_named_on_the_command_line_brings_an_objective(ssl, tmp_path: Path, corpus: Path, monkeypatch) -> None:
    """One Python file and one YAML: no registry to sign, and files alone cannot switch it on."""
    room = tmp_path / "my_methods" / "objectives"
    room.mkdir(parents=True)
    (room.parent / "__init__.py").write_text("")
    (room / "__init__.py").write_text("")
    (room / "gentle_lm.py").write_text("from sslcli.objectives.masked_lm import MaskedLM\n\n\nclass GentleLM(MaskedLM):\n    pass\n")
    mine = tmp_path / "mine" / "objective"
    mine.mkdir(parents=True)
    (mine / "gentle_lm.yaml").write_text("# a gentle one\nkind: gentle_lm\nrate: 0.1\nmasking: token\nshow_mask: 0.8\nshow_random: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["pretrain", "--config-dir", "mine", "objective=gentle_lm", f"data.train={corpus}", *TINY, "trainer.steps=1"]
    done = ssl(*command, "run.dir=a")
    assert done.code == 2 and "objective.kind=gentle_lm: no such objective" in done.err
    assert ssl(*command, "plugins=[my_methods]", "run.dir=b").code == 0
    assert os.path.exists("b/model/config.json")
