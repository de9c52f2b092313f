"""The layers of a step layer by layer: its ways through them, forward and back, as launches of a script."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from types import ModuleType

import torch
import triton
import triton.language as tl

from ...drawing import over_samples
from ...enums import COTANGENTS
from ...problem import Operands, Problem
from .draws import DISTRIBUTION, Distribution
from .finishing import AT_ONCE, Slots
from .formulas import activation_of
from .launches import LINEAR, OUTER, WIDEST_DRAWN
from .parameters import OPERANDS
from .script import IN_MEMORY, KEY, PLACE, SEED, At, Script, by_layer

BLOCK = 1024


def into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """out = a b by torch, in float32; whether it takes TF32 for "tf32" is torch's setting."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


class Layers:
    """The layers of one script, and what its streams leave behind: Z, the stacked z without bias, and H."""

    def __init__(
        self, module: ModuleType, fusing: bool, script: Script, problem: Problem, operands: Operands, at: Operands,
        streams: int | None = None,
    ):  # fmt: skip
        """module: where its kernels are found; streams: of a layer, by default those along directions."""
        self.module, self.fusing = module, fusing
        self.script, self.problem, self.operands, self.at = script, problem, operands, at
        self.N, self.P = operands.x.shape[0], 0 if problem.projection == COTANGENTS else problem.P
        self.S, self.last = streams or 1 + problem.order * self.P, len(problem.biases) - 1
        self.made, self.along = self.S, self.P  # streams of the outputs, and how many of them are tangents
        self.dtype = torch.float32 if self.fusing else OPERANDS.get(problem.precision, torch.float32)
        self.strides = [weight.stride() for weight, _ in by_layer(problem, operands.parameters)]
        self.weights, self.biases = map(list, zip(*by_layer(problem, at.parameters), strict=True))
        self.sizes = [*pairwise(problem.widths)]
        if self.dtype != torch.float32:
            self.cast()
        self.place_gradients()

    def room(self, streams: int, n: int, operand: bool = False) -> At:
        """A stack [streams, N, n]; as an operand of torch's multiply in its type."""
        return self.script.room(streams, self.N, n, dtype=self.dtype if operand else torch.float32)

    def launch(self, name: str, grid: Sequence[int], *values, **named) -> None:
        self.script.launch(self.module, name, grid, *values, **named)

    def cast(self) -> None:
        """Weights as operands of torch's multiplies, once for both ways."""
        copies = [self.script.room(n_out, n_in, dtype=self.dtype) for n_in, n_out in self.sizes]
        for first in range(0, len(copies) if self.N else 0, AT_ONCE):
            some = slice(first, first + AT_ONCE)
            grid = triton.cdiv(max(a * b for a, b in self.sizes[some]), BLOCK), len(copies[some])
            strides = tuple(step for both in self.strides[some] for step in both)
            sizes = tuple(n for n_in, n_out in self.sizes[some] for n in (n_out, n_in))
            self.launch(
                "cast_kernel", grid, tuple(self.weights[some]), strides, tuple(copies[some]), sizes, BLOCK=BLOCK
            )
        self.weights = copies

    # ---- One launch each ----

    def elementwise(self, name: str, l: int, *tensors, streams: int, **constants) -> None:
        """A kernel over the numbers of layer l; its first two arguments are Z and the bias."""
        n = self.sizes[l][1]
        self.launch(
            name, (triton.cdiv(self.N * n, BLOCK),), self.Z[l], self.biases[l], *tensors, self.N, n, streams,
            activation_of(self.problem.activations[l]), BLOCK=BLOCK, **constants,
        )  # fmt: skip

    def fused(
        self, name: str, l: int, *tensors, streams: int, transposed: bool = False, columns: int | None = None,
        end: tuple = (), **constants,
    ) -> None:  # fmt: skip
        """A multiply by the weight of layer l, or from its outputs to its inputs, of which only the first `columns` may
        be wanted, with an epilogue: of the activation `end`, or of numbers."""
        (K, n), (by_row, by_column) = self.sizes[l], self.strides[l]
        if transposed:
            (n, K), (by_row, by_column) = (columns or K, n), (by_column, by_row)
        self.launch(
            name, (triton.cdiv(self.N, LINEAR.rows), triton.cdiv(n, LINEAR.columns)), *tensors, self.N, K, n, streams,
            by_row, by_column, *end, PRECISION=self.problem.precision, BM=LINEAR.rows, BN=LINEAR.columns,
            BK=LINEAR.depth, num_warps=LINEAR.warps, **constants,
        )  # fmt: skip

    def multiply(self, streams: At, l: int, out: At, transposed: bool = False, first: int = 0) -> None:
        """[S, N, K] from a stream on by the weight of layer l, or from its outputs to as many of its inputs as `out`
        has: torch's."""

        def function(a, weight, out):
            out = out.view(-1, out.shape[-1])
            weight = weight[:, : out.shape[1]] if transposed else weight.T
            into(out, a[first:].flatten(0, 1)[: len(out)], weight)

        self.script.do(function, streams, self.weights[l], out)

    # ---- The ways through the layers ----

    def start(self, x: At | None, streams: int, n: int, W: int, place: At | None = None) -> At:
        """Stacked inputs [S, N, D], or vectors [P, N, n], in their place if there is one; as an operand if torch
        multiplies them."""
        problem, operands, at, half = self.problem, self.operands, self.at, self.dtype != torch.float32
        out = place if place is not None and not half else self.script.room(streams, self.N, n)
        copy = (place or self.room(streams, n, operand=True)) if half else None
        if n > WIDEST_DRAWN:
            self.start_wide(x, W, out, copy)
            return out if copy is None else copy
        columns = triton.next_power_of_2(n)
        block = max(1, 2048 // columns)
        given = operands.given  # also where these are drawn before
        distribution = problem.distribution if given is None else "given"
        kind, shared = map(tl.constexpr, (DISTRIBUTION[distribution], problem.shared))
        self.launch(
            "start_kernel", (triton.cdiv(self.N, block), streams), x, at.given,
            SEED, out, copy, self.N, 0 if W == 0 else problem.P, n, W,
            *(operands.x.stride()), *((0, 0, 0) if given is None else over_samples(given, self.N).stride()),
            KEY, PLACE, IN_MEMORY, Distribution(kind, shared, problem.magnitude), BLOCK=block,
            COLUMNS=columns,
        )  # fmt: skip
        self.vectors = out
        return out if copy is None else copy

    def start_wide(self, x: At | None, W: int, out: At, copy: At | None) -> None:
        """The same by PyTorch; the vectors are given, or drawn before."""
        first, P = int(x is not None), self.problem.P if W else 0

        def fill(*tensors):
            *came, out = tensors
            out.zero_()
            if first:
                out[0].copy_(came[0])
            if P:
                out[first : first + P, :, :W].copy_(over_samples(came[-1], self.N))

        came = [place for place in (x, self.at.given if P else None) if place is not None]
        self.script.do(fill, *came, out)
        if copy is not None:
            self.script.do(lambda out, copy: copy.copy_(out), out, copy)
        self.vectors = out

    def forward(self) -> At:
        """Values and their P tangents (and second derivatives) from those of the inputs; keeps Z and H."""
        problem, script = self.problem, self.script
        self.H, self.Z = [self.start(self.at.x, self.S, problem.D, problem.W if self.P else 0)], []
        for l, (_, n) in enumerate(self.sizes):
            below = self.H[-1]
            self.Z.append(script.room(self.S, self.N, n))
            self.H.append(self.room(self.S, n, operand=l < self.last))
            if self.fusing:
                tensors, end = (below, self.weights[l], self.biases[l], self.Z[l], self.H[-1]), self.activation(l)
                self.fused("forward_kernel", l, *tensors, streams=self.P, end=end, ORDER=problem.order)
            else:
                self.multiply(below, l, self.Z[l])
                self.elementwise("activate_kernel", l, self.H[-1], streams=self.P, ORDER=problem.order)
        return self.H[-1]

    def activation(self, l: int) -> tuple:
        """The end of a multiply."""
        return (activation_of(self.problem.activations[l]),)

    def product(
        self, streams: At, l: int, out: At, R: int, scale: float = 1.0, first: int = 0, columns: int | None = None
    ) -> None:
        """R streams, from the first of them on, from the outputs of layer l to its inputs, and nothing more."""
        if self.fusing:
            tensors, end = (streams, self.weights[l], out), (first, scale)
            self.fused("product_kernel", l, *tensors, streams=R, transposed=True, columns=columns, end=end)
        else:
            self.multiply(streams, l, out, transposed=True, first=first)
            if scale != 1.0:
                self.script.do(lambda out: out.mul_(scale), out)

    def gradients(self) -> At:
        """Jᵀu [R, N, D] for the cotangents u [R, N, O]; keeps the adjoints A and delta = σ' A of every layer."""
        problem, R = self.problem, self.problem.P
        self.start(None, R, problem.O, problem.O)
        vectors = self.vectors
        self.A, self.delta = [vectors], [self.room(R, problem.O, operand=True)]
        self.elementwise("delta_kernel", self.last, vectors, self.delta[0], streams=R)
        for l in range(self.last, 0, -1):
            n, above = self.sizes[l][0], self.delta[0]
            self.A.insert(0, self.script.room(R, self.N, n))
            self.delta.insert(0, self.room(R, n, operand=True))
            if self.fusing:
                tensors = above, self.weights[l], self.Z[l - 1], self.biases[l - 1], self.A[0], self.delta[0]
                self.fused("pull_kernel", l, *tensors, streams=R, transposed=True, end=self.activation(l - 1))
            else:
                self.multiply(above, l, self.A[0], transposed=True)
                self.elementwise("delta_kernel", l - 1, self.A[0], self.delta[0], streams=R)
        g = self.script.room(R, self.N, problem.D)
        self.product(self.delta[0], 0, g, R)
        return g

    def along_g_bar(self, g_bar: At, dgiven: At | None, common: float) -> list[At]:
        """The way of the adjoints g_bar [R, N, D] of `gradients`; gives q [N, n] of each layer. The first parts of the
        slots are its gradients of weights; its end is the gradient of the cotangents."""
        q_of_layer, R, h, hs = [], self.problem.P, g_bar, []
        if self.dtype != torch.float32:
            h = self.room(R, self.problem.D, operand=True)
            self.script.do(lambda g_bar, h: h.copy_(g_bar), g_bar, h)
        for l, (_, n) in enumerate(self.sizes):
            hs.append(h)
            q_of_layer.append(self.script.room(self.N, n))
            below, h = h, dgiven if dgiven is not None and l == self.last else self.room(R, n, operand=True)
            if self.fusing:
                tensors = below, self.weights[l], self.Z[l], self.biases[l], self.A[l], h, q_of_layer[l]
                self.fused("push_kernel", l, *tensors, streams=R, end=self.activation(l))
            else:
                z = self.script.room(R, self.N, n)
                self.multiply(below, l, z)
                self.elementwise("along_g_bar_kernel", l, z, self.A[l], h, q_of_layer[l], streams=R)
        if dgiven is not None and common != 1.0:
            self.script.do(lambda dgiven: dgiven.mul_(common), dgiven)
        self.outer(self.delta, hs, R)
        return q_of_layer

    def backward(self, adjoints: At, q_of_layer: list, dx: At | None, dgiven: At | None, common: float) -> None:
        """All gradients from the adjoints of the last H, also that of given directions; Z becomes its own adjoint."""
        order, z_bar = self.problem.order, []
        for l in range(self.last, -1, -1):
            streams, copy = {"streams": self.P, "ORDER": order}, None
            if self.fusing and l < self.last:
                tensors = self.Z[l + 1], self.weights[l + 1], self.Z[l], self.biases[l], q_of_layer[l]
                self.fused("backward_kernel", l + 1, *tensors, transposed=True, end=self.activation(l), **streams)
            else:
                if l < self.last:
                    adjoints = self.script.room(self.S, self.N, self.sizes[l][1])
                    self.multiply(z_bar[0], l + 1, adjoints, transposed=True)
                if self.dtype != torch.float32:
                    copy = self.room(self.S, self.sizes[l][1], operand=True)
                self.elementwise("adjoint_kernel", l, adjoints, q_of_layer[l], copy, **streams)
            z_bar.insert(0, self.Z[l] if copy is None else copy)
        if dx is not None:
            self.product(z_bar[0], 0, dx, 1, common)
        if dgiven is not None:
            self.product(z_bar[0], 0, dgiven, self.P, common, first=1, columns=self.problem.W)
        self.outer(z_bar, self.H, self.S, biases=True)

    # ---- Gradients of parameters ----

    def place_gradients(self) -> None:
        """Where they lie in the slots, and into how many parts the sums are cut."""
        ends, self.parts = [*accumulate((a * b for a, b in self.sizes), initial=0)], 0
        bias_ends = [*accumulate((n for _, n in self.sizes), initial=0)]
        self.stride, self.bias_stride, self.part = ends[-1], bias_ends[-1], 0
        self.layers = [
            (n_in, *at) for (n_in, _), at in zip(self.sizes, zip(ends, bias_ends, strict=True), strict=False)
        ]
        if not (self.problem.gradients and self.N):
            self.slots_at = self.bias_slots_at = self.script.room(0)
            return
        rows = self.S * self.N
        tiles = sum(triton.cdiv(n_out, OUTER.rows) * triton.cdiv(n_in, OUTER.columns) for n_in, n_out in self.sizes)
        self.parts = max(1, min(triton.cdiv(rows, 4 * OUTER.depth), OUTER.programs // tiles))
        ways = 2 if self.problem.projection == COTANGENTS else 1
        self.slots_at = self.script.room(ways * self.parts if self.fusing else 1, self.stride)
        self.bias_slots_at = self.script.room(self.parts, self.bias_stride)

    def slots(self) -> Slots:
        parts = self.part if self.fusing else min(1, self.parts)
        return Slots(self.slots_at, self.bias_slots_at, parts, self.parts, self.stride, self.bias_stride, self.layers)

    def outer(self, a: list[At], h: list[At], streams: int, biases: bool = False) -> None:
        """Σ over streams and samples of a hᵀ of each layer, into the next parts; of biases Σ a of the values alone."""
        self.outer_of(a, h, [(streams, 1)] * len(self.sizes), self.Z if biases else None)

    def outer_of(self, a: list[At], h: list[At], streams: Sequence[tuple[int, int]], Z: list[At] | None) -> None:
        """Those of layers with so many streams each, of which so many are values; with the gradients of biases if there
        is Z, which has the rows of the values where torch multiplies."""
        layers, fusing = range(len(self.sizes)), self.fusing
        for first in range(0, len(layers) if fusing or Z is not None else 0, AT_ONCE):
            some = layers[first : first + AT_ONCE]
            rows_of = [streams[l] if fusing else (1, streams[l][1]) for l in some]
            sizes = [(*self.sizes[l][::-1], *self.layers[l][1:], *of) for l, of in zip(some, rows_of, strict=True)]
            tiles = [triton.cdiv(s[0], OUTER.rows) * (triton.cdiv(s[1], OUTER.columns) if fusing else 1) for s in sizes]
            rows = triton.cdiv(max(count for count, _ in rows_of) * self.N, self.parts)
            self.launch(
                "outer_kernel", (max(tiles), self.parts, len(sizes)), tuple((a if fusing else Z)[l] for l in some),
                tuple((h if fusing else Z)[l] for l in some), tuple(n for of in sizes for n in of), self.slots_at,
                self.bias_slots_at if Z is not None else None, self.N, self.part, rows, self.stride,
                self.bias_stride, PRECISION=self.problem.precision, MULTIPLY=fusing, BM=OUTER.rows, BN=OUTER.columns,
                BK=OUTER.depth, num_warps=OUTER.warps,
            )  # fmt: skip
        if not fusing:
            for l in layers:
                self.torch_outer(a[l], h[l], l, bool(self.part))
        self.part = self.part + self.parts if fusing else 1

    def torch_outer(self, a: At, h: At, l: int, add: bool) -> None:
        (n_in, n_out), (_, at, _) = self.sizes[l], self.layers[l]

        def function(a, h, slots):
            out = slots[0, at : at + n_in * n_out].view(n_out, n_in)
            if add:
                more = torch.empty_like(out)
                into(more, a.flatten(0, 1).T, h.flatten(0, 1))
                out.add_(more)
            else:
                into(out, a.flatten(0, 1).T, h.flatten(0, 1))

        self.script.do(function, a, h, self.slots_at)
