"""Texts changed for training: rates against counts, chance by key alone, mixing against a hand computation, and whole runs."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import yaml

from sslcli import schema
from sslcli.augment import Augment
from sslcli.augment.synonyms import File, Neighbours
from sslcli.augment.words import ROWS, Text, beside, delete, insert, mistype, replace, slip, swap
from sslcli.data import chance
from sslcli.errors import BadInput
from tests.conftest import CONFIGS, TINY, rows, write_jsonl

LONG = " ".join(f"word{i}" for i in range(10_000))
MIXED = "The quick (brown) fox doesn't jump; 南京市长江大桥真的很长，今天天气很好! And state-of-the-art, too."


def names() -> list[str]:
    """Those that need nothing besides (of back-translation: test_back_translation.py)."""
    texts = [(p.stem, p.read_text()) for p in (CONFIGS / "augment").glob("*.yaml")]
    return sorted(name for name, text in texts if "modality: text" in text and "forward: null" not in text)


def part(name: str, **changed: object) -> Augment:
    problems: list[str] = []
    node = {**yaml.safe_load((CONFIGS / "augment" / f"{name}.yaml").read_text()), **changed}
    assert node.pop("modality") == "text"
    made = schema._check_part("augment", Augment, node, (), problems)
    assert not problems, problems
    return made.build()


def test_a_text_is_its_words_and_what_is_between() -> None:
    for text in (MIXED, "", "  ", "!", "one", " a  b\n", "东京"):
        assert str(Text.of(text)) == text
    assert Text.of(MIXED).words[:5] == ["The", "quick", "brown", "fox", "doesn't"]
    assert "长江大桥" in Text.of(MIXED).words and "state-of-the-art" in Text.of(MIXED).words, "Chinese is cut into words"
    text = Text.of("over the lazy dog, which (now) sleeps")
    text.remove(3)
    assert str(text) == "over the lazy, which (now) sleeps"


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_rates_are_what_was_asked(rate) -> None:
    synonyms = {f"word{i}": [f"other{i}"] for i in range(10_000)}.get
    for change in (delete, swap, mistype, replace, insert):
        text = Text.of(LONG)
        change(text, rate, Random(0), *([lambda w: synonyms(w, ())] if change in (replace, insert) else []))
        assert text.changed / 10_000 == pytest.approx(rate, abs=0.15 * rate), change.__name__
    gone, moved, typed, other, more = (Text.of(LONG) for _ in range(5))
    delete(gone, rate, Random(1))
    assert len(gone.words) == 10_000 - gone.changed and set(gone.words) < set(LONG.split())
    swap(moved, rate, Random(1))
    assert sorted(moved.words) == sorted(LONG.split()) and moved.words != LONG.split()
    mistype(typed, rate, Random(1))
    assert sum(a != b for a, b in zip(typed.words, LONG.split(), strict=True)) == typed.changed
    replace(other, rate, Random(1), lambda w: [w.replace("word", "other")])
    assert all(b in (a, a.replace("word", "other")) for a, b in zip(LONG.split(), other.words, strict=True))
    insert(more, rate, Random(1), lambda w: ["new"])
    assert len(more.words) == 10_000 + more.changed and [w for w in more.words if w != "new"] == LONG.split()


def test_something_is_left_and_nothing_breaks() -> None:
    for text in ("", "one", "!", "东", "a b"):
        for seed in range(20):
            for change in (delete, swap, mistype):
                words = Text.of(text)
                change(words, 0.99, Random(seed))
                assert len(words.words) >= min(1, len(Text.of(text).words)) and isinstance(str(words), str)


def test_slips_are_one_slip() -> None:
    assert set(beside("g")) == set("fhtyvb") and beside("1") == "" and set(beside("q")) == set("wa") and len(ROWS) == 3
    for seed in range(300):
        wrong = slip("Keyboard", Random(seed))
        assert abs(len(wrong) - 8) <= 1 and sum(a != b for a, b in zip(wrong, "Keyboard", strict=False)) <= 8
        if len(wrong) == 8:
            apart = [i for i in range(8) if wrong[i] != "Keyboard"[i]]
            assert len(apart) == 1 or (len(apart) == 2 and sorted(wrong) == sorted("Keyboard")), wrong


def test_synonyms_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    path.write_text("Cat\tkitten tomcat\n\ndog\thound\n", encoding="utf-8")
    assert File(path)("CAT") == ["kitten", "tomcat"] and File(path)("cow") == ()
    text = Text.of("Cat and dog")
    replace(text, 0.999, Random(0), File(path))
    assert text.words[0] in ("Kitten", "Tomcat") and text.words[2] == "hound" and text.changed == 2
    path.write_text("cat kitten\n")
    with pytest.raises(BadInput, match=r"s.tsv:1: expected a word, a tab"):
        File(path)
    with pytest.raises(BadInput, match=r"augment.synonyms=.*cannot be read"):
        File(tmp_path / "none")


def test_neighbours_are_the_nearest_embeddings(minilm: Path) -> None:
    from sslcli.data.tokenizer import Tokenizer
    from sslcli.models.text import Text as Network

    words, network = Tokenizer.load(minilm), Network.load(minilm, None, None)
    near = Neighbours(network, words)
    table = near.table.numpy()
    order = np.argsort(-(table @ table[near.ids["money"]]))
    assert list(near("money")) == [w for i in order[:15] if (w := near.words[i]) in near("money")], "in order"
    assert near("money") and "money" not in near("money") and near("qqqqxyz") == () and near("Money") == near("money")


def test_only_the_key_decides(ssl, labelled: Path, words, tmp_path: Path) -> None:
    """A row's change is the same alone and in any batch; another epoch changes it otherwise."""
    for name in names():
        augment, network = part(name), _network(words)
        augment.begin(network, words[False], store := _store(ssl, labelled, tmp_path))
        some, keys = np.arange(12), chance.keys(3, 0, np.arange(12))
        whole = _changed(augment, store, some, keys)
        if name != "mixup":  # whose partner is of the batch
            for i in range(12):
                alone = _changed(augment, store, some[i : i + 1], keys[i : i + 1])
                assert alone[0] == whole[i]
        assert whole == _changed(augment, store, some, keys) != _changed(augment, store, some, chance.keys(3, 1, some))
        assert augment.receipt(3) == augment.receipt(3) != {}


