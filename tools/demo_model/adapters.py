"""LoRAs on the trained UNet: one that draws in four steps, and styles."""

import copy
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from tqdm import tqdm

import base
from base import SIGNAL, Latents, Model, denoising_loss
from training import train

LAYERS = [
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj",
]  # fmt: skip

LCM_RANK, LCM_STEPS, LCM_BATCH, LCM_GUIDANCE = 32, 1_500, 32, 5.0
# Then, in turns: pictures drawn as far as the student can, and steps of learning how they ought to end.
LCM_ROUNDS, LCM_DRAWN, LCM_PRACTICE_BATCH = (range(500), range(500, 1_200)), 1_536, 64
STYLE_RANK, STYLE_STEPS, STYLE_BATCH, STYLE_PICTURES = 12, 1_200, 32, 1_600


def _adapted(model: Model, rank: int) -> Model:
    adapted = copy.deepcopy(model).requires_grad_(False)
    torch.manual_seed(rank)
    adapted.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS))
    return adapted


def style(name: str, model: Model, vae, vocabulary, work: Path) -> UNet2DConditionModel:
    """The same captions, the pictures restyled."""
    latents = Latents.of(name, STYLE_PICTURES, vae, vocabulary, work)
    adapted = _adapted(model, STYLE_RANK)
    loss = lambda step, generator: denoising_loss(adapted, latents, STYLE_BATCH, generator)
    train(f"style-{name}", adapted, loss, steps=range(STYLE_STEPS), learning_rate=2e-3, work=work, average=0.99)
    return adapted.unet


# Latent consistency distillation (Luo et al., 2023, arXiv:2310.04378 and 2311.05556): wherever on the way from
# noise to picture the student stands, it is to foretell the picture that it would foretell a step further on.

SKIP = 20
TIMES = torch.arange(SKIP, 1001, SKIP) - 1


def lcm(model: Model, vae, vocabulary, work: Path) -> UNet2DConditionModel:
    latents = Latents.of("plain", base.PICTURES, vae, vocabulary, work)
    student = _adapted(model, LCM_RANK)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        values, tokens = latents.batch(LCM_BATCH, generator, model.empty, drop=0.0)
        noise = torch.randn(values.shape, generator=generator)
        index = torch.randint(len(TIMES), (LCM_BATCH,), generator=generator)
        now, next_ = TIMES[index], (TIMES[index] - SKIP).clamp(min=0)
        noisy = base.noised(values, noise, now)
        with torch.autocast("cpu", torch.bfloat16):
            foretold = _consistent(noisy, student(noisy, now, tokens), now)
            with torch.no_grad():
                guided = _guided(model, noisy, now, tokens)
                further = base.noised(_clean(noisy, guided, now), guided, next_)
                target = _consistent(further, student(further, next_, tokens), next_)
        return _pseudo_huber(foretold - target)

    train("lcm", student, loss, steps=range(LCM_STEPS), learning_rate=1e-3, work=work, average=0.99)
    _practise(student, model, latents, work)
    return student.unet


# What it foretells is blurred at first, and it has never seen its own blurred pictures with noise on them. So it
# draws as `LCMScheduler` would, in four steps, and at each learns where the teacher would arrive from there
# (regression to the ends of trajectories: Luhman and Luhman, 2021, arXiv:2101.02388; on the student's own way: Ross
# et al., 2011, arXiv:1011.0686).

# The timesteps of `LCMScheduler` for four steps, and in how many the teacher goes from there to the picture.
FOUR = ((999, 8), (759, 6), (499, 4), (259, 2))


def _practise(student: Model, teacher: Model, latents: Latents, work: Path) -> None:
    pool = []
    for number, steps in enumerate(LCM_ROUNDS, 1):
        path = work / f"lcm-drawn-{number}.pt"
        if not path.exists():
            torch.save(_drawn(student, teacher, latents, number), path)
        pool.append(torch.load(path))
        states, ends, tokens, times = (torch.cat(parts) for parts in zip(*pool, strict=True))

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            chosen = torch.randint(len(states), (LCM_PRACTICE_BATCH,), generator=generator)
            state, now = states[chosen], times[chosen]
            with torch.autocast("cpu", torch.bfloat16):
                foretold = _consistent(state, student(state, now, tokens[chosen]), now)
            return _pseudo_huber(foretold - ends[chosen])

        train(f"lcm-practice-{number}", student, loss, steps=steps, learning_rate=1e-3, work=work, average=0.99)


