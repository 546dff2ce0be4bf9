"""Text: tokenizers, encoders and decoders of transformers."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sslcli.augment import Augment
from sslcli.augment.text import TextAugment, refuse_rows
from sslcli.build import check_loaded
from sslcli.core import Batch, Objective
from sslcli.data import corpus, examples
from sslcli.data.pairs import PairCoder
from sslcli.data.store import Store, built
from sslcli.data.text import Prepared, TextData, texts
from sslcli.data.tokenizer import Recipe, Tokenizer, sample
from sslcli.errors import BadCheckpoint, BadInput
from sslcli.evidence.pairs import PairWatch, transfer
from sslcli.evidence.texts import Compared, labels_beside
from sslcli.hf.folder import model_folder
from sslcli.hf.graph import Graph, text_graph
from sslcli.hf.heads import AUTO, VocabularyHead, assemble
from sslcli.hf.pooling import read_pooling, write_pooling
from sslcli.modality import Modality, Start
from sslcli.models.text import Text as Network
from sslcli.schema import Part

PREVIEWED = 10  # texts
LOOKED, MANY_UNKNOWN = 200_000, 10  # tokens of a split that are looked at for [UNK]; per cent of them that are worth a warning


class Text(TextData, Modality):
    _scored: Store | None = None  # pairs that are watched

    def start(
        self, first: Start, model: Part | None, tokenizer: Part[Recipe] | None, augment: Part[Augment] | None, say: Callable[[str], None]
    ) -> tuple[Tokenizer, Network]:
        if augment is not None:
            refuse_rows(first.columns)
        if first.source is not None and model is not None:
            raise BadInput("model: from= brings its own model; leave model= out")
        words = self._tokenizer(first, model, tokenizer, say)
        words = words.for_words() if "tokens" in first.columns else words
        if first.pooling == "first_last" and first.head is not None:
            raise BadInput("pooling=first_last: is for vectors of texts (simcse, text_similarity, ...), not beside a head; use mean or cls")
        torch.manual_seed(first.seed)
        if first.source is None:
            if model is None:
                raise BadInput("model: nothing to start from; give from=<run, folder or hub name>, or model=<name> to train from scratch")
            chosen = model if first.dropout is None else Part(model.path, model.cls, {**model.config, "dropout": first.dropout})
            network: Network = chosen.build(words)
            network.pooling = first.pooling or network.pooling
        else:
            network = Network.load(model_folder(first.source), first.head, first.dropout, first.random, pooling=first.pooling)
            check_loaded(network.loaded, first.source, first.random)
            if first.beside is not None and not first.random:
                network.lend(model_folder(first.source), first.beside)
        rows = len(network.base.get_input_embeddings().weight)
        if words.size > rows:
            raise BadCheckpoint(
                f"from={first.source}: its tokenizer has {words.size:,} tokens, its model only {rows:,}; they do not belong together"
            )
        network.loaded["pooling"] = network.pooling
        words.length = self._length(network, first.length)
        words.augment, words.say = augment.build() if augment is not None else None, say
        return words, network

    def _tokenizer(self, first: Start, model: Part | None, recipe: Part[Recipe] | None, say: Callable[[str], None]) -> Tokenizer:
        """The pretrained model's own, or one trained on the training text (kept, so that a second run finds it)."""
        if first.source is not None:
            return Tokenizer.load(model_folder(first.source))
        if recipe is None:
            raise BadInput("tokenizer: choose one with tokenizer=<name>")
        decoder = bool(model and model.config.get("architecture") == "gpt2")
        reader = self.reader("train", first.columns)
        assert reader is not None
        key = {
            "kind": "tokenizer",
            "files": reader.source.fingerprint(),
            "columns": reader.columns,
            "reading": [self.encoding, self.delimiter, self.on_bad_record, self.allow_empty],
            "recipe": recipe.config,
            "decoder": decoder,
        }

        def make(making: Path) -> None:
            kind = Recipe.settled(recipe.config["kind"], decoder)
            say(f"training a {kind} tokenizer of {recipe.config['vocabulary']:,} tokens on the corpus")
            chosen = sample(text for _, _, example in reader for text in texts(example))
            reader.finish()
            recipe.build().train(chosen, decoder).save(making)

        return Tokenizer.load(built(key, make))

    def _length(self, network: Network, default: int) -> int:
        """Tokens of a row: what the user asked, within what the model can place."""
        if self.max_length is not None and self.max_length > network.positions:
            raise BadInput(f"data.max_length={self.max_length} is more than the model's {network.positions} positions; lower it")
        return min(self.max_length or default, network.positions)

    def changing(self, processor: Tokenizer, model: Any, store: Store) -> TextAugment | None:
        if processor.augment is not None:
            processor.augment.begin(model, processor, store)
        return processor.augment

    def preview(self, path: Path, processor: Tokenizer, store: Store) -> str:
        """Pairs of a text and what becomes of it, on the screen and in a file."""
        if processor.augment is None:
            raise BadInput("--preview: nothing changes a text here; choose an augmentation with augment=<name>")
        rows = np.linspace(0, store.count - 1, min(PREVIEWED, store.count)).astype(np.int64)
        pairs = processor.augment.pairs(self.seed, rows.tolist())
        if not pairs:
            raise BadInput("--preview: this augmentation changes vectors, not texts: there is nothing to show")
        said = "\n".join(f"{before}\n  -> {after if after != before else '(as it is)'}" for before, after in pairs)
        path.write_text(said + "\n", encoding="utf-8")
        return said

    def corpus(self, processor: Tokenizer, progress: Callable[[int], None], only: str | None = None) -> Prepared:
        prepared = _counted(corpus.prepare(self, processor, progress, only), processor)
        if self.pairs is not None and only is None:
            scored = examples.prepare(self, PairCoder(), processor, processor.length, only="pairs")
            self._scored = scored.stores["pairs"]
            prepared.facts |= {"pairs": scored.facts["pairs"]}
            prepared.facts["columns"] |= scored.facts["columns"]
            prepared.facts["files"] |= scored.facts["files"]
            prepared.bad += scored.bad
        return prepared

    def beside(self, processor: Tokenizer, second: type[Objective], augment: None) -> Tokenizer:
        words = copy.copy(processor)
        words.length, words.augment = min(self.max_length or second.row_length, processor.length), None
        return words

    def examples(self, coder: Any, processor: Tokenizer, labels: list[str] | None = None, only: str | None = None) -> Prepared:
        return _counted(examples.prepare(self, coder, processor, processor.length, labels, only), processor)

    def remarks(self, counted: Mapping[str, int]) -> Iterator[str]:
        if (percent := counted.get("percent_unknown", 0)) > MANY_UNKNOWN:
            what = f"{percent} % of the tokens are unknown to this tokenizer ([UNK]), which was made for other text"
            yield f"{what}; take a model of this language with from=, or train a tokenizer on your own texts (from scratch)"

    def reopen(self, folder: Path, goal: Part[Any], length: int, augment: None, native: bool = True) -> tuple[Tokenizer, Network]:
        words = Tokenizer.load(model_folder(str(folder)))
        words.length = length
        return words, Network.load(folder / "model", goal.cls.starts_from(goal.config), None, native=native)

    def save(
        self, folder: Path, model: Network, head: nn.Module | None, processor: Tokenizer, labels: Sequence[str] | None, multi: bool
    ) -> None:
        assemble(model.base, head, list(labels) if labels else None, multi, model.pooling).save_pretrained(folder)
        processor.save(folder)
        write_pooling(folder, model.pooling, model.dim, processor.length, head is None or isinstance(head, VocabularyHead))

    def shown(self, batch: Batch, processor: Tokenizer, labels: Sequence[str]) -> str:
        """Tokens, and what the network should say of them: the label, the labels, or a tag at every first subword."""
        real = batch["mask"][0] if "mask" in batch else slice(None)
        tokens = processor.hf.convert_ids_to_tokens(batch["ids"][0][real].tolist())
        if "label" not in batch:
            return " ".join(tokens)
        label = batch["label"][0]
        if not label.ndim:
            return f"{' '.join(tokens)} -> {labels[int(label)]}"
        if "word" in batch:  # a label a token
            return " ".join(t if y < 0 else f"{t}/{labels[y]}" for t, y in zip(tokens, label[real].tolist(), strict=True))
        return f"{' '.join(tokens)} -> {', '.join(labels[i] for i in label.nonzero().flatten().tolist()) or 'no label'}"

    def watch(self, processor: Tokenizer, valid: Store | None, train: Store) -> PairWatch | None:
        return PairWatch(self._scored, int(processor.pad or 0)) if self._scored is not None else None

    def compared(
        self, processor: Tokenizer, stores: Mapping[str, Store], labelled: Modality | None, most: int
    ) -> Callable[[Any], dict[str, float]]:
        scored = PairWatch(self._scored, int(processor.pad or 0)) if self._scored is not None else None
        found = labels_beside(cast(TextData, labelled or self), labelled is None)
        return Compared(processor, stores["train"], found, scored, most)

    def transfer(self, model: Any, processor: Tokenizer, train: Store, test: Store) -> dict[str, Any]:
        return transfer(model, self._scored, int(processor.pad or 0)) if self._scored is not None else {}

    def graph(self, folder: Path, kind: str | None, longest: int, module: nn.Module | None = None) -> Graph:
        return text_graph(folder, AUTO.get(kind or ""), longest, read_pooling(folder) if kind == "embedding" else None, module)

    def sample(
        self, run: Path, count: int, processor: Tokenizer, coder: Any
    ) -> Iterator[tuple[Batch, tuple[Tensor, ...], list[Mapping[str, Any]]]]:
        """The exported tokenizer's reading of what the run was scored on, or of its own corpus, 16 at a time."""
        rows = self._recorded(run, count, coder)
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            inputs = [row["input"]["text_a"] if isinstance(row["input"], dict) else row["input"] for row in part]
            words = bool(inputs) and isinstance(inputs[0], list)
            coded = processor.hf(
                inputs, is_split_into_words=words, truncation=True, max_length=processor.length, padding=True, return_tensors="pt"
            )
            batch = {"ids": coded["input_ids"], "mask": coded["attention_mask"].bool()}
            whole = [len(ids) <= processor.length for ids in processor.hf(inputs, is_split_into_words=words)["input_ids"]]
            kept = [row if fits else {"input": row["input"]} for row, fits in zip(part, whole, strict=True)]
            yield batch, (batch["ids"], coded["attention_mask"]), kept

    def _recorded(self, run: Path, count: int, coder: Any) -> list[Any]:
        path = run / "predictions.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as file:
                return [json.loads(line) for _, line in zip(range(count), file, strict=False)]
        columns = coder.columns if coder else self.corpus_roles
        reader = self.reader("train", columns)
        assert reader is not None
        return [{"input": example[columns[0]]} for _, (_, _, example) in zip(range(count), reader, strict=False)]


def _counted(prepared: Prepared, tokenizer: Tokenizer) -> Prepared:
    """With how many per cent of the first tokens of each split are [UNK], where a tokenizer has such a token."""
    for split, store in prepared.stores.items() if tokenizer.unknown is not None else ():
        if split in prepared.facts and "ids" in store:
            unknown = store["ids"].values[:LOOKED] == tokenizer.unknown
            prepared.facts[split]["counted"] = {"percent_unknown": round(100 * float(unknown.mean())) if unknown.size else 0}
    return prepared
