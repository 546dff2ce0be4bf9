"""From gradients to new weights: fp32 masters beside bf16 weights, clipping, schedules, layer-wise decay, averaging."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.distributed import World
from sslcli.lowered import Lowered


class Lion(torch.optim.Optimizer):
    """Evolved sign momentum (Chen et al. 2023)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            grads, averages = [p.grad for p in params], [self.state[p]["exp_avg"] for p in params]
            first, second = group["betas"]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            updates = torch._foreach_sign(torch._foreach_lerp(averages, grads, 1 - first))
            torch._foreach_add_(params, updates, alpha=-group["lr"])
            torch._foreach_lerp_(averages, grads, 1 - second)


class Optimizer:
    """Owns the trainable parameters of `modules`. Their gradients are summed in fp32, whatever the weights are kept in."""

    def __init__(
        self,
        modules: nn.Module,
        precision: torch.dtype,
        *,
        kind: Literal["adamw", "adam", "sgd", "lion", "muon"],
        lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)],
        schedule: Literal["constant", "linear", "cosine", "wsd"],
        warmup: Annotated[float, Field(ge=0, lt=1)],
        clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        layer_decay: Annotated[float, Field(gt=0, le=1)],
        ema: Annotated[float, Field(gt=0, lt=1)] | None,
    ):
        self.steps = 1  # of the whole run: set once they are known, before the first one
        self.schedule, self.warmup, self.clip, self.ema_decay, self.layer_decay = schedule, warmup, clip, ema, layer_decay
        self.rates: list[float] = []  # of the last step, group by group
        self.apart = 0.0  # how far what was delivered is from the last weights, as a share of their length
        self.lr = lr if lr is not None else default_lr(modules, kind)
        trainable = [(n, p) for n, p in modules.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in trainable]
        self.weights: list[Tensor] = [p for _, p in trainable]
        self.low = precision != torch.float32
        self.modules = modules
        self.lowered = Lowered(modules, self.weights, precision) if self.low else None
        self.masters = self.lowered.masters if self.lowered else self.weights
        self.average = [m.detach().clone() for m in self.masters] if ema else []
        groups = _groups(self.names, self.masters, weight_decay, layer_decay)
        self.engines = _engines(kind, groups, self.names, self.masters, self.lr, betas)
        tuned = getattr(getattr(modules, "model", None), "tuned", None)  # hf.tuning.Peft
        self.tuned = tuned if tuned is not None and tuned.steers else None
        self.refused = torch.zeros((), device=self.masters[0].device)  # steps with non-finite gradients, which moved nothing

    def step(self, world: World, step: int) -> Tensor:
        """Reduce, look, clip, move. Returns the gradient norm; if it is not finite nothing moves, and `refused` counts it."""
        self._join(world)
        grads = [m.grad for m in self.masters if m.grad is not None]
        world.reduce(grads)
        if self.tuned is not None:
            self.tuned.before_step(dict(zip(self.names, self.masters, strict=True)))
        norm = torch.nn.utils.get_total_norm(grads, foreach=True)
        bad = (~torch.isfinite(norm)).float()
        self.refused += bad
        scale = torch.clamp(self.clip / (norm + 1e-6), max=1.0) if self.clip is not None else torch.ones_like(norm)
        scale = torch.where(bad > 0, torch.ones_like(scale), scale)
        fused = self._step_on_device()
        if not fused:
            torch._foreach_mul_(grads, scale)
        rate = self.rate(step)
        for engine in self.engines:
            for group in engine.param_groups:
                group["lr"] = rate * group["share"]
        self.rates = [group["lr"] for engine in self.engines for group in engine.param_groups]
        if fused or not bad.item():
            self._move(bad, 1 / scale if fused else None, step)
        self.forget_gradients()
        return norm

    def _join(self, world: World) -> None:
        """A rank without rows of a term (the last batch of an epoch may be that small) takes part in the sum with zeros."""
        if world.size == 1:
            return
        some = world.sum([float(m.grad is not None) for m in self.masters])
        for master, ranks in zip(self.masters, some, strict=True):
            if ranks and master.grad is None:
                master.grad = torch.zeros_like(master)

    def forget_gradients(self) -> None:
        for tensor in (*self.masters, *self.weights):
            tensor.grad = None

    def _step_on_device(self) -> bool:
        """Fused kernels look at the flag themselves, so that a GPU never waits for the host to read it."""
        return all(getattr(e, "_step_supports_amp_scaling", False) for e in self.engines)

    @torch.no_grad()
    def _move(self, bad: Tensor, divisor: Tensor | None, step: int) -> None:
        """`divisor`: of gradients that are not clipped yet; fused kernels clip as they go, one pass over the gradients less."""
        for engine in self.engines:
            engine.found_inf, engine.grad_scale = bad, divisor
            engine.step()
        if self.tuned is not None and not bad.item():
            self.tuned.after_step(dict(zip(self.names, self.masters, strict=True)), step + 1, self.steps)
        if self.low:
            torch._foreach_copy_(self.weights, self.masters)
        if self.average:
            decay = min(self.ema_decay or 0.0, (1 + step) / (10 + step))  # short at first: the initial weights are soon forgotten
            change = torch._foreach_sub(self.masters, self.average)
            torch._foreach_mul_(change, (1 - decay) * (1 - bad))
            torch._foreach_add_(self.average, change)

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up, then constant, linear, cosine, or (wsd) constant with a last fifth of decay."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        progress = (step - warm) / max(1, self.steps - warm)
        share = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "wsd": min(1.0, (1 - progress) / 0.2),
        }[self.schedule]
        return self.lr * share

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs, by parameter name."""
        tensors: dict[str, Tensor] = {}
        places = {id(m): n for n, m in zip(self.names, self.masters, strict=True)}
        for engine in self.engines:
            for parameter, values in engine.state.items():
                tensors |= {f"{places[id(parameter)]}|{k}": torch.as_tensor(v) for k, v in values.items()}
        found = {"weights": dict(zip(self.names, self.masters, strict=True)), "moments": tensors}
        if self.average:
            found["average"] = dict(zip(self.names, self.average, strict=True))
        return found

    @torch.no_grad()
    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.set_weights(state["weights"])
        for name, average in zip(self.names, self.average, strict=bool(self.average)):
            average.copy_(state["average"][name])
        places = dict(zip(self.names, self.masters, strict=True))
        for engine in self.engines:
            owned = {id(p) for g in engine.param_groups for p in g["params"]}
            for key, value in state["moments"].items():
                name, field = key.rsplit("|", 1)
                parameter = places[name]
                if id(parameter) in owned:
                    on_host = field == "step" and not parameter.is_cuda
                    # as the parameter lies in memory: fused kernels walk both alike
                    laid = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
                    engine.state[parameter][field] = value.clone() if on_host else laid.to(parameter.device).copy_(value)

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(weights[name])
        if self.low:
            torch._foreach_copy_(self.weights, self.masters)

    def receipt(self) -> dict[str, Any]:
        """Where an option asks for it: the least and largest rate of the last step, and how far the average is from the last weights."""
        found: dict[str, Any] = {}
        if self.layer_decay < 1 and self.rates:
            found["layer_decay"] = {"asked": self.layer_decay, "least_rate": min(self.rates), "largest_rate": max(self.rates)}
        if self.ema_decay:
            found["ema"] = {"asked": self.ema_decay, "from_last_weights": round(self.apart, 9)}
        return {"optimizer": found} if found else {}

    def best_weights(self) -> dict[str, Tensor]:
        """What is evaluated and kept: the running average where there is one."""
        return dict(zip(self.names, self.average or self.masters, strict=True))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The running average in the place of the weights, for an evaluation."""
        if not self.average:
            yield
            return
        with torch.no_grad():
            live = [w.detach().clone() for w in self.weights]
            torch._foreach_copy_(self.weights, self.average)
            yield
            torch._foreach_copy_(self.weights, live)

    @torch.no_grad()
    def release(self, weights: dict[str, Tensor]) -> None:
        """End of training: the modules hold these weights, in fp32 again, and nothing else is kept."""
        if self.ema_decay:  # nobody else asks
            last = dict(zip(self.names, self.masters, strict=True))
            away = sum(float((weights[n].to(m.device, m.dtype) - m).square().sum()) for n, m in last.items())
            self.apart = math.sqrt(away / max(sum(float(m.square().sum()) for m in last.values()), 1e-30))
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.data = weight.data.float()
            weight.copy_(weights[name])
        if self.lowered:
            self.lowered.undo()
        self.masters, self.average, self.engines = self.weights, [], []


