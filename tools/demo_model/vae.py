"""The autoencoder: SD1.5's layout, 64 and 96 channels wide."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional

import pictures
from text import sd15
from training import train

# Steps and learning rate, of two trainings one after the other; each ends with whole pictures.
CYCLES = ((range(3_400), 8e-4), (range(3_400, 7_000), 5e-4))
WHOLE = 600
BATCH, PIECE = 4, 64
# 96 channels at the top: the layout normalises by 32 groups, and only from three channels a group on can brightness
# pass the last of them (of two, normalised, nothing but their order is left).
VAE = sd15.VAE | dict(
    block_out_channels=(96, 64, 64, 96), layers_per_block=1, sample_size=pictures.SIZE, scaling_factor=1.0
)


def pixels(images: list) -> torch.Tensor:
    """`[b, 3, h, w]` in -1 ..= 1"""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def trained(work: Path) -> AutoencoderKL:
    """Its latents are white: each channel has mean 0 and deviation 1, and none tells of another."""
    torch.manual_seed(1)
    vae = AutoencoderKL(**VAE)
    _start_as_thumbnail(vae, _batch(-1, torch.Generator().manual_seed(1), 16, PIECE))

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        full = any(step in steps[-WHOLE:] for steps, _ in CYCLES)
        x = _batch(step, generator, BATCH // 2 if full else BATCH, pictures.SIZE if full else PIECE)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(x).latent_dist
            decoded = vae.decode(latents.mean + latents.std * torch.randn(latents.mean.shape, generator=generator)).sample
        error = decoded.float() - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + 0.5 * edges + 1e-6 * latents.kl().float().mean()

    for cycle, (steps, rate) in enumerate(CYCLES, 1):
        train(f"vae-{cycle}", vae, loss, steps=steps, learning_rate=rate, work=work, average=0.99)
    vae.eval().requires_grad_(False)
    _whiten(vae)
    return vae


def _batch(step: int, generator: torch.Generator, count: int, size: int) -> torch.Tensor:
    """Pictures of all styles, whole or a piece of them.

    Pieces are halved pictures, whose edges are as sharp, or begin at multiples of 8, as what latents stand for does.
    """
    pick = lambda below: int(torch.randint(below, (), generator=generator))
    pieces = []
    for i in range(count):
        style = ("outline", "pixelated")[pick(2)] if pick(6) == 0 else "plain"
        image = pictures.draw(10_000_000 + step * 16 + i, style).image
        if size == pictures.SIZE:
            pieces.append(image)
        elif style == "plain" and pick(2):
            pieces.append(image.resize((size, size), Image.Resampling.BOX))
        else:
            left, top = (8 * pick((pictures.SIZE - size) // 8 + 1) for _ in range(2))
            pieces.append(image.crop((left, top, left + size, top + size)))
    return pixels(pieces)


# Where training begins. From random weights it takes an hour until colours come through; from a network that
# shrinks the picture to a thumbnail and enlarges that smoothly, it has but the details to learn.

REFERENCE = 4.0


def _start_as_thumbnail(vae: AutoencoderKL, examples: torch.Tensor) -> None:
    """Residual branches add nothing, the way past them hands three channels through, and latents are their means.

    At both ends, where all is normalised in groups of three channels, each group holds a signal and two large
    constants beside it: so the normalisation scales the signal by what the constants are, and keeps it.
    """
    with torch.no_grad():
        for name, layer in vae.named_modules():
            if name.endswith(("conv2", "to_out.0")):
                layer.weight.zero_()
                layer.bias.zero_()
            elif isinstance(layer, torch.nn.Conv2d) and "conv1" not in name:
                layer.weight.normal_(std=layer.weight[0].numel() ** -0.5)
                layer.bias.zero_()
                _hand_through(layer, (0, 1, 2), (0, 1, 2))
        for blocks in (vae.encoder.down_blocks, vae.decoder.up_blocks):
            widen = blocks[-1].resnets[0].conv_shortcut
            widen.weight.normal_(std=widen.in_channels**-0.5)
            _hand_through(widen, (0, 3, 6), (0, 1, 2))
            for beside, constant in ((1, REFERENCE), (2, -REFERENCE)):
                widen.weight[beside::3] = -widen.weight[0::3] / 2
                widen.bias[beside::3] = constant
        for last in (vae.encoder.conv_out, vae.decoder.conv_out):
            last.weight *= 0.02
            _hand_through(last, (0, 1, 2), (0, 3, 6))
        for between, size in ((vae.quant_conv, 8), (vae.post_quant_conv, 4)):
            between.weight.copy_(torch.eye(size)[:, :, None, None])
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -6.0
        thumbnail = functional.avg_pool2d(examples, 8)
        enlarged = functional.interpolate(thumbnail, scale_factor=8, mode="bilinear")
        _fit(vae.encoder.conv_out, vae.encode(examples).latent_dist.mean, thumbnail)
        _fit(vae.decoder.conv_out, vae.decode(vae.encode(examples).latent_dist.mean).sample, enlarged)


def _hand_through(layer: torch.nn.Conv2d, outputs: tuple[int, ...], inputs: tuple[int, ...]) -> None:
    side = torch.tensor([1.0, 2.0, 1.0]) / 4
    for out, in_ in zip(outputs, inputs, strict=True):
        layer.weight[out] = 0
        if layer.kernel_size == (1, 1):
            layer.weight[out, in_] = 1
        elif layer.stride == (2, 2):
            layer.weight[out, in_, :2, :2] = 0.25
        elif layer.in_channels == layer.out_channels:
            layer.weight[out, in_] = side[:, None] * side
        else:
            layer.weight[out, in_, 1, 1] = 1


def _fit(last: torch.nn.Conv2d, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Changes slope and offset of three channels such that they come out as wanted, by least squares."""
    for channel in range(3):
        x, y = found[:, channel].flatten(), wanted[:, channel].flatten()
        slope = ((x - x.mean()) * (y - y.mean())).mean() / x.var()
        last.weight[channel] *= slope
        last.bias[channel] = slope * last.bias[channel] + y.mean() - slope * x.mean()


