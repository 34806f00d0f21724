"""Models too large to commit, as recipes that a test in any language can follow.

Every tensor is `mean + std * randn(shape)` from torch's generator, seeded with the CRC-32 of its canonical name: its
name in diffusers, with the component before it (`unet.conv_in.weight`). Where it is `smooth`, a 3x3 kernel mostly averages
over its neighbours. A recipe says the numbers and what single files make of the tensors. Modules that are alike share a
*kind*, so that a model takes a few kilobytes:

    modules: [[canonical prefix, prefix in the single file, number of the kind]]
    kinds:   [[[name in the single file, how, [[canonical name, shape, mean, std, smooth]]]]]
    configs: the configuration files of a diffusers folder

`how` is "same", "join" (one below the other), "transpose" or "pixel" (a matrix as a convolution of 1x1).
"""

import json
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

# Where a name is cut into a module that others are like, and what is inside of it.
MODULE = re.compile(r".*\.(?:resnets|attentions|transformer_blocks|layers|downsamplers|upsamplers)\.\d+\.")


@dataclass
class Draw:
    """How a tensor is made."""

    shape: tuple[int, ...]
    mean: float
    std: float
    smooth: bool = False

    def values(self, canonical: str) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(canonical.encode()))
        noise = torch.randn(self.shape, generator=generator)
        return self.mean + self.std * (smoothed(noise) if self.smooth else noise)


@dataclass
class Place:
    """A tensor of the single file: from which tensors, and how."""

    file: str
    how: str
    sources: list[str]


@dataclass
class Recipe:
    draws: dict[str, Draw] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    configs: dict[str, dict] = field(default_factory=dict)

    def single_file(self) -> dict[str, torch.Tensor]:
        made = {canonical: draw.values(canonical) for canonical, draw in self.draws.items()}
        return {p.file: placed(p.how, [made[s] for s in p.sources]).contiguous() for p in self.places}

    def component(self, component: str) -> dict[str, torch.Tensor]:
        """The tensors of one component under their names in a diffusers folder."""
        prefix = f"{component}."
        return {n.removeprefix(prefix): d.values(n) for n, d in self.draws.items() if n.startswith(prefix)}

    def write(self, path: Path) -> None:
        kinds, modules = {}, []
        for (canonical, file), parts in self._modules().items():
            modules.append([canonical, file, kinds.setdefault(json.dumps(parts), len(kinds))])
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = lambda rows: "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]"
        kinds = lines(json.loads(kind) for kind in kinds)
        configs = json.dumps(self.configs, separators=(",", ":"))
        path.write_text(f'{{"modules":{lines(modules)},\n"kinds":{kinds},\n"configs":{configs}}}\n')

    def _modules(self) -> dict[tuple[str, str], list]:
        """Places by the module that they belong to, each with what is inside of it."""
        groups: dict[str, list[Place]] = {}
        for place in self.places:
            module = MODULE.match(place.sources[0])
            groups.setdefault(module[0] if module else "", []).append(place)
        modules = {}
        for canonical, places in groups.items():
            file = _common_prefix([place.file for place in places]) if canonical else ""
            modules[canonical, file] = [
                [place.file.removeprefix(file), place.how, [self._row(s, canonical) for s in place.sources]] for place in places
            ]
        return modules

    def _row(self, canonical: str, module: str) -> list:
        draw = self.draws[canonical]
        return [canonical.removeprefix(module), draw.shape, draw.mean, draw.std, draw.smooth]


def _common_prefix(names: list[str]) -> str:
    """Up to and with a dot."""
    common = os.path.commonprefix(names)
    return common[: common.rfind(".") + 1]


def smoothed(noise: torch.Tensor) -> torch.Tensor:
    """Kernels that mostly average over their neighbours draw patches of colour, not sand."""
    window = torch.tensor([0.25, 0.5, 0.25])
    return 5 * noise[:, :, 1:2, 1:2] * (window[:, None] * window) + 0.3 * noise


def placed(how: str, sources: list[torch.Tensor]) -> torch.Tensor:
    if how == "join":
        return torch.cat(sources)
    (tensor,) = sources
    return {"same": lambda: tensor, "transpose": lambda: tensor.T, "pixel": lambda: tensor[..., None, None]}[how]()