def default_lr(modules: nn.Module, kind: str) -> float:
    """A peak rate for the width at hand: narrow networks take and need larger steps (Yang et al. 2022), fresh weights larger ones than
    pretrained ones, and what is put into a frozen network the largest (hf.tuning.Peft.rate). Measured points: README."""
    model = getattr(modules, "model", None)
    width, pretrained = getattr(model, "dim", 768), getattr(model, "loaded", {}).get("tensors", 0) > 0
    fresh = max((getattr(m, "lr_times_width", 0.0) for m in modules.children()), default=0.0) or 0.13
    task = getattr(modules, "task", None)  # what stands beside it goes at its rate
    tuned = min((getattr(m, "tuned_times_width", 0.04) for m in (modules.children() if task is None else (task,))), default=0.04)
    rate = min(3e-3, (tuned if pretrained else fresh) / width) * getattr(getattr(model, "tuned", None), "rate", 1.0)
    if task is not None and not pretrained:
        rate = max(rate, min(3e-3, getattr(task, "lr_times_width", 0.13) / width) * getattr(model, "fresh_rate", 1.0))
    return rate * {"adamw": 1.0, "adam": 1.0, "lion": 0.1, "muon": 1.0, "sgd": 100.0}[kind]


EMBEDDING = re.compile(r"embed|\.w[tp]e\.")  # GPT-2 calls its tables wte and wpe


