"""A tiny SD1.5 with random weights: every kind of block that the real one has, a few channels each."""

from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import clip_vocabulary
import ldm_names

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LAYERS = 2

UNET = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 32, 32, 64),
    layers_per_block=LAYERS,
    attention_head_dim=8,  # in SD1.x this is the number of heads
    cross_attention_dim=64,
    norm_num_groups=32,
    use_linear_projection=False,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
VAE = dict(
    sample_size=128,
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=(32, 32, 32, 64),
    layers_per_block=LAYERS,
    norm_num_groups=32,
    scaling_factor=0.18215,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
TEXT_ENCODER = dict(
    vocab_size=clip_vocabulary.VOCABULARY_SIZE,
    max_position_embeddings=clip_vocabulary.CONTEXT,
    hidden_size=64,
    num_attention_heads=1,  # heads are 64 wide, as in every CLIP
    num_hidden_layers=3,
    intermediate_size=192,
    hidden_act="quick_gelu",
    projection_dim=64,
    eos_token_id=49407,
)


def scheduler() -> DDIMScheduler:
    """What the scheduler file of SD1.5 says, as a DDIM; the others are made from its configuration."""
    return DDIMScheduler(
        **BETAS,
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def build(seed: int) -> StableDiffusionPipeline:
    """The pipeline in float32, its weights already rounded to what a float16 file holds."""
    generator = torch.Generator().manual_seed(seed)
    unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
    for model in (unet, vae, text_encoder):
        _randomize(model, generator)
        model.eval().requires_grad_(False)
    _smooth(vae.decoder)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip_vocabulary.tokenizer(),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    _calibrate(pipeline, generator)
    for model in (unet, vae, text_encoder):
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
            module.weight.data = 3 * centre * window * 1.7 + 0.3 * module.weight


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
        layers=LAYERS,
    )
    tensors = {name: _as_stored(value).contiguous() for name, value in tensors.items()}
    positions = torch.arange(clip_vocabulary.CONTEXT)[None]
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    tensors |= ldm_names.training_buffers(BETAS["beta_start"], BETAS["beta_end"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


def check_reads_back(pipeline: StableDiffusionPipeline, path: Path, folder: Path) -> None:
    """Loads the file with diffusers' own map of names; every weight must be the one that was saved.

    `folder` is a scratch folder for the configuration files that diffusers wants beside a single file.
    """
    pipeline.save_config(folder)
    for name in ("unet", "vae", "scheduler"):
        getattr(pipeline, name).save_config(folder / name)
    pipeline.text_encoder.config.save_pretrained(folder / "text_encoder")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    diffusers.utils.logging.disable_progress_bar()
    loaded = StableDiffusionPipeline.from_single_file(path, config=str(folder), local_files_only=True)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        assert ours.keys() == theirs.keys(), name
        for key, value in ours.items():
            assert torch.equal(value.float(), theirs[key].float()), f"{name}: {key}"
    spare = len(load_file(path)) - sum(len(getattr(pipeline, n).state_dict()) for n in ("unet", "vae", "text_encoder"))
    assert spare == 13, f"{spare} tensors of the file are none of the model's"


def mend_clip_skip() -> None:
    """With a clip_skip, diffusers 0.42 looks for the layers where transformers had them before 5.6.

    Not before `check_reads_back`: its loader takes the same attribute for a sign of the old layout.
    """
    CLIPTextModel.text_model = property(lambda encoder: encoder)
