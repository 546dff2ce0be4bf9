"""Dropout that draws in bulk: rates, scale, gradient, seeds."""

import pytest
import torch
from torch import nn

from sslcli.dropout import Dropout, dropout, quicken


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_so_many_are_dropped_and_the_mean_stays(rate, kind) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 999, dtype=kind, requires_grad=True)
    y = dropout(x, rate, True)
    zero = (y == 0).float().mean()
    assert float(zero) == pytest.approx(rate, abs=0.002) and float(y.float().mean()) == pytest.approx(1, abs=0.01)
    assert (y == 0).float().mean(0).std() < 0.03 and (y == 0).float().mean(1).std() < 0.03, "spread evenly over rows and columns"
    y.float().sum().backward()
    assert torch.equal(x.grad, y.detach()), "the gradient goes where the values went"


def test_the_librarys_seed_decides() -> None:
    x = torch.ones(7, 5)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.stack([dropout(x, 0.5, True) for _ in range(3)]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1]), "each call draws anew"


def test_modules_are_quickened_and_rest_in_evaluation() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.0)))
    before = dict(net.state_dict())
    quicken(net)
    assert isinstance(net[1], Dropout) and net[1].p == 0.3 and net.state_dict().keys() == before.keys()
    x = torch.randn(64, 4)
    assert torch.equal(net.eval()(x), net[0](x)) and not torch.equal(net.train()(x), net[0](x))
