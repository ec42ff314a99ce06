"""Muon (Jordan et al. 2024), for matrices and for stacks of them: momentum whose singular values are made alike.

`torch.optim.Muon` takes matrices alone; here the experts of a layer are one parameter (experts, rows, columns),
matrices of one shape are orthogonalised in one call, and every worker orthogonalises a part of them.
"""

from collections import defaultdict

import torch
from torch import distributed as dist

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the paper
ITERATIONS = 5


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return float32 (n, rows, columns) with singular values near 1, and the singular vectors as they are."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


# Matrices between two layers learn by Muon; tables, routers and what reads pixels by AdamW.
NOT_HIDDEN = ("embed_tokens.weight", "lm_head.weight", "gate.weight", "patch_embed.proj.weight")
NOT_OF_THE_MODEL = "heads."  # linear heads that serve training only


def split_parameters(
    named: dict[str, torch.nn.Parameter],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Return the matrices between layers, which Muon trains, the other matrices, and what is no matrix."""
    matrices, tables, slim = [], [], []
    for name, parameter in named.items():
        if parameter.dim() < 2:
            slim.append(parameter)
        elif name.endswith(NOT_HIDDEN) or NOT_OF_THE_MODEL in name:
            tables.append(parameter)
        else:
            matrices.append(parameter)
    return matrices, tables, slim


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Mean over the workers, in one message."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def build_optimisers(
    named: dict[str, torch.nn.Parameter], rate: float, muon_rate: float
) -> list[torch.optim.Optimizer]:
    """Return AdamW and, for the matrices between layers, Muon; see `split_parameters`."""
    matrices, tables, slim = split_parameters(named)
    groups = [{"params": tables, "weight_decay": 0.02}, {"params": slim, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    return [adam, Muon(matrices, lr=muon_rate, weight_decay=0.05)]


def set_rates(optimisers: list[torch.optim.Optimizer], share: float) -> None:
    """Set each learning rate to a share of what the optimiser was built with."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = optimiser.defaults["lr"] * share


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; parameters (…, rows, columns)."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[tuple(parameter.shape[-2:])].append(parameter)
            for shape, parameters in alike.items():
                self._step(group, shape, parameters)

    def _step(self, group, shape: tuple[int, int], parameters: list[torch.nn.Parameter]) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(state["momentum"], group["momentum"]).reshape(-1, *shape))
        updates = _shared_out(torch.cat(directions)) * max(1.0, shape[0] / shape[1]) ** 0.5
        for parameter, update in zip(parameters, updates.split([len(d) for d in directions]), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(update.view_as(parameter), alpha=group["lr"])


def _shared_out(matrices: torch.Tensor) -> torch.Tensor:
    """Return `orthogonal(matrices)`, computed by all workers, which hold the same matrices."""
    workers = dist.get_world_size()
    updates = torch.zeros_like(matrices)
    updates[dist.get_rank() :: workers] = orthogonal(matrices[dist.get_rank() :: workers])
    dist.all_reduce(updates)
    return updates
