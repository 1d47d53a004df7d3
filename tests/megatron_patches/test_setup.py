"""What `apply_without_cuda` changes, and that it changes nothing where CUDA is."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from helm_megatron import megatron_patches
from helm_megatron.megatron_patches import cpu

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")


def python(code):
    """Run `code` in a Python of its own."""
    command = [sys.executable, "-c", code]
    root = Path(megatron_patches.__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)


def test_changes_nothing_with_cuda():
    result = python("""
import os, sys, torch, torch.distributed, torch.utils.data
from helm_megatron import megatron_patches
from helm_megatron.megatron_patches import cpu

torch.cuda.is_available = lambda: True
owners = [torch, torch.Tensor, torch.nn.Module, torch.cuda, torch.cuda.random, torch.cuda.nvtx,
          torch.distributed, torch.utils.data.DataLoader]
def state():
    return [dict(vars(owner)) for owner in owners], dict(os.environ), set(sys.modules)
before = state()
assert megatron_patches.apply_without_cuda() is False
assert cpu.defaults() == {}
assert state() == before
assert "megatron.core" not in sys.modules
""")
    assert result.returncode == 0, result.stderr


def test_with_cuda_megatron_is_patched_and_torch_is_not():
    result = python("""
import torch, torch.distributed, torch.utils.data
from helm_megatron import megatron_patches

torch.cuda.is_available = lambda: True
owners = [torch, torch.Tensor, torch.nn.Module, torch.cuda, torch.cuda.random, torch.cuda.nvtx,
          torch.distributed, torch.utils.data.DataLoader]
megatron_patches.apply()
def of_ours(owner):
    modules = {name: getattr(x, "__module__", None) for name, x in vars(owner).items()}
    return [name for name, module in modules.items() if str(module).startswith("helm_megatron")]
assert [of_ours(owner) for owner in owners] == [[]] * len(owners)
from megatron.training import training
assert {"get_megatron_optimizer", "num_floating_point_operations"} <= set(of_ours(training))
""")
    assert result.returncode == 0, result.stderr


@on_cpu
def test_refuses_a_megatron_imported_before():
    result = python("""
import sys, types
sys.modules["megatron.core"] = types.ModuleType("megatron.core")
from helm_megatron import megatron_patches
megatron_patches.apply()
""")
    assert result.returncode != 0
    assert "before megatron is imported" in result.stderr.splitlines()[-1]


@on_cpu
class TestOnCpu:
    @pytest.fixture(autouse=True)
    def setup_once(self):
        assert megatron_patches.apply_without_cuda()

    def test_again_changes_nothing(self):
        empty = torch.empty
        assert megatron_patches.apply_without_cuda()
        assert torch.empty is empty
        assert not torch.cuda.is_available()

    @pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda"), 0])
    def test_makes_tensors_on_the_cpu(self, device):
        x = torch.ones(2)
        made = [
            torch.zeros(2, device=device),
            torch.tensor([1.0], device=device),
            torch.empty(2, device=device, pin_memory=True),
            torch.rand_like(x, device=device),
            x.new_zeros(3, device=device),
            x.to(device),
            x.to(device, torch.float64),
            x.to(device=device, dtype=torch.bfloat16),
            x.cuda(device),
            torch.nn.Linear(2, 2).cuda(device).weight,
            torch.nn.Linear(2, 2).to(device).weight,
            torch.nn.Linear(2, 2, device="meta").to_empty(device=device).weight,
        ]
        assert {str(x.device) for x in made} == {"cpu"}
        assert made[6].dtype == torch.float64

    def test_leaves_other_devices_and_types(self):
        assert torch.zeros(2, device="meta").device.type == "meta"
        assert torch.ones(2).to(torch.float16).dtype == torch.float16
        assert torch.ones(2).to(torch.ones(1, dtype=torch.int32)).dtype == torch.int32

    def test_redirects_in_threads(self):
        made = []
        thread = threading.Thread(target=lambda: made.append(torch.ones(1, device="cuda")))
        thread.start()
        thread.join()
        assert made[0].device.type == "cpu"

    def test_loads_what_was_saved_for_cuda(self, tmp_path):
        torch.save(torch.arange(3), tmp_path / "x.pt")
        assert torch.load(tmp_path / "x.pt", map_location="cuda").tolist() == [0, 1, 2]

    def test_memory_is_this_process(self):
        held = torch.ones(64 << 20, dtype=torch.uint8)
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        assert len(held) < now <= peak
        free, total = torch.cuda.mem_get_info()
        assert now < total and free < total
        stats = torch.cuda.memory_stats()
        assert stats["allocated_bytes.all.peak"] > len(held)
        assert stats["allocation.all.current"] == 0

    def test_streams_and_events_do_nothing(self):
        stream = torch.cuda.Stream(device="cuda")
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.cuda.device(0):
            event = torch.cuda.current_stream().record_event()
        stream.wait_event(event)
        event.synchronize()
        torch.cuda.synchronize()
        assert event.query()

    def test_a_fork_of_megatrons_random_state_restores_the_default(self):
        from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

        def draw(fork):
            torch.manual_seed(1)
            tracker = CudaRNGStatesTracker()
            tracker.add("other", 2)
            first, inside = torch.rand(1).item(), None
            if fork:
                with tracker.fork("other"):
                    inside = torch.rand(1).item()
            return first, inside, torch.rand(1).item()

        torch.manual_seed(2)
        expected = torch.rand(1).item()
        plain, forked = draw(False), draw(True)
        assert forked[1] == expected
        assert (plain[0], plain[2]) == (forked[0], forked[2])

    @pytest.mark.parametrize("settings", [{}, {"shuffle": True}, {"pin_memory": True}])
    def test_data_loaders_leave_the_random_state(self, settings):
        state = torch.get_rng_state()
        assert sorted(map(int, torch.utils.data.DataLoader(range(5), **settings))) == [*range(5)]
        assert torch.equal(torch.get_rng_state(), state)

    def test_data_loaders_shuffle_anew(self):
        loader = torch.utils.data.DataLoader(range(100), shuffle=True)
        assert [*map(int, loader)] != [*map(int, loader)]

    def test_parameters_can_be_pickled(self):
        parameter = torch.nn.Parameter(torch.ones(2))
        assert torch.equal(pickle.loads(pickle.dumps(parameter)), parameter)

    def test_compiles(self):
        @torch.compile(backend="eager", fullgraph=True)
        def function(x):
            return x.to(torch.float64) + torch.zeros(2, device=x.device)

        assert function(torch.ones(2)).tolist() == [1, 1]

    def test_defaults_are_arguments_of_megatron(self):
        import argparse

        from megatron.training.arguments import add_megatron_arguments

        parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
        options = {action.dest: action for action in parser._actions}
        for name, value in cpu.defaults().items():
            assert name in options
            assert options[name].choices is None or value in options[name].choices
