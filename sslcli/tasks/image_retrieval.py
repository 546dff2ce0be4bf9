"""Image retrieval: a descriptor a picture, learnt from classes, and what it finds in a gallery."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli import metrics
from sslcli.core import Backbone, Batch, Output, Places, Prediction, Task, gathered
from sslcli.data.examples import examples_of
from sslcli.data.labels import LabelCoder
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.errors import BadInput
from sslcli.frozen import CERTAIN, best_ridge, labelled, only_last, rounding, vectors
from sslcli.losses import supervised_contrastive

PROBED = 10_000  # rows that the head's start is solved on
STEADY = 0.01  # of the mean variance, added to each before it is divided by
CLASSES = 200  # that the ridge of the learnt whitening is chosen on
SHOWN = 10  # neighbours that are written down
ALPHA, MARGIN = 32.0, 0.1  # of Proxy-Anchor, as its paper has them


class ImageRetrieval(Task):
    """`loss`: normface (softmax over cosines to a proxy a class, Wang et al. 2017), proxy_anchor (Kim et al. 2020), supcon (InfoNCE in
    which all pictures of a class are positives, Khosla et al. 2020), or none (the pretrained network as it is, whitened).

    `whitening` of descriptors by the gallery's principal components (Jegou and Chum 2012). Without a gallery every picture is looked
    for among the others of its own set. `look` must come before `predict`.
    """

    metric, classifies = "map", False
    batch_size = 128
    head: "_Descriptor"

    def __init__(
        self,
        model: Any,
        processor: Pixels,
        labels: Sequence[str],
        facts: Mapping[str, Any],
        *,
        loss: Literal["normface", "proxy_anchor", "supcon", "none"],
        dimensions: Annotated[int, Field(ge=2)] | None,
        tune: Literal["full"] | Annotated[int, Field(ge=0)],
        start: Literal["probe", "random"],
        temperature: Annotated[float, Field(gt=0)],
        whitening: bool,
    ):
        super().__init__()
        self.loss, self.start, self.temperature, self.whitening, self.processor = loss, start, temperature, whitening, processor
        self.couples_rows = loss in ("proxy_anchor", "supcon")  # type: ignore[misc]
        self.least = 2 if self.couples_rows else 1  # type: ignore[misc]
        width = dimensions or model.dim
        self.head = _Descriptor(model.dim, width)
        with_proxies = loss in ("normface", "proxy_anchor")
        self.proxies = nn.Parameter(F.normalize(torch.randn(len(labels), width), dim=-1)) if with_proxies else None
        if loss == "none":
            self.head.requires_grad_(False)
        self._still = only_last(model, 0 if loss == "none" else int(tune)) if loss == "none" or tune != "full" else []
        self.gallery: Store | None = None
        self._index: _Index | None = None

    @staticmethod
    def coder(config: Mapping[str, Any]) -> LabelCoder:
        return LabelCoder("single", "image", unseen=True)

    def rows(self, store: Store) -> Places:
        return Places(store.count, None, self.processor.width)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        label = torch.from_numpy(np.array(store["label"].values[rows, 0], np.int64))
        return {**self.processor.read(store, rows, keys), "label": label, "row": torch.from_numpy(np.asarray(rows, np.int64))}

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        """What an export gives: descriptors before they are brought to unit length, and unwhitened, [B, dimensions]."""
        return self.head(model.pool(model.encode(batch), batch)).float()

    def descriptors(self, model: Backbone, pixels: Tensor) -> Tensor:
        """Of normalised pixels: unit vectors [B, dimensions]."""
        batch = {"pixels": pixels}
        return F.normalize(self.head(model.pool(model.encode(batch), batch)).float(), dim=-1)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        """All views of a size are descriptors of their own."""
        views = self.processor.views(batch) if self.training else [self.processor.plain(batch["pixels"])]
        for module in self._still if self.training else []:
            module.eval()
        views = [v for v in views if v.shape == views[0].shape]
        found, label = self.descriptors(model, torch.cat(views)), batch["label"].repeat(len(views))
        if self.loss == "supcon":
            everyone, first = gathered(found)
            return Output(supervised_contrastive(found, label, everyone, gathered(label)[0], self.temperature, first)[0])
        if self.proxies is None:
            return Output(found.new_zeros(()))
        cosine = found @ F.normalize(self.proxies.float(), dim=-1).t()
        loss = F.cross_entropy(cosine / self.temperature, label) if self.loss == "normface" else proxy_anchor(cosine, label)
        return Output(loss, {"accuracy": (cosine.detach().argmax(-1) == label).float().mean()})

    def begin(self, model: Backbone, stream: Any) -> None:
        """From the frozen network's vectors: a head that whitens them inside classes, and proxies at the classes' centres."""
        if self.start == "random" and self.loss != "none":
            return
        known, label = labelled(model, self.processor, stream, PROBED)
        noise = None if self.loss == "none" else rounding(model, self.processor, stream)
        with torch.no_grad():
            center, projection = learnt_whitening(known, label, len(self.head.weight), noise)
            self.head.weight.copy_(projection)
            self.head.bias.copy_(-projection @ center)
            if self.proxies is not None:
                described = F.normalize((known - center) @ projection.t(), dim=-1)
                sums = torch.zeros_like(self.proxies, dtype=torch.float32).index_add_(0, label, described.float())
                self.proxies.copy_(F.normalize(sums, dim=-1))

    @torch.no_grad()
    def look(self, model: Backbone, store: Store) -> None:
        """Index the gallery, for the pictures of `store` to be looked for in; without one, `store` itself."""
        gallery, device = self.gallery or store, next(model.parameters()).device

        def described(part: np.ndarray) -> Tensor:
            return self.processor.plain(self.processor.take(gallery, part).to(device))

        known = vectors(model, described, np.arange(gallery.count), self.processor.size)
        known = F.normalize(self.head(known.to(self.head.weight.dtype)).float(), dim=-1)
        center, projection = pca_whitening(known) if self.whitening else (None, None)
        inputs, names = _examples(gallery)
        codes = {name: i for i, name in enumerate(dict.fromkeys(names))}
        asked = names if gallery is store else _examples(store)[1]
        gold, wanted = (torch.tensor([codes.get(n, -1) for n in x], device=device) for x in (names, asked))
        self._index = _Index(known, inputs, names, gold, wanted, gallery is store, center, projection)
        self._index.vectors = self._index.whitened(known)

    @torch.no_grad()
    def predict(self, model: Backbone, batch: Batch) -> list[Prediction]:
        index, row = self._index, batch["row"]
        assert index is not None, "look(model, store) comes before predict"
        pixels = self.processor.plain(batch["pixels"])
        found = index.vectors[row] if index.itself else index.whitened(self.descriptors(model, pixels))
        similarity = found @ index.vectors.t()
        if index.itself:
            similarity.scatter_(1, row[:, None], -torch.inf)
        similarity, order = similarity.sort(dim=-1, descending=True, stable=True)
        if index.itself:
            similarity, order = similarity[:, :-1], order[:, :-1]
        relevant = (index.gold[order] == index.asked[row][:, None]).cpu().numpy()
        precision = metrics.average_precision(relevant)
        rank = np.where(relevant.any(1), relevant.argmax(1), -1)
        near = zip(order[:, :SHOWN].tolist(), similarity[:, :SHOWN].tolist(), strict=True)
        return [{"nearest": n, "rank": int(r), "precision": float(p)} for n, r, p in zip(near, rank, precision, strict=True)]

    def merge(self, parts: Sequence[Prediction], example: Any) -> Prediction:
        """The label of the nearest, what is nearest, and where the first of its own label came (`rank` 0: first; -1: there is none)."""
        found = parts[0]
        assert self._index is not None
        nearest = self._index.named(*found["nearest"])
        precision = round(found["precision"], 6)
        return {"prediction": nearest[0]["gold"], "rank": found["rank"], "average_precision": precision, "nearest": nearest}

    def kept(self, prediction: Prediction) -> Any:
        return prediction["rank"], prediction["average_precision"]

    def score(self, predictions: Sequence[Any], gold: Sequence[Any]) -> dict[str, Any]:
        """Of what `kept` gave. A query that has nothing of its kind in the gallery counts for no score."""
        ranks, precisions = (np.array(x) for x in zip(*predictions, strict=True))
        asked = ranks >= 0
        if not asked.any():
            raise BadInput("data: no picture has another one of its label to be found; name a gallery (data.gallery) or more pictures")
        return {**metrics.retrieval(ranks[asked], precisions[asked]), "queries": int(asked.sum()), "without_match": int((~asked).sum())}

    def index_lines(self) -> Iterator[dict[str, Any]]:
        """The gallery as text, a line a picture: what it is, and which of the others are nearest."""
        index = self._index
        assert index is not None
        for start in range(0, len(index.vectors), 1024):
            rows = torch.arange(start, min(start + 1024, len(index.vectors)), device=index.vectors.device)
            found = (index.vectors[rows] @ index.vectors.t()).scatter_(1, rows[:, None], -torch.inf)
            similarity, order = found.topk(min(SHOWN, found.shape[1] - 1))
            for i, near, how in zip(rows.tolist(), order.tolist(), similarity.tolist(), strict=True):
                yield {"id": i, "input": index.inputs[i], "gold": index.names[i], "nearest": index.named(near, how)}


class _Descriptor(nn.Module):
    """A linear layer [B, D] -> [B, d] that is no classifier, even where there are as many labels as dimensions."""

    def __init__(self, dim: int, dimensions: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(dimensions, dim)), nn.Parameter(torch.zeros(dimensions))
        nn.init.orthogonal_(self.weight)

    def forward(self, vector: Tensor) -> Tensor:
        return F.linear(vector, self.weight, self.bias)


@dataclass
class _Index:
    """A gallery, and which of it is right for each of the queries."""

    vectors: Tensor  # [G, d], of unit length
    inputs: list[Any]
    names: list[Any]  # labels
    gold: Tensor  # [G], labels as numbers
    asked: Tensor  # [Q], those of the queries; -1 where the gallery has none such
    itself: bool  # the queries are the gallery
    center: Tensor | None
    projection: Tensor | None

    def whitened(self, vectors: Tensor) -> Tensor:
        if self.projection is None or self.center is None:
            return vectors
        return F.normalize((vectors - self.center) @ self.projection.t(), dim=-1)

    def named(self, rows: Sequence[int], similarity: Sequence[float]) -> list[dict[str, Any]]:
        pairs = zip(rows, similarity, strict=True)
        return [{"id": i, "input": self.inputs[i], "gold": self.names[i], "similarity": round(s, 4)} for i, s in pairs]


def _examples(store: Store) -> tuple[list[Any], list[Any]]:
    examples = examples_of(store)
    lines = [json.loads(examples.text(i)) for i in range(examples.count)]
    return [line["input"] for line in lines], [line["gold"] for line in lines]


def proxy_anchor(cosine: Tensor, label: Tensor) -> Tensor:
    """Equation 4 of Kim et al. 2020, of cosines [B, C] to the proxies."""
    own = F.one_hot(label, cosine.shape[1]).bool()
    nothing = cosine.new_zeros(1, cosine.shape[1])  # the 1 inside the logarithm
    pull = torch.cat([nothing, (-ALPHA * (cosine - MARGIN)).masked_fill(~own, -torch.inf)]).logsumexp(0)
    push = torch.cat([nothing, (ALPHA * (cosine + MARGIN)).masked_fill(own, -torch.inf)]).logsumexp(0)
    return pull.sum() / own.any(0).sum() + push.mean()


def learnt_whitening(vectors: Tensor, label: Tensor, dimensions: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(centre [D], projection [dimensions, D]): what varies inside classes is made round, then the directions in which the vectors
    still vary most are kept (Mikolajczyk and Matas 2007; for retrieval Radenovic et al. 2018). How far small variances are evened out is
    what tells the classes apart best (frozen.best_ridge), and never so far that `noise` [M, D] would be heard."""
    few = label < CLASSES
    ridge = best_ridge(vectors[few], F.one_hot(label[few]).float(), F.cross_entropy, noise)
    x = vectors.double()
    center = x.mean(0)
    sums = torch.zeros(int(label.max()) + 1, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, label, x)
    inside = x - (sums / label.bincount()[:, None].clamp(min=1))[label]
    covariance = inside.t() @ inside / len(x)
    if noise is not None:
        covariance += CERTAIN * noise.double().t() @ noise.double() / len(noise)
    values, axes = torch.linalg.eigh(covariance)
    total = (x - center).var(0, correction=0).mean()
    round_ = axes / (values.clamp(min=0) + ridge * total).sqrt() @ axes.t()
    spread = (x - center) @ round_
    _, directions = torch.linalg.eigh(spread.t() @ spread / len(x))
    chosen = directions.flip(1)[:, :dimensions].t() @ round_
    if len(chosen) < dimensions:  # a descriptor wider than the network's vector: the rest stays zero
        chosen = F.pad(chosen, (0, 0, 0, dimensions - len(chosen)))
    return center.to(vectors.dtype), chosen.to(vectors.dtype)


def pca_whitening(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(centre [D], projection [D, D]) to principal components of equal variance, the least of them held back."""
    x = vectors.double()
    center = x.mean(0)
    values, axes = torch.linalg.eigh((x - center).t() @ (x - center) / len(x))
    projection = (axes / (values.clamp(min=0) + STEADY * values.mean()).sqrt()).t()
    return center.to(vectors.dtype), projection.to(vectors.dtype)
