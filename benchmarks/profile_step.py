"""Show where the time of an optimizer step goes, on the plain and on the fast path.

usage: python benchmarks/speed.py prepare OUT --model DIR --data DIR
       python benchmarks/profile_step.py OUT [--path plain fast launched] [--batch 16]

Trains the same steps twice: without the profiler, for the wall time, and with it, for the time of the
kernels (on a CPU: of the operators, without what they call). Both begin after --skip steps of warm-up.
A matmul belongs to the adapter if one of its sizes is the rank, to the head if one is the vocabulary, else
to the base model. Kernels of a replayed graph are known by name only: the path `launched` is the fast one
without graphs, which tells them apart.
"""

import argparse
import collections
import re
import time
from pathlib import Path

import measure
import torch
from speed import read_rows
from speed_peers import TOOLS
from speed_tools import Job
from torch.autograd import DeviceType
from torch.optim.optimizer import register_optimizer_step_post_hook

RANKS = {16, 32, 48}  # alone, or those of gate and up, or of query, key and value, side by side
PATHS = ["plain", "fast", "launched"]  # in this order: `launched` switches graphs off for good
MATMUL = "matmul, not told apart"
END = "end of the measured steps"
# First match decides; names of operators and of kernels, in lower case.
CATEGORIES = [
    ("attention", r"attention|attn|flash|fmha|sdpa|varlen"),
    ("adapter products", r"lora"),
    (MATMUL, r"gemm|::mm|addmm|bmm|::linear|matmul|nvjet|cutlass|xmma|cublas|splitk"),
    ("head and loss", r"softmax|nll|cross_entropy|logsumexp"),
    ("optimizer", r"adam|foreach|multi_tensor|lpnorm|clip_grad|::_local_scalar|unscale"),
    ("copies and casts", r"copy|memcpy|memset|::to\b|::cat|catarray|::fill_|::zero_|index|gather|scatter"),
    (
        "norms, rotary, activation, other elementwise",
        r"norm|rsqrt|pow|::mean|silu|swiglu|rotary|rope|::mul|::add|::sub|::neg|::div|elementwise|reduce|triton"
        r"|::sum|vectorized|sigmoid",
    ),
]


def category(name, shapes, vocabulary):
    sizes = {size for shape in shapes or [] if isinstance(shape, (list, tuple)) for size in shape}
    found = next((label for label, pattern in CATEGORIES if re.search(pattern, name.lower())), "other")
    if found != MATMUL or not sizes:
        return found
    if vocabulary in sizes:
        return "head and loss"
    return "adapter products" if RANKS & sizes else "matmul of the base model"


class Clock:
    """Called after every optimizer step: notes the time, and starts and stops the profiler."""

    def __init__(self, device, skip, steps, profiler=None):
        self.device, self.skip, self.steps, self.profiler = device, skip, steps, profiler
        self.times = []

    def __call__(self, optimizer, args, kwargs):
        measure.sync(self.device)
        self.times.append(time.perf_counter())
        if self.profiler and len(self.times) == self.skip:
            self.profiler.start()
        if self.profiler and len(self.times) == self.skip + self.steps:
            with torch.profiler.record_function(END):
                pass
        # One step later: only then is the optimizer's own range of the last step closed.
        if self.profiler and len(self.times) == self.skip + self.steps + 1:
            self.profiler.stop()

    @property
    def seconds_a_step(self):
        return (self.times[self.skip + self.steps - 1] - self.times[self.skip - 1]) / self.steps


def train(tool, rows, clock):
    hook = register_optimizer_step_post_hook(clock)
    try:
        return tool.train(rows, 1)
    finally:
        hook.remove()


