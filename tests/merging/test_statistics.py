import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch import nn

from lightning_rebasin.errors import DataError
from lightning_rebasin.merging import reset_batch_norm


def batches(count=3, size=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, 3, 8, 8, generator=g) * (i + 1) for i in range(count)
    ]


def test_first_layer_statistics_are_the_mean_over_distinct_batches():
    net, data = randomise(BatchNormCNN(4)), batches()
    new = reset_batch_norm(net, data)
    with torch.no_grad():
        seen = [net.conv1(x) for x in data]
    means = torch.stack([s.mean((0, 2, 3)) for s in seen])
    variances = torch.stack([s.var((0, 2, 3)) for s in seen])
    torch.testing.assert_close(new.bn1.running_mean, means.mean(0))
    torch.testing.assert_close(new.bn1.running_var, variances.mean(0))
    assert not torch.allclose(
        variances.mean(0), variances[0]
    )  # one batch again and again would not do
    assert int(new.bn1.num_batches_tracked) == 3


def test_later_layers_see_what_the_batch_statistics_of_earlier_ones_make():
    net, data = randomise(BatchNormCNN(4)), batches(1)
    new = reset_batch_norm(net, data)
    oracle = randomise(BatchNormCNN(4)).train()
    with torch.no_grad():
        y = nn.functional.batch_norm(
            net.conv1(data[0]),
            None,
            None,
            net.bn1.weight,
            net.bn1.bias,
            training=True,
        )
        y = net.conv2(nn.functional.max_pool2d(y.relu(), 2))
    torch.testing.assert_close(new.bn2.running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(new.bn2.running_var, y.var((0, 2, 3)))
    assert oracle is not new


def test_the_module_is_left_alone_and_dropout_stays_off():
    net = nn.Sequential(
        nn.Dropout(0.9), nn.BatchNorm2d(3, momentum=0.3)
    ).train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    data = batches()
    new = reset_batch_norm(net, data)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net.training
    assert net[1].training
    torch.testing.assert_close(
        new[1].running_mean,
        torch.stack([x.mean((0, 2, 3)) for x in data]).mean(0),
    )
    assert (new[1].momentum, new.training) == (0.3, False)


def test_batches_may_be_tuples_dicts_and_of_another_dtype():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2).double()

        def forward(self, x, scale):
            return self.bn(x * scale)

    data = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    new = reset_batch_norm(Keywords(), [{"x": data, "scale": 2}])
    assert new.bn.running_mean.tolist() == [2, 6]
    assert reset_batch_norm(
        nn.BatchNorm1d(2), [(data, "label")]
    ).running_mean.tolist() == [1, 3]


def test_synchronised_batch_norm_works_on_one_cpu():
    net, data = BatchNormCNN(2), batches(2)
    expected = reset_batch_norm(net, data).state_dict()
    got = reset_batch_norm(nn.SyncBatchNorm.convert_sync_batchnorm(net), data)
    assert all(
        torch.equal(t, expected[n]) for n, t in got.state_dict().items()
    )
    assert "forward" not in vars(got.bn1)


def test_without_batch_norms_or_batches():
    net = mlp(3, 4, 2)
    new = reset_batch_norm(net, [])
    assert new is not net
    assert torch.equal(new[0].weight, net[0].weight)
    with pytest.raises(DataError, match="no batches"):
        reset_batch_norm(BatchNormCNN(2), [])
