"""Vectors of texts: pooling, SimCSE and TSDAE against naive ones, similarity and retrieval against hand-made figures, the verbs."""

import json
import math
import re
import shutil
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
from sslcli.objectives.simcse import SimCSE
from sslcli.objectives.tsdae import TSDAE
from tests.conftest import SENTENCES, TINY, rows, write_jsonl
from tests.test_objectives import network

OPTIONS = {"temperature": 0.05, "dropout": 0.1, "pairs": False, "symmetric": False}


@pytest.fixture
def store(tmp_path: Path, words) -> Store:
    """Three sentences a record, as a corpus of pairs with negatives is laid down."""
    return lay(tmp_path / "store", words[False], [SENTENCES[i % 9][0] for i in range(45)], 3)


def lay(folder: Path, tokenizer, texts: list[str], each: int) -> Store:
    folder.mkdir()
    writer = Writer(folder, {"ids": np.uint16}, {"ids"})
    for text in texts:
        ids = [*tokenizer.prefix, *tokenizer.hf(text, add_special_tokens=False)["input_ids"], *tokenizer.suffix]
        writer.append(1, {"ids": np.array([len(ids)])}, ids=np.array(ids))
    writer.meta = {"texts": each}
    writer.finish()
    return Store(folder)


def with_dropout(words, rate: float) -> tuple:
    tokenizer, _ = network(words, "bert")
    torch.manual_seed(0)
    return tokenizer, Text(tokenizer, architecture="bert", layers=2, width=32, heads=2, inner=64, positions=64, dropout=rate)


def naive(anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for i, a in enumerate(anchors):
        near = [math.exp(float(F.cosine_similarity(a, k, dim=0)) / temperature) for k in (*positives, *negatives)]
        total -= math.log(near[i] / sum(near))
    return total / len(anchors)


# SimCSE


def test_two_passes_differ_by_dropout_alone_and_the_loss_is_a_loop(words, store) -> None:
    tokenizer, model = with_dropout(words, 0.3)
    objective = SimCSE(model, tokenizer, **OPTIONS)
    batch = objective.read(store, np.arange(6), chance.keys(0, 0, np.arange(6)))
    assert len(batch["ids"]) == 6 == float(batch["weight"])
    model.train(), objective.train()
    torch.manual_seed(7)
    found = objective(model, batch)
    torch.manual_seed(7)
    twice = {k: batch[k].repeat(2, 1) for k in ("ids", "mask") if k in batch}
    with torch.no_grad():
        first, second = model.pool(model.encode(twice), twice).chunk(2)
    assert not torch.allclose(first, second, atol=1e-3)
    assert float(found.loss) == pytest.approx(naive(first, second, first[:0], 0.05), rel=1e-4)
    assert objective.receipt(None)["sides"]["one_minus_cosine"] > 1e-3


def test_held_out_losses_draw_dropout_alike_and_leave_the_state_alone(words, store) -> None:
    tokenizer, model = with_dropout(words, 0.3)
    objective = SimCSE(model, tokenizer, **OPTIONS).eval()
    model.eval()
    batch = objective.read(store, np.arange(6), chance.keys(0, 0, np.arange(6)))
    before = torch.random.get_rng_state()
    with torch.no_grad():
        a, b = objective(model, batch), objective(model, batch)
    assert float(a.loss) == float(b.loss) and float(a.logs["positive_cosine"]) < 0.9999
    assert torch.equal(before, torch.random.get_rng_state()) and not model.training


def test_a_network_without_dropout_is_found_out(words, store) -> None:
    tokenizer, model = with_dropout(words, 0.0)
    objective = SimCSE(model, tokenizer, **OPTIONS)
    objective(model, objective.read(store, np.arange(6), chance.keys(0, 0, np.arange(6))))
    with pytest.raises(AssertionError, match=r"dropout 0\.1 is not on"):
        objective.receipt(None)


@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs_and_hard_negatives(words, store, symmetric) -> None:
    tokenizer, model = with_dropout(words, 0.0)
    objective = SimCSE(model, tokenizer, **{**OPTIONS, "pairs": True, "symmetric": symmetric}).eval()
    model.eval()
    assert objective.rows(store).count == 15
    batch = objective.read(store, np.array([3, 1, 4]), chance.keys(0, 0, np.array([3, 1, 4])))
    a, b, n = model.pool(model.encode(batch), batch).detach().chunk(3)
    whole = store["ids"].take(np.array([9, 3, 12, 10, 4, 13, 11, 5, 14]))
    for row, ids in zip(batch["ids"], whole, strict=True):
        assert row.tolist()[: len(ids)] == ids.tolist(), "sides of a record stand together, in the order of the rows"
    expected = naive(a, b, n, 0.05)
    expected = (expected + naive(b, a, n[:0], 0.05)) / 2 if symmetric else expected
    assert float(objective(model, batch).loss) == pytest.approx(expected, rel=1e-4)


# TSDAE


def tsdae(words, ratio: float = 0.6, **more) -> tuple:
    tokenizer, model = network(words, "bert")
    return tokenizer, model, TSDAE(model, tokenizer, **{"ratio": ratio, "layers": 1, "heads": 2, "inner": 64, **more}).eval()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.95])
