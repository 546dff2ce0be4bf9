"""Through a narrow map of features and back to the pixels (Hinton and Salakhutdinov 2006), if need be from a noisy picture (Vincent et
al. 2008), or with a latent that can be drawn from (VAE, Kingma and Welling 2014)."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.core import Backbone, Batch, Output
from sslcli.heads import ImageObjective
from sslcli.losses import gaussian_divergence, spread

GROUP = 8  # channels that are normalised together


class Autoencoder(ImageObjective):
    """The network's map of features, through `latent` channels a place, to a convolutional decoder that doubles its side until it is the
    picture's, from `width` channels on, halved each time.

    `noise`: deviation of what is added to the (normalised) picture that is to be restored. `kl`: weight of the divergence of the latent
    from a standard normal one; at 1, loss is twice the negative evidence bound a pixel, for pixels of unit variance.
    """

    lr_times_width = 0.2
    batch_size = 256

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        latent: Annotated[int, Field(ge=1)],
        width: Annotated[int, Field(ge=8)],
        noise: Annotated[float, Field(ge=0)],
        kl: Annotated[float, Field(ge=0)],
    ):
        if not hasattr(model, "grid"):
            raise ValueError("autoencoder needs a network that ends in a square map of features; use model=resnet18 or model=vit_tiny")
        super().__init__(processor)
        self.noise, self.kl, self.size, self.side = noise, kl, processor.size, model.grid(processor.size)
        self.narrow = nn.Conv2d(model.dim, latent * (2 if kl else 1), 1)
        self.decoder = _decoder(self.side, self.size, latent, width, processor.channels)
        self.deviation: Tensor
        self.register_buffer("deviation", torch.tensor(processor.std).view(-1, 1, 1), persistent=False)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        pixels = self.views(batch)[0]
        noisy = pixels + self.noise * torch.randn_like(pixels) if self.noise and self.training else pixels
        mean, log_variance = self._latent(model, noisy)
        drawn = mean
        if log_variance is not None and self.training:
            drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        error = self.decode(drawn) - pixels
        logs = {"error": error.detach().square().mean(), "spread": spread(mean.detach().flatten(1))}
        logs["shown_error"] = (error.detach() * self.deviation).square().mean()  # of pixels between 0 and 1
        loss = error.square().mean()
        if log_variance is not None:
            divergence = gaussian_divergence(mean, log_variance).mean()
            logs["divergence"] = divergence.detach()
            loss = loss + 2 * self.kl * divergence / pixels[0].numel()
        return Output(loss, logs, seen={"first": mean.flatten(1)})

    def _latent(self, model: Backbone, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and, with `kl`, log variance of the latent map, [B, latent, side, side], fp32."""
        hidden = model.encode({"pixels": pixels})[:, -(self.side**2) :]  # without the class token
        found = self.narrow(hidden.transpose(1, 2).unflatten(-1, (self.side, self.side))).float()
        if not self.kl:
            return found, None
        mean, log_variance = found.chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, model: Backbone, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, C, S, S] -> the latent's mean [B, latent, side, side]."""
        return self._latent(model, pixels)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """[B, latent, side, side] -> normalised pixels [B, C, S, S], fp32."""
        return self.decoder(latent.to(self.narrow.weight.dtype)).float()

    @torch.no_grad()
    def reconstruct(self, model: Backbone, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(original, what the network is shown, what comes back), [B, C, S, S] between 0 and 1."""
        pixels = self.processor.plain(batch["pixels"])
        noisy = pixels + self.noise * torch.randn_like(pixels)
        return self.picture(pixels), self.picture(noisy), self.picture(self.decode(self.encode(model, noisy)))

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        psnr = -10 * torch.log10(torch.tensor(max(means["shown_error"], 1e-12))).item()
        return {**{k: v for k, v in means.items() if k != "shown_error"}, "psnr": psnr}


def _decoder(side: int, size: int, latent: int, width: int, channels: int) -> nn.Sequential:
    """[B, latent, side, side] -> [B, channels, size, size]."""
    width = -(-width // GROUP) * GROUP
    layers: list[nn.Module] = [nn.Conv2d(latent, width, 3, padding=1)]
    while side * 2 <= size:
        side, narrower = side * 2, max(GROUP, width // 2 // GROUP * GROUP)
        layers += [nn.GroupNorm(width // GROUP, width), nn.GELU(), nn.Upsample(scale_factor=2), nn.Conv2d(width, narrower, 3, padding=1)]
        width = narrower
    layers += [nn.GroupNorm(width // GROUP, width), nn.GELU()]
    if side != size:  # patches whose side is no power of two
        layers.append(nn.Upsample(size=(size, size), mode="bilinear"))
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))
