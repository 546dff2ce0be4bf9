"""Collapses on purpose: by configuration where it can say them, else by changing one line of a method."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

Patch = contextlib.AbstractContextManager[Any]


@dataclass
class Plant:
    words: list[str]  # what is typed
    causes: set[str]  # that name it (evidence.causes)
    patch: Callable[[], Patch] = field(default=contextlib.nullcontext)


def _attracted(predicted: Tensor, target: Tensor) -> Tensor:
    """`negative_cosine`, but for the stopped gradient."""
    return -F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()


def simsiam_without_stop_gradient() -> Patch:
    return mock.patch("sslcli.objectives.simsiam.negative_cosine", _attracted)


@contextlib.contextmanager
def byol_without_stop_gradient() -> Iterator[None]:
    """The target is the network itself, and the gradient flows into both sides."""
    from sslcli.objectives import byol

    def forward(self: Any, model: Any, batch: Any) -> Any:
        features = [byol.vectors(model, v) for v in self.views(batch)[:2]]
        projected = [self.projector(f) for f in features]
        predicted = [self.predictor(p) for p in projected]
        loss = 4 + 2 * (_attracted(predicted[0], projected[1]) + _attracted(predicted[1], projected[0]))
        return byol.Output(loss, {"spread": byol.spread(projected[0])}, seen=byol.views_seen(features, projected[0]))

    with mock.patch.object(byol.BYOL, "forward", forward):
        yield


@contextlib.contextmanager
def simsiam_with_idle_predictor() -> Iterator[None]:
    """The predictor's learning rate is zero: its gradients are."""
    from sslcli.objectives.simsiam import SimSiam

    plain = SimSiam.begin

    def begin(self: Any, model: Any, stream: Any) -> None:
        plain(self, model, stream)
        for weight in self.predictor.parameters():
            weight.register_hook(torch.zeros_like)

    with mock.patch.object(SimSiam, "begin", begin):
        yield


@contextlib.contextmanager
def constant_encoder() -> Iterator[None]:
    """Every picture gets the mean of all."""
    from sslcli.models.resnet import Resnet

    plain = Resnet.pool

    def pool(self: Any, hidden: Tensor, batch: Any) -> Tensor:
        vector = plain(self, hidden, batch)
        return vector.mean(0, keepdim=True).expand_as(vector)

    with mock.patch.object(Resnet, "pool", pool):
        yield


@contextlib.contextmanager
def dino_without_centring() -> Iterator[None]:
    from sslcli.objectives import dino

    def after_step(self: Any, model: Any, progress: float) -> None:
        self._said = None
        plain(self, model, progress)

    plain = dino.DINO.after_step
    nothing = lambda rows: (torch.zeros_like(rows), 0)  # noqa: E731  the mean, before there is a centre
    with mock.patch.object(dino.DINO, "after_step", after_step), mock.patch.object(dino, "gathered", nothing):
        yield


def swav_without_sharing_out() -> Patch:
    return mock.patch("sslcli.objectives.swav.sinkhorn", lambda scores, epsilon, rounds: F.softmax(scores.float() / epsilon, -1))


@contextlib.contextmanager
def one_vector_for_all_tokens() -> Iterator[None]:
    from sslcli.models.text import Text

    plain = Text.encode

    def encode(self: Any, batch: Any) -> Tensor:
        hidden = plain(self, batch)
        return hidden.mean(1, keepdim=True).expand_as(hidden)

    with mock.patch.object(Text, "encode", encode):
        yield


PLANTS = {
    "simsiam without stop-gradient": Plant(["objective=simsiam"], {"stop_gradient"}, simsiam_without_stop_gradient),
    "byol without stop-gradient": Plant(["objective=byol"], {"teacher"}, byol_without_stop_gradient),
    "simsiam, predictor at learning rate zero": Plant(["objective=simsiam"], {"idle"}, simsiam_with_idle_predictor),
    "simclr, identical views": Plant(["objective=simclr", "augment=none", "augment.views=2"], {"views"}),
    "simclr, temperature 100": Plant(["objective=simclr", "objective.temperature=100"], {"temperature"}),
    "simclr, constant encoder": Plant(["objective=simclr"], {"network"}, constant_encoder),
    "dino without centring": Plant(["objective=dino"], {"centring"}, dino_without_centring),
    "vicreg without variance": Plant(["objective=vicreg", "objective.variance=0"], {"variance"}),
    "swav, codes not shared out": Plant(["objective=swav"], {"codes"}, swav_without_sharing_out),
    "masked_lm, one vector for all tokens": Plant(["objective=masked_lm"], {"network"}, one_vector_for_all_tokens),
}
