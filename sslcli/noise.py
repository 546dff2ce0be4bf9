"""Where adversaries perturb: the embedding's output, the pixels of pictures, or the weights. One handle a term, cleared batch by batch.

Sizes and radii are shares. Of an embedding: of the root mean square of the values of the example (its real tokens, its patches); of
pixels: of their whole range; of a weight: of the root mean square of its matrix. In norm l2 the root mean square of the noise is measured,
so that |r| = radius * |x| for an embedding, whatever the length of the text; in linf its largest value.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslcli.core import Adversary, Backbone, Batch, Objective, Output
from sslcli.errors import BadInput
from sslcli.perturbed import Perturbed

Pass = Callable[[], Output]
Pixels = tuple[Sequence[float], Sequence[float]]  # mean and deviation by which they are normalised


class Noise:
    """No place to perturb: what a term without an adversary has. Knows the passes over a batch; the others build on that."""

    def __init__(self, model: Backbone, objective: Objective):
        self.model = model
        self.clean: Output | None = None  # what the first pass over this batch gave, back-propagated or not
        self.last: Output | None = None
        self._steady = [m for x in (model, objective) for m in x.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    @contextlib.contextmanager
    def around(self, forward: Pass) -> Iterator[Pass]:
        """While a batch is in work: its passes. The first has the dropout of a run without adversaries; later ones have the same."""
        self.clean = self.last = None
        chance: list[Tensor] = []

        def again() -> Output:
            if self.clean is None:
                chance[:] = _chance(self.model)
                self.clean = self.last = self._pass(forward)
                return self.clean
            _set_chance(chance)
            with self._statistics_kept():
                self.last = self._pass(forward)
            return self.last

        try:
            yield again
        finally:
            self.forget()
            self.clean = self.last = None

    def _pass(self, forward: Pass) -> Output:
        return forward()

    def forget(self) -> None:
        """Everything is as it was before the batch."""

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """BatchNorm's running statistics are those of clean passes."""
        before = [m.momentum for m in self._steady]
        for module in self._steady:
            module.momentum = 0.0
        try:
            yield
        finally:
            for module, momentum in zip(self._steady, before, strict=True):
                module.momentum = momentum

    def sizes(self) -> Tensor | None:
        """What the last pass was perturbed by, as the network saw it (after rounding): one number an example, picture or weight."""
        return None

    def seen(self) -> dict[str, Tensor]:
        """Of a batch: loss and logs of the clean pass, and, where there is noise, its mean size and how far it raised the loss."""
        assert self.clean is not None and self.last is not None
        found = {"loss": self.clean.loss.detach(), **self.clean.logs}
        sizes = self.sizes()
        if sizes is not None:
            found |= {"raised": self.last.loss.detach() - found["loss"], "noise": sizes.mean()}
        return found

    def logits(self, output: Output) -> Tensor:
        if output.logits is None:
            raise BadInput("adversarial: it compares logits, and this objective gives none; use adversarial=fgm, pgd, freelb or awp")
        return output.logits

    def feel(self, loss: Tensor) -> None:
        raise NotImplementedError

    def follow(self, size: float, steepest: bool = True) -> None:
        raise NotImplementedError

    def point(self, size: float) -> None:
        raise NotImplementedError

    def draw(self, size: float) -> None:
        raise NotImplementedError

    def within(self, radius: float) -> None:
        raise NotImplementedError


