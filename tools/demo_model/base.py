"""The UNet and its text encoder, trained together on latents and captions (Ho et al., 2020; Rombach et al., 2022)."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

import pictures
import vae as autoencoder
from text import EMPTY, LENGTH, Vocabulary, with_unknown_words
from training import train

WIDTH = 64
PICTURES = 8_000
# Steps of two trainings one after the other.
CYCLES = (range(3_600), range(3_600, 7_600))
BATCH = 64

TEXT_ENCODER = dict(
    max_position_embeddings=LENGTH,
    hidden_size=WIDTH,
    num_attention_heads=1,
    num_hidden_layers=4,
    intermediate_size=256,
    hidden_act="quick_gelu",
    attn_implementation="eager",  # as for the UNet below
    projection_dim=WIDTH,
)
UNET = dict(
    sample_size=pictures.SIZE // 8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 96),
    layers_per_block=1,
    attention_head_dim=8,  # in SD1.x this is the number of heads
    cross_attention_dim=WIDTH,
    norm_num_groups=32,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)

# SD's noise: `scaled_linear`.
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SIGNAL = (1 - BETAS).cumprod(0).float()


@dataclass
class Latents:
    """`[n, 4, 16, 16]`, white, and the captions' tokens, `[n, 77]`."""

    values: torch.Tensor
    tokens: torch.Tensor

    @staticmethod
    def of(style: str, count: int, vae, vocabulary: Vocabulary, work: Path) -> "Latents":
        path = work / f"latents-{style}.pt"
        if not path.exists():
            values, tokens = [], []
            for first in tqdm(range(0, count, 16), f"latents, {style}", mininterval=5):
                drawn = [pictures.draw(number, style) for number in range(first, first + 16)]
                values.append(autoencoder.encode(vae, [picture.image for picture in drawn]).half())
                tokens.append(vocabulary.encode([picture.caption for picture in drawn]).short())
            torch.save(dict(values=torch.cat(values), tokens=torch.cat(tokens)), path)
        saved = torch.load(path)
        return Latents(saved["values"].float(), saved["tokens"].long())

    def batch(self, count: int, generator: torch.Generator, empty: torch.Tensor, drop: float = 0.1):
        """Some pictures; a share of them with the empty caption, for guidance (Ho and Salimans, 2022)."""
        chosen = torch.randint(len(self.values), (count,), generator=generator)
        rng = random.Random(int(chosen[0]))
        tokens = with_unknown_words(self.tokens[chosen], 0.08, rng)
        dropped = torch.rand(count, generator=generator) < drop
        return self.values[chosen], torch.where(dropped[:, None], empty, tokens)


def spread_tokens(encoder: CLIPTextModel) -> None:
    """Tokens start farther apart than CLIP's: there are few of them, and they must be told apart within minutes."""
    encoder.get_input_embeddings().weight.data *= 25


class Model(torch.nn.Module):
    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.text = CLIPTextModel(CLIPTextConfig(vocab_size=len(vocabulary), eos_token_id=len(vocabulary) - 1, **TEXT_ENCODER))
        spread_tokens(self.text)
        self.unet = UNet2DConditionModel(**UNET)
        # Plain products are faster than fused attention backwards on a CPU with bfloat16.
        self.unet.set_attn_processor(AttnProcessor())
        self.empty = vocabulary.encode([EMPTY])

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, timesteps, encoder_hidden_states=self.text(tokens).last_hidden_state).sample


def noised(values: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    signal = SIGNAL[timesteps][:, None, None, None]
    return signal.sqrt() * values + (1 - signal).sqrt() * noise


def denoising_loss(model, latents: Latents, count: int, generator: torch.Generator) -> torch.Tensor:
    """The noise's squared error, weighted by min(SNR, 5) / SNR (Hang et al., 2023, arXiv:2303.09556)."""
    values, tokens = latents.batch(count, generator, model.empty)
    noise = torch.randn(values.shape, generator=generator)
    timesteps = torch.randint(1000, (count,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(noised(values, noise, timesteps), timesteps, tokens)
    snr = SIGNAL[timesteps] / (1 - SIGNAL[timesteps])
    errors = (predicted.float() - noise).square().mean((1, 2, 3))
    return (errors * snr.clamp(max=5) / snr).mean()


def trained(vae, vocabulary: Vocabulary, work: Path) -> Model:
    latents = Latents.of("plain", PICTURES, vae, vocabulary, work)
    torch.manual_seed(2)
    model = Model(vocabulary)
    loss = lambda step, generator: denoising_loss(model, latents, BATCH, generator)
    for cycle, steps in enumerate(CYCLES, 1):
        train(f"base-{cycle}", model, loss, steps=steps, learning_rate=1e-3, work=work, average=0.999, warmup=200)
    return model.eval().requires_grad_(False)
