"""What each stage before the scheduler gives: tokens, text embeddings, noise, one UNet step, one decode."""

import torch
import transformers
from diffusers import StableDiffusionPipeline

import clip_vocabulary
from prompts import PROMPTS

Tensors = dict[str, torch.Tensor]

EMBEDDED = ["a red fox in the snow", "", "a very long prompt that goes on and on, " * 12]
SEEDS = [0, 42, 2**32 + 5, 2**63 + 1]
# Torch fills 16 numbers at a time: a whole number of times, with a rest, and too few to begin.
NOISE_SIZES = [(8, 8), (8, 12), (5, 7), (1, 1), (1, 3)]
# 9x13 halves to odd sizes: an upsampler must meet the size of the skip, not twice its own.
UNET_STEPS = [("2x8x8", 2, 8, 8, 981), ("1x8x12", 1, 8, 12, 1), ("1x9x13", 1, 9, 13, 500)]
DECODED = [(8, 8), (8, 12), (5, 7)]


def tokens(pipeline: StableDiffusionPipeline) -> dict:
    """Token ids as the pipeline asks for them."""
    tokenizer = pipeline.tokenizer
    ids = tokenizer(PROMPTS, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
    return {
        "tokenizer": f"{type(tokenizer).__name__} of transformers {transformers.__version__}",
        "prompts": [{"prompt": prompt, "ids": row} for prompt, row in zip(PROMPTS, ids, strict=True)],
    }


def texts() -> dict:
    """All ids of a text, start and end left out, for both tokenizers; and what the first one's ids say, as warnings
    about a long prompt have it."""
    clip, open_clip = clip_vocabulary.tokenizer(), clip_vocabulary.tokenizer(padding="!")
    texts = []
    # In capitals the two disagree about it, by a flag of the files that nobody meant.
    for prompt in (prompt for prompt in PROMPTS if "<|EndOfText|>" not in prompt):
        ids, ids_2 = (t(prompt).input_ids[1:-1] for t in (clip, open_clip))
        texts.append({"text": prompt, "clip": ids, "open_clip": ids_2, "decoded": clip.batch_decode([ids])[0]})
    return {"texts": texts}


def text_embeddings(pipeline: StableDiffusionPipeline) -> tuple[Tensors, dict]:
    tensors = {}
    for index, prompt in enumerate(EMBEDDED):
        last, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        skip_none, _ = pipeline.encode_prompt(prompt, "cpu", 1, False, clip_skip=0)
        assert torch.equal(last, skip_none), "clip_skip 0 is the last layer"
        skip_one, _ = pipeline.encode_prompt(prompt, "cpu", 1, False, clip_skip=1)
        tensors |= {f"{index}.clip_skip_0": last, f"{index}.clip_skip_1": skip_one}
    return tensors, {"prompts": EMBEDDED}


def noise() -> Tensors:
    """Two draws after one another: the initial latents and the noise of a step."""
    tensors = {}
    for seed in SEEDS:
        for height, width in NOISE_SIZES:
            generator = torch.Generator("cpu").manual_seed(seed)
            for draw in ("first", "second"):
                tensors[f"{seed}.{height}x{width}.{draw}"] = torch.randn(1, 4, height, width, generator=generator)
    return tensors


def unet_steps(pipeline: StableDiffusionPipeline) -> tuple[Tensors, dict]:
    generator = torch.Generator().manual_seed(1)
    tensors, timesteps = {}, {}
    for name, batch, height, width, timestep in UNET_STEPS:
        latents = torch.randn(batch, 4, height, width, generator=generator)
        context = torch.randn(batch, 77, pipeline.unet.config.cross_attention_dim, generator=generator)
        out = pipeline.unet(latents, torch.tensor(timestep), encoder_hidden_states=context).sample
        tensors |= {f"{name}.latents": latents, f"{name}.context": context, f"{name}.out": out}
        timesteps[name] = timestep
    return tensors, {"timesteps": timesteps}


def vae_decodes(pipeline: StableDiffusionPipeline) -> Tensors:
    """`latents` as the UNet leaves them, before they are divided by the scaling factor; `image` in -1..1."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for height, width in DECODED:
        latents = torch.randn(1, 4, height, width, generator=generator)
        image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        tensors |= {f"{height}x{width}.latents": latents, f"{height}x{width}.image": image}
    return tensors