def test_the_share_deleted_is_what_was_asked_and_never_all(words, store, ratio) -> None:
    tokenizer, _, objective = tsdae(words, ratio)
    chosen = np.arange(45)
    batch = objective.read(store, chosen, chance.keys(0, 0, chosen))
    ends = len(tokenizer.prefix) + len(tokenizer.suffix)
    kept = whole = 0
    for i, ids in enumerate(store["ids"].take(chosen)):
        row = batch["ids"][i][batch["mask"][i]] if "mask" in batch else batch["ids"][i]
        row, text = row.tolist(), ids.tolist()
        inner, original = row[len(tokenizer.prefix) : len(row) - len(tokenizer.suffix)], text[1:-1]
        assert len(inner) >= 1 and len(row) == len(inner) + ends
        place = iter(original)
        assert all(token in place for token in inner), "what stays keeps its order"
        kept, whole = kept + len(inner), whole + len(original)
    assert 1 - kept / whole == pytest.approx(ratio, abs=0.06) == pytest.approx(float(batch["deleted"]), abs=0.06)
    targets = batch["target"].tolist()
    assert targets == [t for ids in store["ids"].take(chosen) for t in ids.tolist()[1:]], "the whole text and its end"


@pytest.mark.parametrize("layers", [1, 2])
def test_the_decoder_hears_the_pooled_vector_alone_and_no_later_token(words, store, layers) -> None:
    _, model, objective = tsdae(words, layers=layers)
    batch = objective.read(store, np.arange(4), chance.keys(0, 0, np.arange(4)))
    hidden = model.encode(batch)
    vector = model.pool(hidden, batch)
    gradient = torch.autograd.grad(objective(model, batch).loss, list(model.base.encoder.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradient)
    model.pool = lambda hidden, batch: vector.detach()  # type: ignore[method-assign]
    cut = torch.autograd.grad(objective(model, batch).loss, list(model.base.encoder.parameters()), allow_unused=True)
    assert all(g is None for g in cut), "there is no other way from the encoder to the loss"
    later = batch["asked"].clone()
    later[:, 5:] = 7
    a, b = (objective.decode(model, vector, asked) for asked in (batch["asked"], later))
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-5) and not torch.allclose(a[:, 5:], b[:, 5:], atol=1e-3)
    assert not torch.allclose(a, objective.decode(model, vector.flip(0), batch["asked"]), atol=1e-3)