def category_of(event, name, vocabulary):
    """Judge by name and sizes; what the optimizer calls is its own."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("Optimizer.step"):
            return "optimizer"
        parent = parent.cpu_parent
    return category(name, event.input_shapes, vocabulary)


def kernels(profiler, vocabulary):
    """Add up kernel times by category and by name, in microseconds; count the kernels."""
    by_category, by_name = collections.Counter(), collections.Counter()
    count, unclaimed = 0, collections.Counter()
    end = min(event.time_range.start for event in profiler.events() if event.name == END)
    before_end = (event for event in profiler.events() if event.time_range.start < end)
    events = [event for event in before_end if not event.is_user_annotation]
    on_device = [event for event in events if event.device_type != DeviceType.CPU]
    for event in on_device:
        by_name[event.name] += event.self_device_time_total
        unclaimed[event.name] += event.self_device_time_total
        count += 1
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        for kernel in event.kernels:
            label = category_of(event, event.name, vocabulary)
            if label == "other":
                label = category_of(event, kernel.name, vocabulary)
            by_category[label] += kernel.duration
            unclaimed[kernel.name] -= kernel.duration
        if not on_device and event.self_cpu_time_total > 0:
            label = category_of(event, event.name, vocabulary)
            by_category[label] += event.self_cpu_time_total
            by_name[event.name] += event.self_cpu_time_total
            count += 1
    for name, left in unclaimed.items():
        if left > 0.5:
            by_category[category(name, None, vocabulary)] += left
    return by_category, by_name, count


def profile(tool, rows, args):
    device = tool.job.device
    tool.use()
    tool.load()
    vocabulary = tool.model.get_base_model().get_output_embeddings().weight.shape[0]
    wall = Clock(device, args.skip, args.steps)
    train(tool, rows, wall)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities, record_shapes=True)
    profiled = Clock(device, args.skip, args.steps, profiler)
    train(tool, rows, profiled)
    # On a CPU an operator's time holds what profiling costs, and is compared with a wall time that does too.
    return (
        (profiled if device == "cpu" else wall).seconds_a_step,
        wall.seconds_a_step,
        *kernels(profiler, vocabulary),
    )


def show(name, compared, seconds, by_category, by_name, count, args):
    total, wall = sum(by_name.values()) / 1e3 / args.steps, compared * 1e3
    print(f"\n### {name}\n\n| | |\n|---|---|")
    print(
        f"| wall time of a step, ms | {seconds * 1e3:.1f} |\n| wall time to compare with, ms | {wall:.1f} |"
    )
    print(f"| kernel time of a step, ms | {total:.1f} |")
    print(f"| launch gap (1 - kernel / wall) | {1 - total / wall:.1%} |")
    print(f"| kernels a step | {count / args.steps:,.0f} |")
    print("\n| category | ms a step | share of kernel time |\n|---|---|---|")
    for label, value in by_category.most_common():
        print(f"| {label} | {value / 1e3 / args.steps:.2f} | {value / 1e3 / args.steps / total:.1%} |")
    print(f"\n| kernel (the {args.top} longest) | ms a step |\n|---|---|")
    for label, value in by_name.most_common(args.top):
        print(f"| `{label[:90].replace('|', ' ')}` | {value / 1e3 / args.steps:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--path", nargs="+", default=["plain", "fast"], choices=PATHS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--skip", type=int, default=12, help="steps of warm-up, at least 1")
    parser.add_argument("--steps", type=int, default=8, help="steps that are measured")
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    rows, model, max_length = read_rows(args.out)
    device = measure.pick_device(args.device)
    rows = rows[: (args.skip + args.steps + 1) * args.batch]
    if len(rows) <= (args.skip + args.steps) * args.batch:
        parser.error(f"{len(rows)} rows are too few for these steps")
    for path in args.path:
        tool = TOOLS["ours-plain" if path == "plain" else "ours"](Job(model, args.batch, max_length, device))
        if path == "launched":
            import medqa.train.fast

            medqa.train.fast.has_graphs = lambda device: False
        show(path, *profile(tool, rows, args), args)
        print("\n" + "\n".join(tool.notes))
    print(f"\n{measure.describe_device(device)}; {measure.versions()}")


if __name__ == "__main__":
    main()
