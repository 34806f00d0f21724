"""What every training here shares: a loop with a progress bar that can be stopped and taken up again."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

SAVE_EVERY = 250


def train(
    name: str,
    module: torch.nn.Module,
    loss: Callable[[int, torch.Generator], torch.Tensor],
    *,
    steps: range,
    learning_rate: float,
    work: Path,
    average: float = 0.0,
    warmup: int = 50,
) -> None:
    """Trains what requires a gradient in `module` with AdamW and a cosine schedule, and leaves it trained.

    `loss` gets the step's number and a generator seeded by it, so a run that was stopped goes on as if it never had.
    `steps`: the numbers; a second training of the same weights (Loshchilov and Hutter, 2017) counts on from the first.
    `average`: decay of the moving average of the weights that is kept at the end; 0 keeps the last ones.
    """
    finished, halfway = work / f"{name}.pt", work / f"{name}.part.pt"
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if finished.exists():
        _put(trained, torch.load(finished))
        print(f"{name}: done before ({finished})")
        return
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    averaged = {n: p.detach().clone() for n, p in trained.items()}
    first = steps.start
    if halfway.exists():
        state = torch.load(halfway)
        _put(trained, state["weights"])
        averaged, first = state["averaged"], state["step"]
        optimizer.load_state_dict(state["optimizer"])
    bar = tqdm(range(first, steps.stop), name, initial=first, total=steps.stop, mininterval=5, smoothing=0.05)
    recent = 0.0
    for step in bar:
        done = step - steps.start
        rate = min((done + 1) / warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * done / len(steps))) / 2)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        value = loss(step, torch.Generator().manual_seed(step))
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # Early on an average over many steps would still be the random beginning.
        decay = min(average, (done + 1) / (done + 10))
        for n, p in trained.items():
            averaged[n].lerp_(p.detach(), 1 - decay)
        recent = value.item() if step == first else 0.98 * recent + 0.02 * value.item()
        bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0:
            weights = {n: p.detach() for n, p in trained.items()}
            state = dict(weights=weights, averaged=averaged, optimizer=optimizer.state_dict(), step=step + 1)
            _save(state, halfway)
    _put(trained, averaged)
    _save(averaged, finished)
    halfway.unlink(missing_ok=True)


def _put(parameters: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def _save(state: dict, path: Path) -> None:
    """All or nothing, so that being stopped here leaves the file before."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    partial.replace(path)