def test_its_words_are_the_networks(words, store) -> None:
    _, model, objective = tsdae(words)
    assert not any(p.shape == model.embedding.weight.shape for p in objective.parameters())
    batch = objective.read(store, np.arange(4), chance.keys(0, 0, np.arange(4)))
    vector = model.pool(model.encode(batch), batch)
    hidden = objective.decode(model, vector, batch["asked"]).flatten(0, 1)[batch["where"]]
    expected = F.cross_entropy(hidden @ model.embedding.weight.t() + objective.bias, batch["target"])
    assert float(objective(model, batch).loss) == pytest.approx(float(expected), rel=1e-5)


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


# the verbs


def scored_pairs(count: int) -> list[dict]:
    found = []
    for i in range(count):
        a, b = SENTENCES[i % 9], SENTENCES[(i * 4 + 1) % 9]
        found.append({"sentence1": f"{a[0]} {i}", "sentence2": b[0], "score": 5.0 if a[1] == b[1] else 0.5})
    return found


@pytest.mark.parametrize("loss", ["cosent", "mse"])
def test_similarity_is_learnt_and_leaves_a_model_that_pools_so(ssl, tmp_path: Path, loss) -> None:
    write_jsonl(tmp_path / "train.jsonl", scored_pairs(120))
    write_jsonl(tmp_path / "test.jsonl", scored_pairs(60))
    done = ssl(
        "finetune", "task=text_similarity", f"task.loss={loss}", "data.train=train.jsonl", "data.test=test.jsonl", "pooling=max", *TINY,
        "optimizer.lr=3e-3", "trainer.steps=60", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "columns text_a=sentence1, text_b=sentence2, score=score" in done.err
    scores = done.result["test"]
    assert scores["spearman"] > 0.6 and scores["spearman_interval"][0] <= scores["spearman"] <= scores["spearman_interval"][1]
    assert done.result["baseline"]["method"].startswith("TF-IDF") and "spearman" in done.result["baseline"]
    if loss == "mse":
        return
    assert read_pooling(tmp_path / "run" / "model") == "max" and (tmp_path / "run" / "model" / "modules.json").exists()
    line = json.loads(Path("run/predictions.jsonl").read_text().splitlines()[0])
    assert set(line["input"]) == {"text_a", "text_b"} and -1 <= line["prediction"] <= 1
    again = ssl("evaluate", "run=run", "data.test=test.jsonl", "out=again")
    assert again.code == 0 and again.result["test"]["spearman"] == pytest.approx(scores["spearman"], abs=1e-6)
    for form in ("hf", "torch"):
        out = ssl("export", "run=run", f"format={form}", f"out=dist-{form}")
        assert out.code == 0 and out.result["agreement"]["largest_difference"] < 1e-4, out.err
    assert read_pooling(tmp_path / "dist-hf") == "max"
    program = torch.export.load("dist-torch/model.pt2").module()
    assert program(torch.ones(3, 5, dtype=torch.long), torch.ones(3, 5, dtype=torch.long)).shape == (3, 32), "a vector a text"


def test_an_untouched_model_is_scored_without_a_step(ssl, tmp_path: Path, minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    pairs = scored_pairs(40)
    write_jsonl(tmp_path / "test.jsonl", pairs)
    done = ssl(
        "finetune", "task=text_similarity", "task.loss=none", f"from={minilm}", "data.train=test.jsonl", "data.test=test.jsonl",
        "baseline=false", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0 and done.result["train"]["steps"] == 0, done.err
    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    said = [float(F.cosine_similarity(vector(p["sentence1"]), vector(p["sentence2"]), dim=0)) for p in pairs]
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert [x["prediction"] for x in lines] == pytest.approx(said, abs=1e-4)
    assert done.result["test"]["spearman"] == pytest.approx(spearmanr(said, [p["score"] for p in pairs]).statistic, abs=0.01)


def passages(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"id": f"p{i}", "title": "x", "answer": text} for i, (text, _) in enumerate(SENTENCES)])
    kinds = [kind for _, kind in SENTENCES]
    queries = [
        {"query": f"{SENTENCES[i % 9][1]} {i}", "positives": [f"p{j}" for j in range(9) if kinds[j] == SENTENCES[i % 9][1]]}
        for i in range(45)
    ]
    write_jsonl(tmp_path / "train.jsonl", queries)
    write_jsonl(tmp_path / "test.jsonl", queries[:9])


def test_retrieval_is_learnt_and_its_scores_are_those_of_what_is_written(ssl, tmp_path: Path) -> None:
    passages(tmp_path)
    done = ssl(
        "finetune", "task=text_retrieval", "data.train=train.jsonl", "data.test=test.jsonl", "data.gallery=corpus.jsonl", *TINY,
        "optimizer.lr=3e-3", "trainer.steps=60", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "columns passage=answer, id=id" in done.err and "text_a=query, positives=positives" in done.err
    scores = done.result["test"]
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    ranks = []
    for line in lines:
        order = [n["id"] for n in line["nearest"]]
        ranks.append(next(i for i, name in enumerate(order) if name in line["gold"]))
        precision = np.mean([(k + 1) / (r + 1) for k, r in enumerate(i for i, name in enumerate(order) if name in line["gold"])])
        assert line["rank"] == ranks[-1] and line["average_precision"] == pytest.approx(precision, abs=1e-5)
    assert scores["mrr"] == pytest.approx(np.mean([1 / (r + 1) for r in ranks])) and scores["mrr"] > 0.8
    assert scores["recall@1"] == pytest.approx(np.mean([r < 1 for r in ranks])) and {"ndcg@10", "map", "recall@10"} <= set(scores)
    assert "mrr" in done.result["baseline"]
    again = ssl("evaluate", "run=run", "out=again")
    assert again.code == 0 and again.result["test"]["mrr"] == pytest.approx(scores["mrr"])
    assert ssl("export", "run=run", "format=torch", "out=dist").code == 0


def test_positives_may_be_texts_and_negatives_stand_beside(ssl, tmp_path: Path) -> None:
    pairs = [
        {"anchor": f"{kind} {i}", "positive": text, "negative": SENTENCES[(i + 3) % 9][0]} for i, (text, kind) in enumerate(SENTENCES * 5)
    ]
    write_jsonl(tmp_path / "train.jsonl", pairs)
    done = ssl("finetune", "task=text_retrieval", "data.train=train.jsonl", *TINY, "trainer.steps=3", "run.dir=run")
    assert done.code == 0, done.err
    facts = json.loads(Path("run/data.json").read_text())
    assert facts["gallery"]["examples"] == 9, "each passage once"
    assert facts["columns"]["train"] == {"text_a": "anchor", "positives": "positive", "negative": "negative"}


@pytest.mark.parametrize("objective", ["simcse", "tsdae"])
def test_pretraining_says_what_it_did(ssl, corpus: Path, objective) -> None:
    done = ssl(
        "pretrain", f"objective={objective}", f"data.train={corpus}", *TINY, "trainer.steps=4", "trainer.batch_size=16", "run.dir=run"
    )
    assert done.code == 0, done.err
    receipts = json.loads(Path("run/receipts.json").read_text())
    assert receipts["cut"]["texts"] == 0
    if objective == "tsdae":
        assert receipts["deleted"]["measured"] == pytest.approx(0.6, abs=0.05)
    else:
        assert receipts["sides"]["one_minus_cosine"] > 1e-4
        assert json.loads(Path("run/model/config.json").read_text())["hidden_dropout_prob"] == 0.1
    assert receipts["loaded"]["pooling"] == "mean" and read_pooling(Path("run/model")) == "mean"


def test_pairs_are_read_from_their_columns(ssl, tmp_path: Path) -> None:
    records = [{"query": r["text"], "positive": r["text"][::-1], "negative": r["label"]} for r in rows(80)]
    write_jsonl(tmp_path / "pairs.jsonl", records)
    words = ["pretrain", "objective=simcse", "objective.pairs=true", "objective.symmetric=true", "data.train=pairs.jsonl", *TINY]
    done = ssl(*words, "trainer.steps=3", "trainer.batch_size=16", "run.dir=run")
    assert done.code == 0, done.err
    assert "text_a=query, text_b=positive, negative=negative" in done.err
    assert json.loads(Path("run/data.json").read_text())["train"]["documents"] % 3 == 0
    assert ssl("evaluate", "run=run").code == 0
    assert ssl("export", "run=run", "format=torch", "out=dist").code == 0


@pytest.mark.parametrize("objective", ["simcse", "tsdae"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(ssl, corpus: Path, objective) -> None:
    from sslcli.checkpoint import newest

    common = ["pretrain", f"objective={objective}", f"data.train={corpus}", *TINY, "trainer.batch_size=16", "trainer.save_every=3"]
    assert ssl(*common, "trainer.steps=6", "run.dir=whole").code == 0
    assert ssl(*common, "trainer.steps=6", "run.dir=parts").code == 0
    shutil.rmtree("parts/checkpoints/step-00000006")
    for name in ("metrics.json", "receipts.json"):
        Path("parts", name).unlink()
    done = ssl("pretrain", "run.dir=parts", "resume=auto")
    assert done.code == 0 and "resumed after step" in done.err, done.err
    a, b = (newest(Path(run, "checkpoints")).tensors("weights") for run in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


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


BAD = [
    ("a score that is none", {"score": "high"}, r"bad\.jsonl:21: .?score.? is .?high.?; expected a number"),
    ("a score that is true", {"score": True}, r"bad\.jsonl:21: .?score.? is True; expected a number"),
    ("a side that is empty", {"text_b": " "}, r"bad\.jsonl:21: .?text_b.? \(the text_b\) is empty"),
    ("a side that is no text", {"text_a": 3}, r"bad\.jsonl:21: .?text_a.? is a number; expected text"),
    ("a side that is null", {"text_a": None}, r"bad\.jsonl:21: .?text_a.? \(the text_a\) is null"),
]


@pytest.mark.parametrize(("name", "wrong", "expected"), BAD, ids=[b[0] for b in BAD])
def test_bad_pairs_are_told_in_a_line(ssl, tmp_path: Path, name, wrong, expected) -> None:
    records: list[dict] = [{"text_a": f"one {i}", "text_b": f"two {i}", "score": i % 5} for i in range(21)]
    records[20] |= wrong
    write_jsonl(tmp_path / "bad.jsonl", records)
    done = ssl("finetune", "task=text_similarity", "data.train=bad.jsonl", *TINY, "run.dir=run")
    assert done.code == 2 and re.search(expected, done.err), done.err
    assert not Path("run").exists()


def test_passages_that_are_not_there_are_told(ssl, tmp_path: Path) -> None:
    passages(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", [{"query": "cat", "positives": ["p0"]}, {"query": "dog", "positives": ["p99"]}])
    words = ["finetune", "task=text_retrieval", "data.train=train.jsonl", *TINY, "run.dir=run"]
    done = ssl(*words, "data.gallery=corpus.jsonl")
    assert done.code == 2 and "train.jsonl:2: names the passage" in done.err and "p99" in done.err
    (tmp_path / "twice.jsonl").write_text('{"id": 1, "passage": "a"}\n{"id": 1, "passage": "b"}\n')
    done = ssl(*words, "data.gallery=twice.jsonl")
    assert done.code == 2 and "twice.jsonl:2: the passage" in done.err and "stands twice" in done.err
    done = ssl(
        "finetune", "data.train=train.jsonl", "data.gallery=twice.jsonl", *TINY, "data.columns.text=query", "data.columns.label=positives"
    )
    assert done.code == 2 and "data.gallery: means nothing for this task" in done.err
