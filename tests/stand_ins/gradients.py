"""What the first step of a run computes: the gradient of every parameter."""

from pathlib import Path

import torch


def keep(file: Path, rank: int) -> None:
    """Before a run begins: let it write them into a file, by name, after its first step."""
    from megatron.core.utils import unwrap_model
    from megatron.training import training

    train_step = training.train_step

    def kept(forward_step, data, model, *rest, **kwargs):
        out = train_step(forward_step, data, model, *rest, **kwargs)
        if rank == 0 and not file.exists():
            [chunk] = unwrap_model(model)
            found = {name: p.main_grad.clone() for name, p in chunk.named_parameters()}
            torch.save(found, file)
        return out

    training.train_step = kept