@torch.inference_mode()
def _drawn(student: Model, teacher: Model, latents: Latents, seed: int) -> tuple[torch.Tensor, ...]:
    """States on the student's way, where the teacher arrives from each, captions and timesteps."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    found = []
    for _ in tqdm(range(0, LCM_DRAWN, LCM_PRACTICE_BATCH), f"lcm, drawn {seed}", mininterval=5):
        values, tokens = latents.batch(LCM_PRACTICE_BATCH, generator, teacher.empty, drop=0.0)
        picture = torch.zeros_like(values)
        for timestep, steps in FOUR:
            now = torch.full((len(values),), timestep)
            state = base.noised(picture, torch.randn(values.shape, generator=generator), now)
            if timestep == FOUR[0][0]:
                state = torch.randn(values.shape, generator=generator)
            end = _arrived(teacher, state, tokens, timestep, steps)
            found.append((state, end, tokens, now))
            with torch.autocast("cpu", torch.bfloat16):
                picture = _consistent(state, student(state, now, tokens), now)
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _arrived(teacher: Model, state: torch.Tensor, tokens: torch.Tensor, start: int, steps: int) -> torch.Tensor:
    """The end of the guided teacher's trajectory, by DPM-Solver++ (2M) (Lu et al., 2022, arXiv:2211.01095)."""
    times = torch.linspace(start, 0, steps + 1).round().long()[:-1]
    alpha, sigma = SIGNAL[times].sqrt(), (1 - SIGNAL[times]).sqrt()
    logs = (alpha / sigma).log()
    before = None
    for i, timestep in enumerate(times):
        now = timestep.expand(len(state))
        with torch.autocast("cpu", torch.bfloat16):
            clean = _clean(state, _guided(teacher, state, now, tokens), now)
        if i + 1 == len(times):
            return clean
        width = logs[i + 1] - logs[i]
        ahead = clean if i == 0 else clean + (clean - before) * width / (logs[i] - logs[i - 1]) / 2
        state = sigma[i + 1] / sigma[i] * state - alpha[i + 1] * torch.expm1(-width) * ahead
        before = clean
    raise ValueError(steps)


def _guided(teacher: Model, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The noise that the teacher sees, with guidance (Ho and Salimans, 2022)."""
    texts = torch.cat([tokens, teacher.empty.expand_as(tokens)])
    asked, unasked = teacher(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), texts).float().chunk(2)
    return unasked + LCM_GUIDANCE * (asked - unasked)


def _pseudo_huber(error: torch.Tensor) -> torch.Tensor:
    """The loss of the consistency paper's code."""
    return (error.square() + 0.001**2).sqrt().sub(0.001).mean()


def _clean(noisy: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    signal = SIGNAL[timesteps][:, None, None, None]
    return (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()


def _consistent(noisy: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The boundary condition as `LCMScheduler` has it: at timestep 0 nothing changes."""
    scaled = 10.0 * timesteps[:, None, None, None]
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
    return skip * noisy + out * _clean(noisy, noise.float(), timesteps)


def save(unet: UNet2DConditionModel, path: Path, metadata: dict[str, str]) -> None:
    """In kohya's layout, as float16."""
    tensors = {}
    for name, layer in unet.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        key = "lora_unet_" + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = layer.lora_A["default"].weight
        tensors[f"{key}.lora_up.weight"] = layer.lora_B["default"].weight
        tensors[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha["default"]))
    rank = str(next(iter(tensors.values())).shape[0])
    metadata = dict(ss_network_module="networks.lora", ss_network_dim=rank, ss_network_alpha=rank) | metadata
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous() for name, value in tensors.items()}, path, metadata=metadata)