class Inside(Noise):
    """On what the embedding gives, or (`pixels`) on what goes into the network.

    Only passes of the network that learns are perturbed, never a teacher's; several of them in one forward pass (views) each have noise of
    their own. `encode` is watched because it alone sees which tokens are real.
    """

    def __init__(self, model: Backbone, objective: Objective, norm: Literal["l2", "linf"], pixels: Pixels | None, compiled: bool):
        super().__init__(model, objective)
        self.norm, self.pixels = norm, pixels
        self.places: list[Perturbed] = []
        self._mask: Tensor | None = None
        self._next, self._encoding, self._passing = 0, False, False
        self._encode = model.encode
        self._hooks = []
        if pixels is None:
            hook: Any = torch.compiler.disable(self._embedded) if compiled else self._embedded
            self._hooks = [model.embedding.register_forward_hook(hook)]

    def remove(self) -> None:
        """The network is as it was before."""
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def around(self, forward: Pass) -> Iterator[Pass]:
        self.model.encode = self._watched  # type: ignore[method-assign]
        try:
            with super().around(forward) as again:
                yield again
        finally:
            del self.model.encode

    def _pass(self, forward: Pass) -> Output:
        self._next, self._passing = 0, True
        try:
            return forward()
        finally:
            self._passing = False

    def forget(self) -> None:
        self.places = []

    def _watched(self, batch: Batch) -> Tensor:
        if not torch.is_grad_enabled():
            return self._encode(batch)
        if not self._passing:
            raise BadInput(
                "adversarial: this loss takes passes again in pieces (objective.chunk, task.head=contrastive); use adversarial=plain or awp"
            )
        self._mask, self._encoding = batch.get("mask"), True
        try:
            return self._encode(batch if self.pixels is None else {**batch, "pixels": self._perturb(batch["pixels"])})
        finally:
            self._encoding = False

    def _embedded(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not self._encoding:
            return None
        return self._perturb(output) if isinstance(output, Tensor) else (self._perturb(output[0]), *output[1:])

    def _perturb(self, x: Tensor) -> Tensor:
        if self._next == len(self.places):
            self.places.append(Perturbed(x.detach(), self._mask, self.pixels))
        self._next += 1
        return self.places[self._next - 1](x)

    def sizes(self) -> Tensor | None:
        return torch.cat([p.size(p.shown, self.norm) for p in self.places]) if self.places else None

    def feel(self, loss: Tensor) -> None:
        found = torch.autograd.grad(loss, [p.value for p in self.places], allow_unused=True)
        for place, gradient in zip(self.places, found, strict=True):
            place.value.grad = gradient

    def follow(self, size: float, steepest: bool = True) -> None:
        for place in self.places:
            place.follow(size, self.norm, steepest)

    def point(self, size: float) -> None:
        for place in self.places:
            with torch.no_grad():
                place.value.zero_()
            place.follow(size, self.norm, True)
            place.within(size, self.norm)

    @torch.no_grad()
    def draw(self, size: float) -> None:
        for place in self.places:
            place.value.grad = torch.randn_like(place.value)
        self.point(size)

    def within(self, radius: float) -> None:
        for place in self.places:
            place.within(radius, self.norm)


class OnWeights(Noise):
    """On every matrix of the network that is trained. When the batch is done, the weights are exactly what they were."""

    def __init__(self, model: Backbone, objective: Objective):
        super().__init__(model, objective)
        self.weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        if not self.weights:
            raise BadInput("adversarial=awp: no matrix of the network is trained, so none can be perturbed; use adversarial=fgm")
        self.gradients: Sequence[Tensor | None] = []
        self.before: list[Tensor] = []  # while they are perturbed

    def sizes(self) -> Tensor | None:
        if not self.before:
            return torch.zeros(len(self.weights), device=self.weights[0].device)
        scale = _rms(self.before)
        moved = [w.detach().float() - b.float() for w, b in zip(self.weights, self.before, strict=True)]
        return torch.where(scale > 0, _rms(moved) / scale, 0.0)

    def feel(self, loss: Tensor) -> None:
        self.gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)

    @torch.no_grad()
    def point(self, size: float) -> None:
        self.forget()
        self.before = [w.detach().clone() for w in self.weights]
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            if gradient is not None:
                length = size * torch.linalg.vector_norm(weight, dtype=torch.float32)
                gone = torch.linalg.vector_norm(gradient, dtype=torch.float32)
                step = gradient.float() * torch.where(gone > 0, length / gone, 0.0)
                weight.copy_(weight.float() + step)
        self.gradients = []

    @torch.no_grad()
    def forget(self) -> None:
        for weight, before in zip(self.weights, self.before, strict=bool(self.before)):
            weight.copy_(before)
        self.before = []


def noise_of(adversary: Adversary, model: Backbone, objective: Objective, compiled: bool = False) -> Noise:
    """The handle that an adversary is given for a term, by where it says that it perturbs. Made before a network is compiled."""
    on: str | None = getattr(adversary, "on", None)
    norm: Any = getattr(adversary, "norm", "l2")
    if on is None:
        return Noise(model, objective)
    if on == "weights":
        return OnWeights(model, objective)
    if on == "embedding":
        return Inside(model, objective, norm, None, compiled)
    processor: Any = getattr(objective, "processor", None)
    if not hasattr(processor, "std"):
        raise BadInput("adversarial.on=input: a text has no values to add noise to; use adversarial.on=embedding")
    return Inside(model, objective, norm, (processor.mean, processor.std), compiled)


def _rms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.float().square().mean().sqrt() for t in tensors])


def _chance(model: nn.Module) -> list[Tensor]:
    """Where the random numbers of the next pass come from."""
    device = next(model.parameters()).device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_chance(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
