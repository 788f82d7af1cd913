"""Weights sharded over processes: a wrapped optimiser learns the step sizes of the whole ones."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

from clmeta import MetaOptimize


def learn(shard):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = MetaOptimize(
        net.named_parameters(), torch.optim.AdamW, blocks="layer", eta=0.05, weight_decay=0.1
    )
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))

    def closure():
        optimizer.zero_grad()
        loss = (net(x) ** 2).sum()
        loss.backward()
        return loss

    for i in range(6):
        if i % 2:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return optimizer.step_sizes()


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    sizes = learn(shard=True)
    if rank == 0:
        (folder / "sizes.json").write_text(json.dumps(sizes))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")
def test_sharded_weights_learn_as_whole_ones(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    sharded = json.loads((tmp_path / "sizes.json").read_text())
    assert sharded == pytest.approx(learn(shard=False), rel=1e-4)
    assert all(size != pytest.approx(1e-4, rel=1e-2) for size in sharded.values())