def encode(vae: AutoencoderKL, images: list) -> torch.Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return vae.encode(pixels(images)).latent_dist.mean.float()


def _whiten(vae: AutoencoderKL) -> None:
    """Into the two convolutions of 1x1 between the autoencoder and its latents."""
    batches = [encode(vae, [pictures.draw(20_000_000 + 32 * b + i).image for i in range(32)]) for b in range(16)]
    channels = torch.cat(batches).transpose(0, 1).flatten(1).double()
    mean = channels.mean(1)
    values, vectors = torch.linalg.eigh(channels.cov())
    turn = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    back = torch.linalg.inv(turn)
    with torch.no_grad():
        weight, bias = vae.quant_conv.weight[:4, :, 0, 0].double(), vae.quant_conv.bias[:4].double()
        vae.quant_conv.weight[:4, :, 0, 0] = turn @ weight
        vae.quant_conv.bias[:4] = turn @ (bias - mean)
        # The deviations' logarithms: as much as the turn scales each channel, nearly.
        vae.quant_conv.bias[4:] += 2 * turn.diagonal().log()
        weight, bias = vae.post_quant_conv.weight[:, :, 0, 0].double(), vae.post_quant_conv.bias.double()
        vae.post_quant_conv.weight[:, :, 0, 0] = weight @ back
        vae.post_quant_conv.bias.copy_(bias + weight @ mean)


def rescale(vae: AutoencoderKL, factor: float) -> None:
    """So that latents times `factor`, which the layout has fixed, are white again."""
    with torch.no_grad():
        vae.quant_conv.weight[:4] /= factor
        vae.quant_conv.bias[:4] /= factor
        vae.quant_conv.bias[4:] -= 2 * torch.log(torch.tensor(factor))
        vae.post_quant_conv.weight *= factor