def _store(ssl, labelled: Path, tmp_path: Path):
    from sslcli.data.store import Store

    if not (tmp_path / "kept").exists():
        from sslcli.data import store as stores

        found: list[Path] = []
        built = stores.built
        import sslcli.data.examples as examples

        examples.built = lambda key, make: found.append(built(key, make)) or found[-1]  # type: ignore[assignment]
        try:
            assert ssl("finetune", f"data.train={labelled}", *TINY, "trainer.steps=1", "baseline=false", "run.dir=run").code == 0
        finally:
            examples.built = built
        (tmp_path / "kept").write_text(str(found[0]))
    return Store(Path((tmp_path / "kept").read_text()) / "rows")


def _network(words):
    return type(
        "Network", (), {"decoder": False, "pools_freely": True, "family": "bert", "embedding": torch.nn.Embedding(words[False].size, 8)}
    )()


def _changed(augment, store, some, keys) -> list[list[int]]:
    from sslcli.data.blocks import padded

    ids, mask = padded(store["ids"].take(some), 0)
    batch = augment({"ids": ids, "label": torch.zeros(len(some)), **({} if mask is None else {"mask": mask})}, some, keys)
    if "kept" in batch:
        return [[round(float(x), 5)] for x in batch["kept"]]
    real = batch.get("mask", torch.ones_like(batch["ids"], dtype=torch.bool))
    return [row[m].tolist() for row, m in zip(batch["ids"], real, strict=True)]


def test_cutoff_erases_what_was_asked(words) -> None:
    ids = np.random.default_rng(0).integers(10, 500, (200, 40))
    ids[:, 0], ids[:, -1] = words[False].prefix[0], words[False].suffix[0]
    for unit in ("token", "span"):
        augment = part("cutoff", unit=unit, probability=0.8, rate=0.25)
        augment.tokenizer = words[False]
        gone = augment.erased(ids, np.ones_like(ids, bool), chance.keys(0, 0, np.arange(200)))
        own = ~words[False].special[ids]
        some = gone.any(1)
        assert (gone[some].sum(1) == np.round(0.25 * own[some].sum(1))).all() and not (gone & ~own).any()
        assert some.mean() == pytest.approx(0.8, abs=0.1)
        steps = [np.diff(np.flatnonzero(row[o])).max(initial=1) for row, o in zip(gone, own, strict=True)]
        assert (max(steps) == 1) == (unit == "span")