def _groups(names: Sequence[str], masters: Sequence[Tensor], weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Vectors (biases, norms) take no decay; with layer-wise decay each layer's rate falls with its distance from the head."""
    depths = [_depth(n) for n in names]
    layers = max((d for d in depths if d is not None), default=0) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, master, depth in zip(names, masters, depths, strict=True):
        below = (
            0 if not name.startswith("model.") else layers - depth if depth is not None else (layers + 1 if EMBEDDING.search(name) else 0)
        )
        share, decay = layer_decay**below, weight_decay if master.ndim >= 2 else 0.0
        group = groups.setdefault((share, decay), {"params": [], "names": [], "share": share, "weight_decay": decay})
        group["params"].append(master)
        group["names"].append(name)
    return list(groups.values())


def _depth(name: str) -> int | None:
    found = re.search(r"\.(?:layers?|h|blocks?|encoder|stages?)\.(\d+)\.", name.replace("/", "."))  # of bottlenecks with slashes
    return int(found[1]) if found else None


def _engines(
    kind: str, groups: list[dict[str, Any]], names: Sequence[str], masters: Sequence[Tensor], lr: float, betas: tuple[float, float]
) -> list[Any]:
    if kind == "sgd":
        return [torch.optim.SGD(groups, lr, momentum=betas[0], nesterov=betas[0] > 0, fused=True)]
    if kind == "lion":
        return [Lion(groups, lr, betas, 0.0)]
    adam: type = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    if kind != "muon":
        return [adam(groups, lr, betas=betas, fused=True)]
    inner = {n for n, m in zip(names, masters, strict=True) if m.ndim == 2 and n.startswith("model.") and _depth(n) is not None}
    matrices, rest = _split(groups, inner)
    muon = torch.optim.Muon(matrices, lr, momentum=0.95, adjust_lr_fn="match_rms_adamw") if matrices else None
    return [e for e in (muon, adam(rest, lr, betas=betas, fused=True) if rest else None) if e is not None]


def _split(groups: Iterable[dict[str, Any]], names: set[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    chosen: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for group in groups:
        for wanted, target in ((True, chosen), (False, rest)):
            pairs = [(n, p) for n, p in zip(group["names"], group["params"], strict=True) if (n in names) == wanted]
            if pairs:
                target.append({**group, "names": [n for n, _ in pairs], "params": [p for _, p in pairs]})
    return chosen, rest
