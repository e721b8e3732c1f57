"""All adapter weights in one flat tensor: one kernel casts them, one clips, one optimises.

Shape legend: I and O width into and out of a group of layers, R their summed ranks.
"""

import dataclasses
from collections.abc import Sequence

import torch

__all__ = ["AdapterPart", "FlatAdapter", "GroupFactors"]


@dataclasses.dataclass(frozen=True)
class AdapterPart:
    """One layer's adapter, as PEFT holds it.

    Attributes:
        name_a: Name of the A factor among the model's parameters.
        name_b: Name of the B factor.
        a: (rank, I) parameter.
        b: (outputs, rank) parameter.
        row: First of the layer's outputs within its group.
        scale: What the product is multiplied by.
    """

    name_a: str
    name_b: str
    a: torch.nn.Parameter
    b: torch.nn.Parameter
    row: int
    scale: float


@dataclasses.dataclass(frozen=True)
class GroupFactors:
    """The factors of layers that share their input, in computing precision; leaves for autograd.

    Attributes:
        a_RI: Their A factors, one below the other.
        b_OR: Their B factors times their scale, on the diagonal.
    """

    a_RI: torch.Tensor
    b_OR: torch.Tensor


class FlatAdapter:
    """Adapter weights of a PeftModel in flat fp32 tensors.

    The factors that the products use are `weights * factor` in computing precision: `factor` is the
    layer's scale on its place of the diagonal of B and 0 off it, so that the same vector turns the
    products' gradients into those of the weights.

    Attributes:
        weights: fp32, (size,).
        grad: fp32, (size,), gradient of the weights once `factor` is applied.
        factor: fp32, (size,).
        groups: The factors of each group.
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, Sequence[AdapterPart]]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Lay out the groups.

        Args:
            groups: For each group its outputs O and its layers.
            device: Where the model is.
            dtype: Computing precision.
        """
        self._named: list[tuple[str, torch.nn.Parameter, tuple[int, ...], tuple[int, ...], int]] = []
        shapes: list[tuple[int, int, int]] = []
        scales: list[tuple[tuple[int, ...], tuple[int, ...], int, float]] = []
        size = 0
        for num_outputs, parts in groups:
            num_ranks, num_inputs = sum(len(part.a) for part in parts), parts[0].a.shape[1]
            shapes.append((num_ranks, num_inputs, num_outputs))
            start_b = size + num_ranks * num_inputs
            rank = 0
            for part in parts:
                at_a = size + rank * num_inputs
                at_b = start_b + part.row * num_ranks + rank
                stride_b = (num_ranks, 1)
                self._named.append((part.name_a, part.a, tuple(part.a.shape), (num_inputs, 1), at_a))
                self._named.append((part.name_b, part.b, tuple(part.b.shape), stride_b, at_b))
                scales.append((tuple(part.a.shape), (num_inputs, 1), at_a, 1.0))
                scales.append((tuple(part.b.shape), stride_b, at_b, part.scale))
                rank += len(part.a)
            size = start_b + num_outputs * num_ranks
        self.weights = torch.zeros(size, device=device)
        self.grad = torch.zeros_like(self.weights)
        self.factor = torch.zeros_like(self.weights)
        for shape, stride, at, scale in scales:
            self.factor.as_strided(shape, stride, at).fill_(scale)
        self._computing = torch.zeros(size, device=device, dtype=dtype)
        self._computing_grad = torch.zeros_like(self._computing)
        self.groups = self._leaves(shapes)
        self.load()

    def _leaves(self, shapes: Sequence[tuple[int, int, int]]) -> list[GroupFactors]:
        groups, at = [], 0
        for num_ranks, num_inputs, num_outputs in shapes:
            a_RI = self._computing[at : at + num_ranks * num_inputs].view(num_ranks, num_inputs)
            at += num_ranks * num_inputs
            b_OR = self._computing[at : at + num_outputs * num_ranks].view(num_outputs, num_ranks)
            at += num_outputs * num_ranks
            groups.append(GroupFactors(a_RI.detach().requires_grad_(), b_OR.detach().requires_grad_()))
        return groups

    @property
    def leaves(self) -> list[torch.Tensor]:
        """The tensors to differentiate by, in their order in the flat tensors."""
        return [leaf for group in self.groups for leaf in (group.a_RI, group.b_OR)]

    def add_gradients(self, grads: Sequence[torch.Tensor]) -> None:
        """Add gradients by the leaves, in fp32; `factor` is yet to be applied."""
        torch.cat([grad.reshape(-1) for grad in grads], out=self._computing_grad)
        self.grad.add_(self._computing_grad)

    def named(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Show a flat tensor's values under the names of the model's parameters, as views."""
        return {name: flat.as_strided(shape, stride, at) for name, _, shape, stride, at in self._named}

    def load(self) -> None:
        """Take over the weights that the model's parameters hold."""
        for (_, parameter, *_), view in zip(self._named, self.named(self.weights).values(), strict=True):
            view.copy_(parameter.detach())
        self.refresh()

    def store(self) -> None:
        """Put the weights into the model's parameters."""
        for (_, parameter, *_), view in zip(self._named, self.named(self.weights).values(), strict=True):
            parameter.data.copy_(view)

    def refresh(self) -> None:
        """Bring the factors up to date with the weights."""
        torch.mul(self.weights, self.factor, out=self._computing)