def test_the_gradient_of_mixup_is_that_of_mixed_labels(ssl, labelled: Path) -> None:
    """Against soft labels, computed by hand on the pooled vectors."""
    from sslcli.tasks.text_classification import TextClassification

    torch.manual_seed(0)

    class Pool(torch.nn.Module):
        family, dim, pools_freely, pooling, loaded = "bert", 6, True, "mean", {"tensors": 0}

        def pack(self) -> bool:
            return False

        def classifier(self, labels: int, layers: int, dropout: float) -> torch.nn.Module:
            return torch.nn.Linear(6, labels)

        def encode(self, batch):
            return batch["hidden"]

        def pool(self, hidden, batch):
            from sslcli.models.text import Text as Network

            return Network.pool(self, hidden, batch)

    facts = {"labelling": "single", "train": {"per_label": {"a": 1, "b": 1, "c": 1}}}
    keys = yaml.safe_load((CONFIGS / "task" / "text_classification.yaml").read_text())
    problems: list[str] = []
    from sslcli.core import Task

    task = schema._check_part("task", Task, keys, (), problems).build(Pool(), type("T", (), {"pad": 0}), ["a", "b", "c"], facts)
    assert isinstance(task, TextClassification) and not problems
    hidden, label = torch.randn(4, 1, 6), torch.tensor([0, 1, 2, 1])
    kept, other = torch.tensor([0.9, 0.5, 1.0, 0.7]), torch.tensor([1, 2, 3, 0])
    layer = next(m for m in task.head.modules() if isinstance(m, torch.nn.Linear))
    task(Pool(), {"hidden": hidden, "ids": label, "label": label, "kept": kept, "other": other}).loss.backward()
    ours = layer.weight.grad.clone()
    vectors = hidden[:, 0]
    mixed = kept[:, None] * vectors + (1 - kept[:, None]) * vectors[other]
    one_hot = torch.nn.functional.one_hot(label, 3).float()
    target = kept[:, None] * one_hot + (1 - kept[:, None]) * one_hot[other]
    p = (mixed @ layer.weight.t() + layer.bias).softmax(-1)
    assert torch.allclose(ours, (p - target).t() @ mixed / 4, atol=1e-6)


@pytest.mark.parametrize("name", names())
def test_runs_are_augmented(ssl, labelled: Path, name) -> None:
    words = [f"data.train={labelled}", *TINY, f"augment={name}", "baseline=false", "trainer.batch_size=16"]
    done = ssl("finetune", *words, "trainer.steps=4", "run.dir=whole")
    assert done.code == 0 and "augment  texts" in done.err, done.err
    assert json.loads(Path("whole/receipts.json").read_text())["augment"]["texts"] > 50
    again = ssl("evaluate", "run=whole", "out=evaluated", f"data.test={labelled}")
    assert again.code == 0, "evaluation sees texts as they are"


def test_pairs_are_shown(ssl, labelled: Path) -> None:
    done = ssl(
        "finetune", f"data.train={labelled}", *TINY, "augment=typos", "augment.rate=0.5", "augment.probability=1", "--preview", "p.txt"
    )
    assert done.code == 0 and "  -> " in done.err and Path("p.txt").read_text().count("  -> ") == 10 and not Path("runs").exists()
    done = ssl("finetune", f"data.train={labelled}", *TINY, "augment=mixup", "--preview", "q.txt")
    assert done.code == 2 and "nothing to show" in done.err


def test_what_does_not_go_together_is_told(ssl, corpus: Path, labelled: Path, tmp_path: Path) -> None:
    tagged = write_jsonl(tmp_path / "t.jsonl", [{"tokens": r["text"].split(), "tags": ["O"] * len(r["text"].split())} for r in rows(30)])
    done = ssl("finetune", "task=token_classification", f"data.train={tagged}", *TINY, "augment=eda")
    assert done.code == 2 and "where they have labels of their own" in done.err
    done = ssl("pretrain", f"data.train={corpus}", *TINY, "augment=eda")
    assert done.code == 2 and "where they have labels of their own" in done.err
    done = ssl("finetune", "data=digits", "augment=eda")
    assert done.code == 2 and "choose both of one modality" in done.err
