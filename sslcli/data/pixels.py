"""From a store of decoded images to what a network sees: slices of bytes, views of them, normalised pixels."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sslcli.core import Batch
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.data.store import cache as prepared
from sslcli.errors import BadCheckpoint, at
from sslcli.run import write_atomically

FILE = "preprocessor_config.json"
PATCH = 64  # pixels that count as a token
Fit = Literal["crop", "stretch", "pad"]


class Pixels:
    """The processor of images. `mirror`: a mirrored picture means the same; `augment`: what makes views of a picture, or None."""

    def __init__(
        self, size: int, channels: int, mean: Sequence[float], std: Sequence[float], mirror: bool, augment: Any = None, fit: Fit = "crop"
    ):
        if not len(mean) == len(std) == channels:
            raise ValueError(f"{channels} channels but {len(mean)} means and {len(std)} deviations")
        self.size, self.channels, self.mirror, self.augment, self.fit = size, channels, mirror, augment, fit
        self.mean, self.std = [float(x) for x in mean], [float(x) for x in std]
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        return self.size

    @property
    def width(self) -> int:
        """The tokens that a picture counts as where batches are cut to fit in memory."""
        return max(1, self.size**2 // PATCH)

    @property
    def said(self) -> str:
        return f"{self.size} x {self.size} pixels{', grey' if self.channels == 1 else ''}"

    def take(self, store: Store, rows: np.ndarray) -> Tensor:
        """The pictures of these rows of a split, uint8 [B, C, S, S]."""
        pixels = _decoded(prepared() / "stores" / store.meta["pixels"])["pixels"].values
        return torch.from_numpy(np.asarray(pixels[store["place"].values[rows, 0]])).view(-1, self.channels, self.size, self.size)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """`pixels` uint8 [B, C, S, S], and `draws` float32 [B, n], from `keys` alone: all the chance that its views may use."""
        batch = {"pixels": self.take(store, rows), "weight": torch.tensor(float(len(rows)))}
        if self.augment is not None:
            batch["draws"] = torch.from_numpy(chance.uniform(keys, self.augment.draws))
        return batch

    def views(self, batch: Batch) -> list[Tensor]:
        """Augmented and normalised, each [B, C, s, s], on the batch's device; without an augmentation, the one picture as it is."""
        if self.augment is None:
            return [self.plain(batch["pixels"])]
        return [self.normalised(v) for v in self.augment.views(batch["pixels"], batch["draws"], self.mirror)]

    def plain(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32, normalised."""
        shift, scale = self._affine(pixels.device)
        return torch.addcmul(shift, pixels.float(), scale / 255)

    def normalised(self, pixels: Tensor) -> Tensor:
        """[B, C, s, s] between 0 and 1 -> float32, normalised."""
        shift, scale = self._affine(pixels.device)
        return torch.addcmul(shift, pixels.float(), scale)

    def _affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            mean, std = (torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (self.mean, self.std))
            self._constants[device] = (-mean / std, 1 / std)
        return self._constants[device]

    def save(self, folder: Path) -> None:
        """As transformers writes it, so that its image processors make the same pixels (data.fit=pad it cannot say); the rest beside."""
        side = {"height": self.size, "width": self.size}
        known = {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True,
            "size": side if self.fit == "stretch" else {"shortest_edge": self.size},
            "resample": 2,  # bilinear, antialiased
            "do_center_crop": self.fit == "crop",
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_convert_rgb": self.channels == 3,
            "image_mean": self.mean,
            "image_std": self.std,
        }
        own = {"size": self.size, "channels": self.channels, "fit": self.fit, "mirror": self.mirror}
        write_atomically(folder / FILE, json.dumps({**known, "sslcli": own}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, augment: Any = None) -> "Pixels":
        """Of a model folder of this tool, or of a vision model of transformers."""
        path = folder / FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            own = found.get("sslcli", {})
            scaled = found.get("do_normalize", True)
            mean, std = (found["image_mean"], found["image_std"]) if scaled else ([0.0] * 3, [1.0] * 3)
            size = int(own.get("size") or _side(found))
            fit: Any = own.get("fit") or ("crop" if found.get("do_center_crop") else "stretch")
            if fit not in get_args(Fit):
                raise ValueError(f"fit={fit}")
            return cls(size, own.get("channels", len(mean)), mean, std, own.get("mirror", True), augment, fit)
        except FileNotFoundError as error:
            raise BadCheckpoint(f"{at(path)}: missing; this is not a model of images") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadCheckpoint(f"{at(path)}: does not say how pictures are prepared ({error}); fetch the model again") from error


@cache
def _decoded(path: Path) -> Store:
    """Named by its content, so it never changes."""
    return Store(path)


def _side(found: dict[str, Any]) -> int:
    size = found["crop_size"] if found.get("do_center_crop") and found.get("crop_size") else found["size"]
    return int(size) if isinstance(size, int) else int(size.get("height") or size["shortest_edge"])
