"""Vectors of texts: pooling, losses and scores against naive ones, distillation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn import functional as F

from sslcli import metrics
from sslcli.data import chance
from sslcli.data.store import Store, Writer
from sslcli.hf.pooling import pooled, read_pooling, write_pooling
from sslcli.losses import cosent, info_nce
from sslcli.models.text import Text
from tests.conftest import SENTENCES, TINY, write_jsonl
from tests.test_objectives import network

# pooling


def test_every_pooling_is_its_definition(words) -> None:
    _, model = network(words, "bert")
    ids, mask = torch.randint(5, 300, (3, 9)), torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    states = model.base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for how in ("mean", "cls", "max", "last", "first_last"):
        model.pooling = how
        batch = {"ids": ids, "mask": mask}
        found = model.pool(model.encode(batch), batch)
        for i, n in enumerate((9, 4, 1)):
            real = states[-1][i, :n]
            expected = {
                "mean": real.mean(0), "cls": real[0], "max": real.amax(0), "last": real[-1],
                "first_last": ((states[1][i, :n] + real) / 2).mean(0),
            }[how]  # fmt: skip
            assert torch.allclose(found[i], expected, atol=1e-5), how
    assert torch.allclose(pooled(states[-1], None, "mean"), states[-1].mean(1))


def test_packing_pools_the_first_layer_too(words) -> None:
    _, model = network(words, "bert")
    model.pooling = "first_last"
    ids, mask = torch.randint(5, 300, (8, 20)), torch.arange(20) < torch.tensor([20, 3, 5, 4, 9, 2, 6, 7])[:, None]
    found = []
    for packs in (False, True):
        model.packing = packs
        batch = {"ids": ids, "mask": mask}
        found.append(model.pool(model.encode(batch), batch))
    assert torch.allclose(*found, atol=1e-5)


def test_what_sentence_transformers_says_is_read_and_written(tmp_path: Path) -> None:
    for how, mode in (("cls", "cls_token"), ("mean", "mean_tokens"), ("max", "max_tokens"), ("last", "lasttoken")):
        write_pooling(tmp_path, how, 32, 128, True)
        said = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
        assert said["word_embedding_dimension"] == 32
        assert [k for k, v in said.items() if v is True and "mode" in k] == [f"pooling_mode_{mode}"]
        assert read_pooling(tmp_path) == how
        parts = json.loads((tmp_path / "modules.json").read_text())
        assert [(p["path"], p["type"].rsplit(".", 1)[-1]) for p in parts] == [("", "Transformer"), ("1_Pooling", "Pooling")]
        assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 128
    for said, expected in (({"pooling_mode": "lasttoken"}, "last"), ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean")):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
        assert read_pooling(tmp_path) == expected
    for said in ({"pooling_mode_weightedmean_tokens": True}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {}, []):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
        with pytest.raises(Exception, match="1_Pooling"):
            read_pooling(tmp_path)


# scores and losses


def test_cosent_is_a_loop() -> None:
    torch.manual_seed(0)
    similarity, score = torch.rand(7), torch.tensor([1.0, 3.0, 3.0, 2.0, 5.0, 0.0, 2.0])
    total = 1.0
    for i in range(7):
        for j in range(7):
            if score[i] < score[j]:
                total += math.exp(20 * float(similarity[i] - similarity[j]))
    assert float(cosent(similarity, score, 20.0)) == pytest.approx(math.log(total), rel=1e-5)
    assert float(cosent(similarity, torch.ones(7), 20.0)) == 0


def test_what_belongs_to_a_query_too_is_no_negative() -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    also = torch.zeros(4, 4, dtype=torch.bool)
    also[0, 2] = also[1, 1] = True
    total = 0.0
    for i in range(4):
        left = [j for j in range(4) if j == i or not also[i, j]]
        logits = (a[i] @ b[left].t()) / 0.1
        total += float(logits.logsumexp(0) - logits[left.index(i)])
    assert float(info_nce(a, b, 0.1, also=also)) == pytest.approx(total / 4, rel=1e-5)


def test_correlations_are_scipys_and_their_intervals_hold_them() -> None:
    random = np.random.default_rng(0)
    gold = random.integers(0, 6, 200).astype(float)
    said = gold + random.normal(0, 2, 200)
    scores = metrics.similarity(gold, said)
    assert scores["spearman"] == pytest.approx(spearmanr(gold, said).statistic)
    assert scores["pearson"] == pytest.approx(pearsonr(gold, said).statistic)
    drawn = [spearmanr(gold[i], said[i]).statistic for i in (random.integers(0, 200, 200) for _ in range(400))]
    assert scores["spearman_interval"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    assert metrics.similarity([1, 1, 1], [0.1, 0.2, 0.3])["spearman"] == 0.0


def test_ndcg_by_hand() -> None:
    found = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    gain = metrics.ndcg(found, [2, 3, 1], 10)
    best = 1 + 1 / math.log2(3)
    assert gain[0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert gain[1] == pytest.approx(best / (best + 1 / 2)) and gain[2] == 0
    assert metrics.ndcg(found, [2, 3, 1], 1).tolist() == [0, 1, 0]
    assert metrics.mean("mrr", [1, 0.5, 0.25])["mrr"] == pytest.approx(1.75 / 3)


# distillation


@pytest.fixture
def teacher(tmp_path: Path, words) -> Path:
    """A network of another width with another tokenizer: bytes, where the student has word pieces."""
    torch.manual_seed(3)
    tokenizer = words[True]
    sizes = {"layers": 1, "width": 48, "heads": 2, "inner": 64, "positions": 64, "dropout": 0.1}
    Text(tokenizer, architecture="gpt2", **sizes).base.save_pretrained(tmp_path / "teacher")
    tokenizer.save(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.parametrize("loss", ["mse", "cosine", "relational"])
def test_what_is_learnt_are_the_teachers_vectors_of_the_texts_themselves(words, teacher, tmp_path: Path, loss) -> None:
    from transformers import AutoModel

    from sslcli.objectives.distill import Distill

    tokenizer, model = network(words, "bert")
    objective = Distill(model, tokenizer, teacher=str(teacher), loss=loss, length=64).eval()
    texts = [SENTENCES[i][0].upper() + "  !" for i in range(6)]  # what word pieces in lower case no longer know
    folder = tmp_path / "texts"
    folder.mkdir()
    writer = Writer(folder, {"ids": np.uint16, "text": np.uint8}, {"ids", "text"})
    for text in texts:
        ids, coded = np.array(tokenizer.hf(text)["input_ids"]), np.frombuffer(text.encode(), np.uint8)
        writer.append(1, {"ids": np.array([len(ids)]), "text": np.array([len(coded)])}, ids=ids, text=coded)
    writer.finish()
    batch = objective.read(Store(folder), np.arange(6), chance.keys(0, 0, np.arange(6)))
    plain = AutoModel.from_pretrained(teacher).eval()
    with torch.no_grad():
        goal = torch.stack([plain(**words[True].hf(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts])
        ours = model.pool(model.encode(batch), batch)
        if objective.project is not None:
            ours = objective.project(ours)
    if loss == "relational":
        pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
        near = [[float(F.cosine_similarity(v[i], v[j], dim=0)) for i, j in pairs] for v in (ours, goal)]
        expected = float(np.mean([(a - b) ** 2 for a, b in zip(*near, strict=True)]))
    else:
        expected = float(F.mse_loss(ours, goal) if loss == "mse" else 1 - F.cosine_similarity(ours, goal, dim=-1).mean())
    output = objective(model, batch)
    assert float(output.loss) == pytest.approx(expected, rel=1e-3)
    output.loss.backward()
    assert all(p.grad is None for p in objective.teacher.network.parameters())
    assert not any("teacher" in name for name in (*objective.state_dict(), *dict(objective.named_parameters())))
    objective.receipt(None)
    with torch.no_grad():
        next(objective.teacher.network.parameters()).add_(1)
    with pytest.raises(AssertionError, match="have moved"):
        objective.receipt(None)


def test_a_student_comes_near_its_teacher_and_pairs_are_watched(ssl, corpus: Path, teacher, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sts.jsonl", scored_pairs(30))
    words = ["pretrain", "objective=distill", f"data.train={corpus}", "data.pairs=sts.jsonl", *TINY, "optimizer.lr=3e-3"]
    done = ssl(*words, f"objective.teacher={teacher}", "trainer.steps=40", "trainer.eval_every=10", "run.dir=run")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    watched, near = ([line["valid"][key] for line in lines if "valid" in line] for key in ("spearman", "teacher_cosine"))
    assert near[-1] > near[0] + 0.05, near
    assert len(watched) == 4 and done.result["train"]["best_step"] == 10 * (1 + int(np.argmax(watched)))
    scores = done.result["valid"]
    assert scores["spearman"] == pytest.approx(max(watched), abs=0.02) and scores["pairs"] == 30
    receipt = json.loads(Path("run/receipts.json").read_text())["teacher"]
    assert receipt["parameters"] > 10_000 and receipt["pooling"] == "last"
    assert not any("teacher" in n for n in names_of(Path("run/checkpoints")))
    done = ssl(*words, "objective.teacher=nowhere/at/all", "trainer.steps=2", "run.dir=other")
    assert done.code == 2 and "objective.teacher=nowhere/at/all: no such folder" in done.err
    done = ssl(*words, "trainer.steps=2", "run.dir=other")
    assert done.code == 2 and "objective.teacher" in done.err


def names_of(root: Path) -> list[str]:
    from sslcli.checkpoint import newest

    found = newest(root)
    assert found is not None
    return [name for file in ("weights", "moments", "buffers") for name in found.tensors(file)]


def scored_pairs(count: int) -> list[dict]:
    found = []
    for i in range(count):
        a, b = SENTENCES[i % 9], SENTENCES[(i * 4 + 1) % 9]
        found.append({"sentence1": f"{a[0]} {i}", "sentence2": b[0], "score": 5.0 if a[1] == b[1] else 0.5})
    return found


def test_pooling_goes_with_the_model(ssl, labelled: Path, corpus: Path, tmp_path: Path) -> None:
    base = ["data.train=" + str(corpus), *TINY, "trainer.steps=2", "trainer.batch_size=16"]
    assert ssl("pretrain", "objective=simcse", *base, "pooling=cls", "run.dir=run").code == 0
    done = ssl("finetune", "from=run", f"data.train={labelled}", "trainer.steps=3", "run.dir=task")
    assert done.code == 0, done.err
    assert json.loads(Path("task/receipts.json").read_text())["loaded"]["pooling"] == "cls"
    assert not Path("task/model/modules.json").exists(), "a classifier is no model of vectors"
    out = ssl("export", "run=task", "format=hf", "out=dist")
    assert out.code == 0 and out.result["agreement"]["labels_that_differ"] == 0, out.err
    done = ssl("finetune", "from=run", f"data.train={labelled}", "pooling=max", "run.dir=other")
    assert done.code == 2 and "pooling=max" in done.err and "use mean or cls" in done.err
    done = ssl("pretrain", "objective=masked_lm", *base, "pooling=first_last", "run.dir=third")
    assert done.code == 2 and "pooling=first_last" in done.err
