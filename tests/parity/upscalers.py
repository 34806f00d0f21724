"""Tiny upscalers with random weights, and what RRDBNet makes of small images with them.

RRDBNet as its papers describe it (arXiv:1809.00219, section 3.1; arXiv:2107.10833, section 3.2), under
Real-ESRGAN's names. `python tests/parity/upscalers.py` writes this part of the golden data alone;
`… bench FILE` times a real size on the weights of a file, for the figure in ARCHITECTURE.md.
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = Path(__file__).parent / "golden" / "upscalers"
SEED = 7
# name: scale, features, blocks, growth, prefix, stored as
NETS = {
    "x4": (4, 32, 2, 8, "", torch.float16),
    "x2": (2, 8, 1, 4, "params_ema.", torch.float32),
    "x1": (1, 8, 1, 4, "params.", torch.bfloat16),
}
SIZES = {"x4": [(12, 20), (5, 3)], "x2": [(12, 10)], "x1": [(12, 20)]}


class Dense(nn.Module):
    """Five convolutions, each of which sees its input and all that those before it gave."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for i in range(5):
            out = features if i == 4 else growth
            self.add_module(f"conv{i + 1}", nn.Conv2d(features + i * growth, out, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for i in range(4):
            seen.append(F.leaky_relu(self.get_submodule(f"conv{i + 1}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class Block(nn.Module):
    """A residual in residual dense block."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(features, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    def __init__(self, scale: int, features: int, blocks: int, growth: int) -> None:
        super().__init__()
        self.fold = 4 // scale
        conv = lambda c, n: nn.Conv2d(c, n, 3, padding=1)
        self.conv_first = conv(3 * self.fold**2, features)
        self.body = nn.Sequential(*(Block(features, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (conv(features, features) for _ in range(4))
        self.conv_last = conv(features, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.conv_first(F.pixel_unshuffle(image, self.fold))
        x = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


def build(name: str, generator: torch.Generator) -> tuple[RRDBNet, dict[str, torch.Tensor]]:
    """The net in float32, and its file: the net's weights are those that the file holds."""
    scale, features, blocks, growth, prefix, dtype = NETS[name]
    net = RRDBNet(scale, features, blocks, growth).eval()
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # Outputs about as wide as inputs, so that each convolution shows in the result.
        parameter.data = noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * noise
        parameter.data = parameter.data.to(dtype).float()
    return net, {prefix + key: value.to(dtype) for key, value in net.state_dict().items()}


def export(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    golden = {}
    for name in NETS:
        net, file = build(name, generator)
        save_file(file, folder / f"{name}.safetensors")
        for height, width in SIZES[name]:
            image = torch.rand(1, 3, height, width, generator=generator)
            golden[f"{name}.{height}x{width}.image"] = image
            golden[f"{name}.{height}x{width}.out"] = net(image)
    save_file(golden, folder / "golden.safetensors")


def bench(file: Path) -> None:
    """512x512 to 2048x2048 three times, in one piece and in the tiles of `Tiling::DEFAULT`; 23 blocks of 64 features.
    Makes the file of weights if there is none."""
    net = RRDBNet(4, 64, 23, 32).eval()
    if not file.exists():
        save_file(net.state_dict(), file)
    net.load_state_dict(load_file(file))
    image = torch.rand(1, 3, 512, 512)
    parts = [512 * i // 3 for i in range(4)]
    for _ in range(3):
        began = time.monotonic()
        net(image)
        whole = time.monotonic() - began
        began = time.monotonic()
        for top, bottom in zip(parts, parts[1:]):
            for left, right in zip(parts, parts[1:]):
                net(image[:, :, max(top - 16, 0) : bottom + 16, max(left - 16, 0) : right + 16])
        print(f"whole {whole:.1f} s, tiles {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(2)
    with torch.inference_mode():
        if sys.argv[1:2] == ["bench"]:
            bench(Path(sys.argv[2]))
        else:
            torch.use_deterministic_algorithms(True)
            export(FOLDER)
