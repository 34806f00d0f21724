"""The trained models as checkpoints: one file under the original names, float16.

Of the 49,408 tokens that CLIP's vocabulary has the models know some eighty; so that the table of all of them is not most
of the file, it is float8.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import base
import xl
from text import Vocabulary, ldm_names, sd15
from vae import VAE, rescale

# What the layouts multiply latents by.
SD1_SCALE, SDXL_SCALE = 0.18215, 0.13025
VAE_LEVELS = 4
LICENCE = {"format": "pt", "modelspec.license": "CC0-1.0", "modelspec.author": "the authors of diffused"}


def save_sd1(model: base.Model, vae: AutoencoderKL, vocabulary: Vocabulary, path: Path) -> None:
    text = _clip(model.text, vocabulary)
    layers = base.UNET["layers_per_block"]
    tensors = ldm_names.checkpoint(model.unet.state_dict(), _scaled(vae, SD1_SCALE), text, VAE_LEVELS, layers)
    _save(tensors, path, "diffused demo")


def load_sd1(path: Path, vocabulary: Vocabulary) -> tuple[base.Model, AutoencoderKL]:
    """What `save_sd1` wrote, as far as float16 keeps it, to train on from there."""
    loaded = sd15.load(path, base.UNET, VAE, sd15.TEXT_ENCODER | base.TEXT_ENCODER)
    model = base.Model(vocabulary)
    model.unet.load_state_dict(loaded.unet.state_dict())
    text = loaded.text_encoder.state_dict()
    (table,) = (name for name in text if name.endswith("token_embedding.weight"))
    text[table] = vocabulary.shrink(text[table])
    model.text.load_state_dict(text)
    rescale(loaded.vae, 1 / SD1_SCALE)
    return model.eval().requires_grad_(False), loaded.vae.eval().requires_grad_(False)


def save_sdxl(model: xl.Model, vae: AutoencoderKL, vocabulary: Vocabulary, path: Path) -> None:
    layers = xl.UNET["layers_per_block"]
    tensors = ldm_names.checkpoint(model.unet.state_dict(), _scaled(vae, SDXL_SCALE), {}, VAE_LEVELS, layers)
    for name, value in _clip(model.text, vocabulary).items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name}"] = value
    second = {f"conditioner.embedders.1.model.{name}": value for name, value in _open_clip(model.text_2, vocabulary).items()}
    _save(tensors | second, path, "diffused demo XL")


def _scaled(vae: AutoencoderKL, scale: float) -> ldm_names.Weights:
    copied = AutoencoderKL.from_config(vae.config)
    copied.load_state_dict(vae.state_dict())
    rescale(copied, scale)
    return copied.state_dict()


def _clip(encoder: torch.nn.Module, vocabulary: Vocabulary) -> ldm_names.Weights:
    """Names below `text_model.`, with the whole table of tokens."""
    weights = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    table = "embeddings.token_embedding.weight"
    weights[table] = vocabulary.expand(weights[table])
    return weights


def _open_clip(encoder: torch.nn.Module, vocabulary: Vocabulary) -> ldm_names.Weights:
    weights = _clip(encoder, vocabulary)
    named = {"text_projection": weights.pop("text_projection.weight").T, "logit_scale": torch.tensor(0.0)}
    joined = {}
    for name, value in weights.items():
        joined.setdefault(ldm_names.open_clip_name(name), []).append((name, value))
    for file, parts in joined.items():
        # Several only where queries, keys and values share one.
        parts.sort(key=lambda part: "qkv".index(part[0].split("self_attn.")[1][0]) if len(parts) > 1 else 0)
        named[file] = torch.cat([value for _, value in parts])
    return named


def _save(tensors: ldm_names.Weights, path: Path, title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = lambda name: torch.float8_e4m3fn if "token_embedding" in name else torch.float16
    stored = {name: value.to(dtype(name)).contiguous() for name, value in tensors.items()}
    save_file(stored, path, metadata=LICENCE | {"modelspec.title": title})
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
