import pytest
import torch
from torch import nn

from vat.batch_norm import reestimate_batch_norm


def network():
    """Batch norm, dropout, batch norm with another momentum, and one without statistics."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(3, 4),
        nn.BatchNorm1d(4, momentum=0.3),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
        nn.BatchNorm1d(5, momentum=0.01),
        nn.BatchNorm1d(5, track_running_stats=False),
    ]
    return nn.Sequential(*layers).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, generator=generator, dtype=torch.float64) * n + n for n in (4, 7, 5)]


def by_hand(net):
    """Mean and unbiased variance of each batch at the input of both layers, averaged over the batches."""
    first, second = [], []
    for x in batches():
        h = x @ net[0].weight.T + net[0].bias
        mean, variance = h.mean(0), h.var(0)
        first.append((mean, variance))
        h = (h - mean) / (h.var(0, correction=0) + net[1].eps).sqrt() * net[1].weight + net[1].bias  # no dropout
        h = h @ net[3].weight.T + net[3].bias
        second.append((h.mean(0), h.var(0)))
    return [[torch.stack(values).mean(0) for values in zip(*pairs, strict=True)] for pairs in (first, second)]


def test_statistics_become_the_mean_over_the_batches():
    net = network()
    with torch.no_grad():
        expected = by_hand(net)
    net[1].running_mean.fill_(1e6)  # must not influence the new statistics
    reestimate_batch_norm(net, batches())
    for layer, (mean, variance) in zip((net[1], net[4]), expected, strict=True):
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-12, atol=1e-12)


def test_a_second_estimate_replaces_the_first():
    net = network()
    reestimate_batch_norm(net, [torch.randn(9, 3, dtype=torch.float64)])
    reestimate_batch_norm(net, batches())
    other = network()
    reestimate_batch_norm(other, batches())
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), other.buffers(), strict=True))


def marked(net):
    """Set a different mode on every module."""
    for i, module in enumerate(net.modules()):
        module.training = i % 2 == 0
    return [module.training for module in net.modules()]


def test_modes_momenta_and_parameters_do_not_change():
    net = network()
    modes, parameters = marked(net), [p.clone() for p in net.parameters()]
    reestimate_batch_norm(net, batches())
    assert [module.training for module in net.modules()] == modes
    assert (net[1].momentum, net[4].momentum) == (0.3, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_modes_and_momenta_do_not_change_after_an_exception():
    net = network()
    modes = marked(net)

    def broken():
        yield batches()[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        reestimate_batch_norm(net, broken())
    assert [module.training for module in net.modules()] == modes
    assert (net[1].momentum, net[4].momentum) == (0.3, 0.01)


def test_evaluation_uses_the_new_statistics():
    x = batches()[1]
    net = network().eval()
    before = net[:5](x)
    reestimate_batch_norm(net, [x])
    after = net[:5](x)
    assert not torch.allclose(before, after, atol=0.1)
    # With one batch the statistics are that batch's: mean 0 and variance 1, except for the first layer's factor n / (n - 1).
    torch.testing.assert_close(after.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(after.var(0), torch.full((5,), 6 / 7, dtype=torch.float64), rtol=1e-3, atol=0)


def test_a_network_without_batch_norm_is_not_called():
    def unused():
        raise AssertionError("no inputs are needed")
        yield

    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    reestimate_batch_norm(net, unused())


def test_an_empty_loader_is_refused_and_the_statistics_stay():
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    used_up = iter([torch.randn(8, 5)])
    reestimate_batch_norm(network, used_up)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="inputs contains no batch"):
        reestimate_batch_norm(network, used_up)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
