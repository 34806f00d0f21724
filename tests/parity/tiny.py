"""A tiny SD1.5 with random weights: every kind of block that the real one has, a few channels each."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextModel

import clip_vocabulary
import ldm_names
import sd15

# What differs from the real one.
UNET = sd15.UNET | dict(sample_size=16, block_out_channels=(32, 32, 32, 64), cross_attention_dim=64)
VAE = sd15.VAE | dict(sample_size=128, block_out_channels=(32, 32, 32, 64))
# Heads stay 64 wide, as in every CLIP.
TEXT_ENCODER = sd15.TEXT_ENCODER | dict(
    hidden_size=64, num_attention_heads=1, num_hidden_layers=3, intermediate_size=192, projection_dim=64
)


def build(seed: int) -> StableDiffusionPipeline:
    """The pipeline in float32, its weights already rounded to what a float16 file holds."""
    generator = torch.Generator().manual_seed(seed)
    pipeline = sd15.assemble(UNET, VAE, TEXT_ENCODER)
    models = [getattr(pipeline, component) for component in sd15.COMPONENTS]
    for model in models:
        _randomize(model, generator)
        model.eval().requires_grad_(False)
    _smooth(pipeline.vae.decoder)
    _calibrate(pipeline, generator)
    for model in models:
        model.load_state_dict({k: _as_stored(v).to(v.dtype) for k, v in model.state_dict().items()})
    return pipeline


def _as_stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Outputs as wide as inputs; norms and biases far enough from 1 and 0 that leaving one out shows."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embedding.weight" in name:
            parameter.data = noise * (0.1 if "position" in name else 0.5)
        elif parameter.ndim >= 2:
            parameter.data = noise / parameter[0].numel() ** 0.5
        elif name.endswith("weight"):
            parameter.data = 1 + 0.2 * noise
        else:
            parameter.data = 0.2 * noise


def _smooth(decoder: torch.nn.Module) -> None:
    """Kernels that mostly average over their neighbours draw patches of colour, not sand."""
    window = torch.tensor([0.25, 0.5, 0.25])
    window = window[:, None] * window
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            centre = module.weight[:, :, 1:2, 1:2]
            module.weight.data = 5 * centre * window + 0.3 * module.weight


def _calibrate(pipeline: StableDiffusionPipeline, generator: torch.Generator) -> None:
    """Scales the two last convolutions: noise of deviation 1 from the UNet, the VAE's colours well spread."""
    with torch.inference_mode():
        latents = torch.randn(4, 4, 16, 16, generator=generator)
        context = torch.randn(4, 77, 64, generator=generator)
        noise = pipeline.unet(latents, torch.tensor(500), encoder_hidden_states=context).sample
        image = pipeline.vae.decode(latents * 5).sample
    _rescale(pipeline.unet.conv_out, noise, 1.0)
    _rescale(pipeline.vae.decoder.conv_out, image, 0.5)


def _rescale(convolution: torch.nn.Conv2d, output: torch.Tensor, deviation: float) -> None:
    """So that each channel of `output` would have had that deviation, around the convolution's bias."""
    channels = output.transpose(0, 1).flatten(1)
    scale = deviation / channels.std(1)
    convolution.weight.data *= scale[:, None, None, None]
    convolution.bias.data -= channels.mean(1)
    convolution.bias.data *= scale


def save(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """As the original files have it: one file, float16, with the encoder and training's leftovers."""
    tensors = ldm_names.checkpoint(
        pipeline.unet.state_dict(),
        pipeline.vae.state_dict(),
        pipeline.text_encoder.state_dict(),
        levels=len(UNET["block_out_channels"]),
        layers=UNET["layers_per_block"],
    )
    tensors = {name: _as_stored(value).contiguous() for name, value in tensors.items()}
    positions = torch.arange(clip_vocabulary.CONTEXT)[None]
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    tensors |= ldm_names.training_buffers(sd15.BETAS["beta_start"], sd15.BETAS["beta_end"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


def check_reads_back(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Loads the file with diffusers' own map of names; every weight must be the one that was saved."""
    loaded = sd15.load(path, UNET, VAE, TEXT_ENCODER)
    for component in sd15.COMPONENTS:
        ours, theirs = getattr(pipeline, component).state_dict(), getattr(loaded, component).state_dict()
        assert ours.keys() == theirs.keys(), component
        for name, weight in ours.items():
            assert torch.equal(weight, theirs[name]), f"{component}: {name}"


def mend_clip_skip() -> None:
    """With a clip_skip, diffusers 0.42 looks for the layers where transformers had them before 5.6.

    Not before `check_reads_back`: its loader takes the same attribute for a sign of the old layout.
    """
    CLIPTextModel.text_model = property(lambda encoder: encoder)
