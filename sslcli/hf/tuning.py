"""Parameter-efficient tuning: what a method of the room `peft` is, and the door to those that the library `peft` has.

A method is a function that changes a backbone in place: all that was there is frozen, and what learns instead is put in. It knows no
objective and no loop.
"""

import dataclasses
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslcli.core import Backbone
from sslcli.errors import BadCheckpoint, printable
from sslcli.hf import adapter
from sslcli.hf.targets import targets

Targets = list[str] | None


class Peft(ABC):
    room: ClassVar[str] = "peft"
    type: ClassVar[str]  # peft_type of its adapter_config.json
    said: ClassVar[Mapping[str, str]] = {}  # field of that file -> attribute here: what an adapter is read by
    part: ClassVar[str] = ""  # of a network, in the table of hf.targets
    merges: ClassVar[bool] = True  # what was learnt can be folded into the network's own weights
    rate: ClassVar[float] = 10.0  # the default learning rate, times that of training everything
    steers: ClassVar[bool] = False  # has `before_step(masters)` and `after_step(masters, step, steps)`, which the optimizer calls
    model: Any

    def __init__(self, targets: Targets, load: str | None):
        self.targets, self.load = targets, load
        self.names: list[str] = []  # of the modules of `model.base` that are worked on

    def insert(self, model: Backbone) -> None:
        """Freeze the network, put in what learns; with `load`, filled from an adapter folder."""
        self.model, tensors = model, None
        model.requires_grad_(False)
        if self.load is not None:
            folder = adapter.folder(self.load)
            settings, tensors = adapter.read(folder)
            tensors = adapter.renamed(tensors, getattr(self.model.base, "base_model_prefix", ""))
            self._take(folder, settings, tensors)
        if self.part and not self.names:
            self.names = targets(model, self.part, self.targets)
        self.put(model)
        self.own = [n for n, p in model.named_parameters() if p.requires_grad]
        if isinstance(pooler := getattr(self.model.base, "pooler", None), nn.Module):
            pooler.requires_grad_(True)  # part of the head of a few families
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(_as_in_use)
        model.tuned = self  # type: ignore[assignment]
        if tensors is not None:
            self.fill(tensors)

    def _take(self, folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """The shape of an adapter comes from its own files."""
        if settings["peft_type"] != self.type:
            found = printable(settings["peft_type"], 40)
            raise BadCheckpoint(f"peft.load={printable(folder)}: is an adapter of type {found}, this method's is {self.type}")
        usual = {n: getattr(self, n) for n in self.said.values()}
        for name, value in adapter.checked(folder, settings, self.said, usual, self.unset()).items():
            setattr(self, name, value)
        self.names = adapter.modules(tensors)
        known = dict(self.model.base.named_modules())
        if strange := [n for n in self.names if n not in known]:
            what = f"{len(strange)} of its {len(self.names)} layers are not in this network ({printable(', '.join(strange[:3]))})"
            raise BadCheckpoint(f"peft.load={printable(folder)}: {what}; is it an adapter of another base?")

    def unset(self) -> Mapping[str, Any]:
        """What fields of adapter_config.json say where nobody asked for anything."""
        return {}

    @abstractmethod
    def put(self, model: Any) -> None:
        """What learns, into or beside `model.base`, with requires_grad."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What was learnt, under the names of adapter_model.safetensors."""

    @abstractmethod
    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""

    def settings(self) -> dict[str, Any]:
        """adapter_config.json"""
        return {"peft_type": self.type, **{field: getattr(self, name) for field, name in self.said.items()}, "target_modules": self.names}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        adapter.check_same(str(self.load), self.tensors(), tensors)
        self.set(tensors)

    def save(self, folder: Path, base: str | None) -> None:
        said = {**self.settings(), "base_model_name_or_path": base, "inference_mode": True}
        adapter.write(folder, json.dumps(said, indent=2, sort_keys=True, default=sorted), self.tensors())

    @abstractmethod
    def merge(self) -> None:
        """Fold what was learnt into the network, which is then one of plain transformers again; all of it is frozen."""


class Learnt(Peft):
    """A method whose parameters are the network's own, or stand beside it: the module tree of `model.base` stays as it is."""

    def tensors(self) -> dict[str, Tensor]:
        known = dict(self.model.named_parameters())
        return {n.removeprefix("base."): known[n].detach() for n in self.own}

    @torch.no_grad()
    def set(self, tensors: Mapping[str, Tensor]) -> None:
        known = dict(self.model.named_parameters())
        for name in self.own:
            known[name].copy_(tensors[name.removeprefix("base.")])

    def merge(self) -> None:
        """The network's own are there already; what stands beside it stays."""
        self.model.requires_grad_(False)


class Library(Peft):
    """A method of the library `peft`, put into `model.base` by it; files in its format."""

    @abstractmethod
    def config(self, names: Sequence[str]) -> Any:
        """The library's configuration of this method."""

    def unset(self) -> Mapping[str, Any]:
        import peft

        return {f.name: f.default for f in dataclasses.fields(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(self.type)])}

    def put(self, model: Any) -> None:
        import peft

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.wrapped = peft.PeftModel(model.base, self.config(self.names))  # held here: the module tree stays the backbone's
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(f"the library peft refuses: {printable(error, 200)}") from error

    def tensors(self) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        return {n: t.detach() for n, t in get_peft_model_state_dict(self.wrapped, save_embedding_layers=False).items()}

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.wrapped, dict(tensors))

    def settings(self) -> dict[str, Any]:
        return self.wrapped.peft_config["default"].to_dict()

    def merge(self) -> None:
        self.wrapped.base_model.merge_and_unload()
        self.model.requires_grad_(False)


def _as_in_use(module: nn.Module, _: Any) -> None:
    """Statistics of a frozen network are as in use."""
    module.training = False
