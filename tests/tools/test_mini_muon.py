"""The trainer's optimiser for stacks of matrices."""

import mini_muon
import pytest
import torch
from torch import distributed as dist


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """One worker that is its own group."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/one", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 48)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = mini_muon.orthogonal(matrices)
    values = left.mT @ found @ right.mT
    assert torch.diagonal(values, dim1=1, dim2=2).sub(1).abs().max() < 0.4
    assert (values - torch.diag_embed(torch.diagonal(values, dim1=1, dim2=2))).abs().max() < 1e-3


def test_a_stack_moves_as_its_matrices_do_in_torchs_muon():
    """PyTorch's iterates in bfloat16: three significant digits."""
    start = torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(1))
    stack = torch.nn.Parameter(start.clone())
    single = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    ours = mini_muon.Muon([stack], lr=0.02, weight_decay=0.05)
    theirs = torch.optim.Muon(single, lr=0.02, weight_decay=0.05, momentum=0.95, nesterov=True)
    for step in range(3):
        stack.grad = torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(step))
        for matrix, gradient in zip(single, stack.grad, strict=True):
            matrix.grad = gradient.clone()
        ours.step()
        theirs.step()
    moved = stack.detach() - start
    expected = torch.stack([matrix.detach() for matrix in single]) - start
    assert (moved - expected).norm() < 0.02 * expected.norm()
