"""Peer: few labels with SetFit, or with logistic regression on the frozen mean-pooled vectors. Arguments: one JSON object."""

import json
import resource
import sys
import time
from typing import Any


def main(method: str, train: str, test: str, model: str, seed: int, steps: int | None) -> dict[str, Any]:
    sets = {name: _read(path) for name, path in (("train", train), ("test", test))}
    names = sorted({row["label"] for row in sets["train"]})
    texts = {name: [row["text"] for row in rows] for name, rows in sets.items()}
    labels = {name: [names.index(row["label"]) for row in rows] for name, rows in sets.items()}
    start = time.monotonic()
    said = (_setfit if method == "setfit" else _frozen)(texts, labels, model, seed, steps)
    right = sum(int(a) == b for a, b in zip(said["labels"], labels["test"], strict=True))
    facts = {k: v for k, v in said.items() if k != "labels"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"accuracy": right / len(labels["test"]), "seconds": time.monotonic() - start, "peak_memory_bytes": peak, **facts}


def _read(path: str) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _setfit(texts: dict[str, Any], labels: dict[str, Any], model: str, seed: int, steps: int | None) -> dict[str, Any]:
    """Its defaults: cosine loss on pairs, 16 a step, 2e-5, then logistic regression. `steps` bounds it where classes are many."""
    import tempfile

    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from transformers import set_seed

    set_seed(seed)
    network = SetFitModel.from_pretrained(model)
    bound: dict[str, Any] = {"max_steps": steps} if steps else {"num_iterations": 20}
    arguments = TrainingArguments(
        tempfile.mkdtemp(), batch_size=16, num_epochs=1, seed=seed, save_strategy="no", report_to="none", show_progress_bar=False, **bound
    )
    trainer = Trainer(network, arguments, train_dataset=Dataset.from_dict({"text": texts["train"], "label": labels["train"]}))
    start = time.monotonic()
    trainer.train()
    return {"train_seconds": time.monotonic() - start, "labels": network.predict(texts["test"])}


def _frozen(texts: dict[str, Any], labels: dict[str, Any], model: str, seed: int, steps: int | None) -> dict[str, Any]:
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    words, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()

    def vectors(rows: list[str]) -> Any:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = torch.empty(len(rows), network.config.hidden_size)
        with torch.inference_mode():
            for first in range(0, len(order), 64):
                part = order[first : first + 64]
                batch = words([rows[i] for i in part], padding=True, truncation=True, max_length=256, return_tensors="pt")
                weight = batch["attention_mask"][..., None].float()
                mean = (network(**batch).last_hidden_state * weight).sum(1) / weight.sum(1)
                found[part] = torch.nn.functional.normalize(mean, dim=-1)
        return found.numpy()

    start = time.monotonic()
    classifier = LogisticRegression(C=10, max_iter=1000).fit(vectors(texts["train"]), labels["train"])
    return {"train_seconds": time.monotonic() - start, "labels": classifier.predict(vectors(texts["test"]))}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
