"""Characters taken for others, and features of embeddings erased: what is changed is what was asked, and whole runs."""

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sslcli.augment.lookalikes import ALL, COMMON, Lookalikes, _listed, looks, sounds
from sslcli.augment.synonyms import File
from sslcli.augment.words import Text, confuse
from sslcli.data import chance
from sslcli.errors import BadInput
from sslcli.models.text import Text as Network
from tests.conftest import TINY, rows, write_jsonl
from tests.test_augment_text import LONG, part


def test_what_python_knows_of_chinese() -> None:
    """The standard's own counts, and pairs that every reader of Chinese confuses."""
    assert len(_listed(COMMON)) == 3755 and len(_listed(ALL)) == 6763
    for one, other in ("未末", "己已", "已巳", "请诸", "店庙", "房所"):
        assert other in looks(one), (one, other)
    for one, other in ("情晴", "间兼", "环欢", "务误", "服伏"):
        assert other in sounds(one) or one in sounds(other), (one, other)
    assert sounds("龍") == [] and looks("龍") == [] == sounds("a"), "what GB 2312 lacks has none"
    both = Lookalikes(["look", "sound"])("未")
    assert set(both) == {*looks("未"), *sounds("未")} and len(both) == len(set(both)) and "未" not in both


def test_latin_looks() -> None:
    assert "0" in looks("o") and "l" in looks("1") and "rn" in looks("m") and "é" in looks("e") and "É" in looks("E")
    assert all(c not in looks(c) for c in map(chr, range(33, 0x180)))


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_rate_is_of_words_and_one_character_each(rate) -> None:
    text = Text.of(LONG)
    confuse(text, rate, Random(0), lambda c: ["X"] if c == "o" else [])
    assert text.changed / 10_000 == pytest.approx(rate, abs=0.15 * rate)
    moved = [(a, b) for a, b in zip(LONG.split(), text.words, strict=True) if a != b]
    assert len(moved) == text.changed and all(b == a.replace("o", "X") for a, b in moved)
    nothing = Text.of("aaa bbb")
    confuse(nothing, 0.99, Random(0), lambda c: [])
    assert str(nothing) == "aaa bbb" and nothing.changed == 0
    chinese = Text.of("酒店的服务很好，房间也很干净")
    confuse(chinese, 0.99, Random(0), Lookalikes(["sound"]))
    assert len(str(chinese)) == len("酒店的服务很好，房间也很干净") and chinese.changed > 3 and "，" in str(chinese)


def test_confusions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("a\t@ 4\n東\t束\n", encoding="utf-8")
    assert File(path, "confusions")("a") == ["@", "4"] and File(path, "confusions")("東") == ["束"]
    path.write_text("a b\n")
    with pytest.raises(BadInput, match=r"c.tsv:1: expected a word, a tab, and its confusions"):
        part("lookalikes", confusions=str(path))
    with pytest.raises(BadInput, match=r"augment.confusions=.*cannot be read"):
        part("lookalikes", confusions=str(tmp_path / "none"))


def test_what_the_tokenizer_does_not_see_is_not_drawn(words) -> None:
    """This one drops marks and case: `é` is `e` to it."""
    augment = part("lookalikes")
    augment.begin(None, words[False], {"owner": SimpleNamespace(values=np.zeros((1, 1), np.int64))})
    assert "0" in augment.alike("o") and "ö" not in augment.alike("o") and "O" not in augment.alike("o")


def test_features_are_nought_in_all_embeddings_of_a_text(minilm: Path) -> None:
    """Against the plain network with the embeddings' output multiplied by hand; packed and padded alike."""
    torch.manual_seed(0)
    network = Network.load(minilm, None, None).eval()
    mask = torch.arange(9) < torch.tensor([9, 2, 4])[:, None]
    ids = torch.randint(1000, 2000, (3, 9)) * mask
    batch = {"ids": ids, "mask": mask}
    with torch.no_grad():
        plain = network.encode(batch)
        width = network.cut_features()
        augment = part("cutoff", unit="feature", rate=0.25, probability=1.0)
        augment.width = width
        kept = torch.from_numpy(~augment.cut(chance.keys(0, 0, np.arange(3))))
        assert ((~kept).sum(1) == round(0.25 * width)).all() and not torch.equal(kept[0], kept[1])
        assert torch.equal(network.encode(batch), plain), "a batch that names none is read as ever"
        found = network.encode({**batch, "features": kept})
        network.packing = True
        packed = network.encode({**batch, "features": kept})
        network.packing = False
        hook = network.base.embeddings.register_forward_hook(lambda m, i, o: o * kept[:, None])
        expected = network.encode(batch)
        hook.remove()
    assert torch.equal(found, expected) and not torch.allclose(found[mask], plain[mask], atol=0.1)
    assert torch.allclose(packed[mask], expected[mask], atol=1e-4)
    assert torch.equal(network.encode(batch), plain)


@pytest.mark.parametrize("head", ["linear", "contrastive"])
def test_runs_with_features_erased(ssl, labelled: Path, head) -> None:
    words = [f"data.train={labelled}", *TINY, "augment=cutoff", "augment.unit=feature", "augment.rate=0.25", "baseline=false"]
    done = ssl("finetune", *words, f"task.head={head}", "trainer.steps=3", "run.dir=run")
    assert done.code == 0 and "features erased" in done.err, done.err
    receipt = json.loads(Path("run/receipts.json").read_text())["augment"]
    assert 0.25 * 0.3 < receipt["features_erased"] < 0.25 * 0.7 and 0.3 < receipt["changed"] < 0.7 and "no effect" not in done.err
    whole = ssl("finetune", *words, f"task.head={head}", "trainer.steps=3", "run.dir=other", "augment.probability=0")
    weights = [Path(f"{d}/model/model.safetensors").read_bytes() for d in ("run", "other")]
    assert whole.code == 0 and weights[0] != weights[1], "what is erased changes what is learnt"


def test_a_strong_view_may_lack_features(ssl, labelled: Path, tmp_path: Path) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": r["text"]} for r in rows(60)])
    words = [f"data.train={labelled}", *TINY, "objective=uda", f"data.unlabelled={more}", "baseline=false", "trainer.steps=2"]
    strong = ["augment@objective.strong=cutoff", "objective.strong.unit=feature", "objective.strong.rate=0.9", "objective.threshold=0"]
    agreed = []
    for probability in (0, 1):
        done = ssl("finetune", *words, *strong, f"objective.strong.probability={probability}", f"run.dir=run{probability}")
        assert done.code == 0, done.err
        agreed.append(json.loads(Path(f"run{probability}/receipts.json").read_text()))
    assert json.dumps(agreed[0]["moved"]) != json.dumps(agreed[1]["moved"])


def test_runs_with_lookalikes_of_a_file(ssl, labelled: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("".join(f"{c}\tq\n" for c in "abcdefghijklmnop"), encoding="utf-8")
    words = [
        f"data.train={labelled}",
        *TINY,
        "augment=lookalikes",
        f"augment.confusions={path}",
        "augment.probability=1",
        "augment.rate=0.9",
    ]
    done = ssl("finetune", *words, "--preview", "p.txt")
    assert done.code == 0, done.err
    before, after = Path("p.txt").read_text().splitlines()[:2]
    assert after.startswith("  -> ") and after.count("q") >= 3 > before.count("q")
