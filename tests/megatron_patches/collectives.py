"""Checks of the collectives Megatron uses, run by every rank: each against its definition.

Rank r's data is small whole numbers plus 10 r, exact in bf16.
"""

import torch
import torch.distributed as dist

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def data(rank, size, dtype):
    """Rank `rank`'s tensor [size, 2]."""
    return (torch.arange(size * 2).view(size, 2) % 7 + 10 * rank).to(dtype)


def everyone(size, dtype):
    return [data(rank, size, dtype) for rank in range(dist.get_world_size())]


def check(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def reductions(dtype):
    combine = {
        dist.ReduceOp.SUM: lambda x: x.sum(0),
        dist.ReduceOp.AVG: lambda x: x.mean(0),
        dist.ReduceOp.MAX: lambda x: x.amax(0),
        dist.ReduceOp.MIN: lambda x: x.amin(0),
    }
    rank, world = dist.get_rank(), dist.get_world_size()
    for op, combined in combine.items():
        expected = combined(torch.stack(everyone(2 * world, torch.float64))).to(dtype)
        x = data(rank, 2 * world, dtype)
        dist.all_reduce(x, op=op)
        check(x, expected)
        out = torch.empty(2, 2, dtype=dtype, device="cuda")
        handle = dist.reduce_scatter_tensor(out, data(rank, 2 * world, dtype), op=op, async_op=True)
        handle.wait()
        check(out, expected[2 * rank : 2 * rank + 2])
    x = data(rank, 2, dtype)
    dist.reduce(x, dst=1)
    if rank == 1:
        check(x, sum(everyone(2, dtype)))


def shards_in_place(dtype):
    """As the distributed optimizer does: the shard is a view of the whole buffer."""
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = data(rank, 2 * world, dtype)
    shard = whole.view(-1).chunk(world)[rank]
    dist.reduce_scatter_tensor(shard, whole.view(-1))
    check(shard, sum(everyone(2 * world, dtype)).view(-1).chunk(world)[rank])
    whole = torch.zeros(2 * world, 2, dtype=dtype).view(-1)
    shard = whole.chunk(world)[rank]
    shard.copy_(data(rank, 2, dtype).view(-1))
    dist.all_gather_into_tensor(whole, shard)
    check(whole, torch.cat(everyone(2, dtype)).view(-1))


def coalesced(dtype):
    """As data parallelism does for its buckets, waiting for all at once."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for size in (world, 2 * world):
        total = sum(everyone(size, dtype))
        reduced = data(rank, size, dtype)
        with dist._coalescing_manager(None, async_ops=True) as manager:
            dist.all_reduce(reduced, async_op=True)
        manager.wait()
        check(reduced, total)
        scattered = [torch.empty(size // world, 2, dtype=dtype) for _ in range(2)]
        with dist._coalescing_manager(None, async_ops=True) as manager:
            for out in scattered:
                dist.reduce_scatter_tensor(out, data(rank, size, dtype), async_op=True)
        manager.wait()
        gathered = [torch.empty(size, 2, dtype=dtype) for _ in range(2)]
        with dist._coalescing_manager(None, async_ops=True) as manager:
            for out, part in zip(gathered, scattered, strict=True):
                dist.all_gather_into_tensor(out, part, async_op=True)
        manager.wait()
        for out in gathered:
            check(out, total)


def gathers(dtype):
    """Lists of tensors: equal, unequal and empty ones, of all ranks and of a group."""
    rank, world = dist.get_rank(), dist.get_world_size()
    groups = {None: list(range(world)), dist.new_group([0, 2]): [0, 2]}
    for group, ranks in groups.items():
        if rank not in ranks:
            continue
        for sizes in ([3] * world, [1, 3, 2], [2, 0, 0]):
            expected = [data(r, sizes[r], dtype) for r in ranks]
            out = [torch.empty_like(x) for x in expected]
            mine = data(rank, sizes[rank], dtype)
            handle = dist.all_gather(out, mine, group=group, async_op=True)
            handle.wait()
            check(out, expected)
            dist.all_gather([x.zero_() for x in out], mine, group=group)
            check(out, expected)
    for sizes in ([2] * world, [1, 3, 2]):
        parts = list(data(rank, sum(sizes), dtype).split(sizes))
        out = torch.empty_like(parts[rank])
        dist.reduce_scatter(out, parts)
        check(out, sum(x.split(sizes)[rank] for x in everyone(sum(sizes), dtype)))
    out = [torch.empty(2, 2, dtype=dtype) for _ in range(world)] if rank == 1 else None
    dist.gather(data(rank, 2, dtype), out, dst=1)
    if rank == 1:
        check(out, everyone(2, dtype))
    out = torch.empty(2, 2, dtype=dtype)
    dist.scatter(out, everyone(2, dtype) if rank == 1 else None, src=1)
    check(out, data(rank, 2, dtype))


def all_to_all(dtype):
    """Equal splits, and unequal ones as lists and as tensors."""
    rank, world = dist.get_rank(), dist.get_world_size()
    out = torch.empty(2 * world, 2, dtype=dtype)
    dist.all_to_all_single(out, data(rank, 2 * world, dtype))
    check(out, torch.cat([x.chunk(world)[rank] for x in everyone(2 * world, dtype)]))
    send = [[1, 2, 0], [0, 3, 1], [2, 0, 0]]  # [from][to]
    sizes = [sum(row) for row in send]
    expected = [data(r, sizes[r], dtype).split(send[r])[rank] for r in range(world)]
    receive = [row[rank] for row in send]
    for convert in (list, torch.tensor):
        out = torch.empty(sum(receive), 2, dtype=dtype)
        mine = data(rank, sizes[rank], dtype)
        handle = dist.all_to_all_single(
            out, mine, convert(receive), convert(send[rank]), async_op=True
        )
        handle.wait()
        check(out, torch.cat(expected))


def point_to_point(dtype):
    """As pipeline parallelism does: both neighbors at once, several messages under way."""
    rank, world = dist.get_rank(), dist.get_world_size()
    after, before = (rank + 1) % world, (rank - 1) % world
    received = [torch.empty(2, 2, dtype=dtype) for _ in range(2)]
    operations = [
        dist.P2POp(dist.isend, data(rank, 2, dtype), after),
        dist.P2POp(dist.irecv, received[0], before),
        dist.P2POp(dist.isend, data(rank, 2, dtype), before),
        dist.P2POp(dist.irecv, received[1], after),
    ]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    check(received, [data(before, 2, dtype), data(after, 2, dtype)])
    out = [torch.empty(2, 2, dtype=dtype) for _ in range(3)]
    sends = [dist.isend(data(rank, 2, dtype) + i, after) for i in range(3)]
    receives = [dist.irecv(x, before) for x in out]
    for request in (*sends, *receives):
        request.wait()
    check(out, [data(before, 2, dtype) + i for i in range(3)])


def broadcasts(dtype):
    for source in range(dist.get_world_size()):
        x = data(dist.get_rank(), 3, dtype)
        dist.broadcast(x, source)
        check(x, data(source, 3, dtype))


def sequence_parallel_regions(dtype):
    """Megatron's own gather and reduce-scatter, with splits, forth and back."""
    from megatron.core.tensor_parallel import mappings

    rank, group, sizes = dist.get_rank(), dist.group.WORLD, [1, 3, 2]
    total = sum(sizes)
    x = data(rank, sizes[rank], dtype).requires_grad_()
    out = mappings.gather_from_sequence_parallel_region(x, True, group, output_split_sizes=sizes)
    check(out, torch.cat([data(r, n, dtype) for r, n in enumerate(sizes)]))
    out.backward(data(rank, total, dtype))
    check(x.grad, sum(y.split(sizes)[rank] for y in everyone(total, dtype)))
    x = data(rank, total, dtype).requires_grad_()
    out = mappings.reduce_scatter_to_sequence_parallel_region(x, group, input_split_sizes=sizes)
    check(out, sum(y.split(sizes)[rank] for y in everyone(total, dtype)))
    out.backward(data(rank, sizes[rank], dtype))
    check(x.grad, torch.cat([data(r, n, dtype) for r, n in enumerate(sizes)]))


def objects(dtype):
    """Objects hold tensors and say dtype and device; a barrier may name devices."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = {"rank": rank, "tensor": data(rank, 1, dtype)}
    out = [None] * world
    dist.all_gather_object(out, mine)
    assert [x["rank"] for x in out] == list(range(world))
    check([x["tensor"] for x in out], everyone(1, dtype))
    out = [None] * world if rank == 1 else None
    dist.gather_object(rank, out, dst=1)
    assert rank != 1 or out == list(range(world))
    out = [mine] if rank == 2 else [None]
    dist.broadcast_object_list(out, 2, device=torch.device("cuda"))
    assert out[0]["rank"] == 2
    dist.scatter_object_list(out, list(range(world)) if rank == 0 else None, src=0)
    assert out == [rank]
    dist.barrier(device_ids=[torch.cuda.current_device()])


CHECKS = [
    reductions,
    shards_in_place,
    coalesced,
    gathers,
    all_to_all,
    point_to_point,
    broadcasts,
    sequence_parallel_regions,
    objects,
]
