"""Capture device work as a graph: launched as one, it costs the host nothing per kernel. CUDA and HIP."""

from collections.abc import Callable

import torch

from medqa.hardware.device import Device

__all__ = ["capture", "has_graphs"]

# Libraries choose kernels and take their workspaces in the first runs, which a capture can't hold.
WARM_UP_RUNS = 2


def has_graphs(device: Device) -> bool:
    """Tell whether torch can capture graphs on this device."""
    return str(device.torch_device.type) == "cuda"  # ROCm goes by this name too


def capture(device: Device, work: Callable[[], None]) -> Callable[[], None]:
    """Run work twice, then capture it.

    Args:
        device: Where it runs.
        work: Only launches kernels: it waits for none, and every tensor that it reads from or writes to
            outside itself stays where it is.

    Returns:
        What runs it again, as one launch.

    Raises:
        RuntimeError: If something in it can't be captured, or memory runs out.
    """
    with torch.cuda.device(device.torch_device):
        torch.cuda.empty_cache()  # what another stream has kept, the one below can't take
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_RUNS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    replay: Callable[[], None] = graph.replay
    return replay
