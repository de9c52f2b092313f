"""`Residual`: an equation of named derivatives and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from ..backends.exact import graphs
from ..backends.graph import nodes_of
from ..backends.kinks import KINKS
from ..errors import NotProvided, clipped, in_words, nearest, need
from ..printed import printed
from ..typed import Function
from . import symbols
from .evaluate import fields_of, partials
from .names import Fields
from .tape import Names, NoPolynomial, Symbol, Tape

Values = dict[str, torch.Tensor]
# How often an operation may be differentiated before a jump counts.
JUMPS = {**KINKS, "Abs": 1, "Sgn": 0, "Sign": 0, "Round": 0, "Floor": 0, "Ceil": 0, "Trunc": 0}
SCALES = 1.0, -1.0, 8.0, 1 / 8  # of the numbers that a residual is tried with, until its slopes are numbers
NO_NUMBERS = (
    "diff: expected a residual whose slopes are numbers at some that it is tried with, of sizes from 1/16 to 12, got "
    "NaN at all"
)


class Residual(nn.Module):
    """What a solution makes zero: a function of a student's derivatives by name, and of coordinates.

    The function is given one argument, p, of which it reads what it needs: `p.u`, `p.u_xx`, a coordinate `p.x`, a sum
    that is to be one stream `p["u_xx + u_yy"]`; each is [N, 1]. It is run once with numbers that remember, when the
    residual is made, to find what it reads; then one call of `partials` serves all of it. It may return one residual
    [N, 1], or several as a tuple or a dict of them.

    A parameter that the function reads, an `nn.Parameter` of its own or of a module that it is, is one of
    `residual.parameters()`, gets gradients, and so can be learnt from data.

    Args:
        function: of p, as `lambda p: p.u_t + p.u * p.u_x - 0.01 * p.u_xx`; a module with such a forward, too. It must
            read the same names at each call, and change nothing in place.
        fields: what the student's inputs and outputs are called, a `Fields` or its text: "x t -> u".
        name: of its term in losses and histories; by default the function's. Of several residuals each has its key, or
            its number, behind it.

    Attributes:
        reads: the derivatives that it reads. `coordinates`: the inputs that it reads.
        names: of its terms. `recorded`: whether all of them are made by sums, products, quotients, powers and the
            functions of `symbols.ELEMENTARY` alone, which kernels evaluate.

    Raises:
        TypeError, ValueError: no such function or fields, or a result that is no residual.
        NotImplementedError: a derivative above order 4.

    Example:
        >>> burgers = Residual(lambda p: p.u_t + p.u * p.u_x - 0.01 * p.u_xx, "x t -> u", name="burgers")
        >>> burgers.reads
        ('u_t', 'u', 'u_x', 'u_xx')
        >>> student = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> burgers(student, torch.rand(5, 2)).shape
        torch.Size([5, 1])
    """

    @in_words
    def __init__(self, function: Callable, fields: Fields | str, *, name: str | None = None):
        super().__init__()
        need(callable(function), "function", "a function of p, as lambda p: p.u_t - p.u_xx", function, TypeError)
        need(name is None or isinstance(name, str), "name", "a text", name, TypeError)
        self.function, self.fields = function, fields_of(fields)
        self.name = name_of(function) if name is None else name
        result, read = symbols.record(function, self.fields)
        self.reads = tuple(n for n in read if n not in self.fields.inputs)
        self.coordinates = tuple(n for n in read if n in self.fields.inputs)
        need(bool(self.reads), "function", "one that reads a derivative of p, as p.u_x", "none")
        self.keys, recorded = parts_of(result, symbols.SAMPLES)
        self.names = tuple(self.name if key is None else f"{self.name}_{key}" for key in self.keys)
        self.coefficients = nn.ParameterList(learnt(recorded, set(self.parameters())))
        self.fields.plan(self.reads)  # or why there is none
        self.recorded = all(getattr(part, "elementary", False) for part in recorded)
        self.agreed: set[tuple] = set()  # forms of sums that were seen to be what the function gives

    def forward(self, student: Function, x: torch.Tensor):
        """The residuals [N, 1] at x [N, D], as the function returns them: one, a tuple or a dict; differentiable."""
        values = list(self.values(self.partials(student, x)).values())
        if self.keys == (None,):
            return values[0]
        if all(isinstance(key, int) for key in self.keys):
            return tuple(values)
        return dict(zip(self.keys, values, strict=True))

    def partials(self, student: Function, x: torch.Tensor) -> Values:
        """All that it reads, each [N, 1]: derivatives, and columns of x."""
        return Read(named_columns(self.fields, x) | partials(student, x, list(self.reads), fields=self.fields))

    def values(self, p: Mapping[str, torch.Tensor]) -> Values:
        """The residuals by the names of their terms, of what it reads."""

        def get(name: str) -> torch.Tensor:
            known = name in self.reads or name in self.coordinates
            need(known, "function", f"the names that it read at first, {', '.join(self.reads)}", name)
            return p[name]

        like = next(iter(p.values()))
        keys, found = parts_of(self.function(symbols.Named(self.fields, get)), len(like))
        need(keys == self.keys, "function", f"the residuals that it gave at first, {self.keys}", keys)
        return dict(zip(self.names, found, strict=True))

    def on(self, tape: Tape) -> list[Symbol]:
        """The residuals as sums on a tape.

        Raises:
            Exception: of whatever the function does that no polynomial does.
        """
        result = self.function(Names(tape, self.fields))
        if type(result) is Symbol:
            keys, found = (None,), [result]
        else:
            several = isinstance(result, Mapping)
            keys, found = (tuple(result), list(result.values())) if several else (tuple(range(len(result))), result)
        if keys != self.keys or not all(type(part) is Symbol for part in found):
            raise NoPolynomial
        return list(found)

    def polynomials(self) -> dict[str, symbols.Sum | None]:
        """Of each term what polynomial of the names it is, as {((name, power), …): coefficient}, a coefficient a number
        or a tensor with its graph; None of what is no polynomial."""
        result, _ = symbols.record(self.function, self.fields)
        _, found = parts_of(result, symbols.SAMPLES)
        return dict(zip(self.names, (getattr(part, "polynomial", None) for part in found), strict=True))

    def because(self) -> dict[str, str]:
        """Of each term the operation by which it is no polynomial; no text where it is one."""
        result, _ = symbols.record(self.function, self.fields)
        _, found = parts_of(result, symbols.SAMPLES)
        return {
            name: "" if getattr(part, "polynomial", None) is not None else getattr(part, "because", "?")
            for name, part in zip(self.names, found, strict=True)
        }

    @in_words
    def diff(self, by: str) -> Residual:
        """The derivative of the residuals with respect to an input, by the chain rule on their names: of
        u u_x that is u_x² + u u_xx. To learn it is zero too is gradient-enhanced training.

        The function may be any of smooth operations on samples by themselves, polynomial or not.

        Args:
            by: the name of an input.

        Raises:
            ValueError, TypeError: there is no such input.
            NotImplementedError: an order above 4, a kink that counts, or a function that mixes samples.
        """
        inputs = self.fields.inputs
        known = isinstance(by, str) and by in inputs
        need(known, "by", f"one of {', '.join(inputs)}", by, hint=nearest(by, inputs))
        return Differentiated(self, by)

    def explain(self) -> str:
        """Print, and return, what it reads, in how many streams, and which polynomial it is."""
        return printed(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"fields      {self.fields.names}"
        yield f"reads       {', '.join((*self.reads, *self.coordinates))}"
        yield from lines_of_streams(self.fields, self.reads)
        yield from lines_of_residual(self)

    def extra_repr(self) -> str:
        return f"{', '.join(self.names)}: {', '.join((*self.reads, *self.coordinates))} of {self.fields.names!r}"


class Differentiated(Residual):
    """The derivative of another residual by an input."""

    def __init__(self, of: Residual, by: str):
        nn.Module.__init__(self)
        self.of, self.by, self.fields, self.keys = of, by, of.fields, of.keys
        self.times = getattr(of, "times", 0) + 1
        self.name, self.names = f"{of.name}_{by}", tuple(f"{name}_{by}" for name in of.names)
        self.raised = {name: symbols.differentiated_name(of.fields, name, by) for name in of.reads}
        self.reads = tuple(dict.fromkeys((*of.reads, *self.raised.values())))
        self.coordinates = of.coordinates
        self.fields.plan(self.reads)  # or why there is none
        self.agreed: set[tuple] = set()
        self.looked = False  # whether this function can be differentiated so, at the first numbers that come

    def values(self, p: Mapping[str, torch.Tensor]) -> Values:
        """Σ ∂R/∂name · (the name's derivative), and what R has of the coordinate itself."""
        self.look(p)
        found = {}
        for name, by_name in zip(self.names, slopes_of(self.of, p), strict=True):
            terms = [slope * p[self.raised[read]] for read, slope in by_name.items() if read in self.raised]
            terms += [by_name[self.by]] if self.by in by_name else []
            found[name] = sum(terms[1:], terms[0]) if terms else torch.zeros_like(next(iter(p.values())))
        return found

    @property
    def recorded(self) -> bool:
        return self.of.recorded

    def on(self, tape: Tape) -> list[Symbol]:
        """The chain rule on the sums themselves."""
        raised = {tape.given[read]: tape.named(name) for read, name in self.raised.items()}
        leaves = raised | ({tape.given[self.by]: tape.symbol(1.0)} if self.by in self.coordinates else {})
        kept: dict[int, Symbol] = {}
        return [tape.derivative(value, leaves, kept) for value in self.of.on(tape)]

    def look(self, like: Mapping[str, torch.Tensor]) -> None:
        """Once, whether the function can be differentiated so often."""
        if self.looked:
            return
        base = self.of
        while isinstance(base, Differentiated):
            base = base.of
        with graphs():
            for scale in SCALES:
                numbers = {n: (scale * value).requires_grad_() for n, value in all_sampled(base, like).items()}
                values = list(base.values(numbers).values())
                need_smooth(values, self.times)
                if are_own(values, list(numbers.values())):
                    self.looked = True
                    return
        raise NotProvided(NO_NUMBERS)

    def polynomials(self) -> dict[str, symbols.Sum | None]:
        found = self.of.polynomials().values()
        derived = [None if s is None else symbols.derivative_of(s, self.fields, self.by) for s in found]
        return dict(zip(self.names, derived, strict=True))

    def because(self) -> dict[str, str]:
        return dict(zip(self.names, self.of.because().values(), strict=True))


class Read(dict[str, torch.Tensor]):
    """What residuals read at some points; of what is differentiated by several inputs the slopes are kept in it."""

    def __init__(self, values: Mapping[str, torch.Tensor]):
        super().__init__(values)
        self.slopes: dict[Residual, list[Values]] = {}


def slopes_of(of: Residual, p: Mapping[str, torch.Tensor]) -> list[Values]:
    """Of each term its derivatives with respect to what the function reads, at each sample by itself."""
    kept = p.slopes if isinstance(p, Read) else {}
    if of not in kept:
        kept[of] = slopes_at(of, p)
    return kept[of]


def slopes_at(of: Residual, p: Mapping[str, torch.Tensor]) -> list[Values]:
    with_graph, found = torch.is_grad_enabled(), []
    with graphs() if torch.is_inference_mode_enabled() else torch.enable_grad():
        # u_x may depend on u in the student's graph, and not in this one
        own = {name: apart(p[name]) for name in (*of.reads, *of.coordinates)}
        for name, value in of.values(own).items():
            differentiable = value.requires_grad
            need(
                differentiable, "function", "operations that PyTorch differentiates", f"a constant {name}", NotProvided
            )
            slopes = torch.autograd.grad(
                value, [*own.values()], torch.ones_like(value), create_graph=with_graph, retain_graph=True,
                allow_unused=True,
            )  # fmt: skip
            found.append({read: slope for read, slope in zip(own, slopes, strict=True) if slope is not None})
    return found


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with a node of their own in the graph."""
    return tensor.view_as(tensor) if tensor.requires_grad else ordinary(tensor).detach().requires_grad_()


def ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """One of inference mode as one that a graph may hold."""
    return tensor.clone() if tensor.is_inference() else tensor


def lines_of_streams(fields: Fields, names: Sequence[str]) -> Iterator[str]:
    """What `explain` says of derivatives."""
    streams = fields.plan(names)
    alone = {f"{fields.outputs[o]}_{by_of(fields, e)}" if sum(e) else fields.outputs[o]
             for name in names for o, p in fields.read(name).items() for e in p}  # fmt: skip
    apart = fields.plan(sorted(alone)).count
    saved = f", {apart - 1} without the sums" if apart != streams.count else ""
    yield f"order       {streams.order}"
    yield f"streams     {streams.count - 1} beside the value{saved}"


def lines_of_residual(residual: Residual) -> Iterator[str]:
    """What `explain` says of terms."""
    because = residual.because()
    for name, polynomial in residual.polynomials().items():
        said = symbols.in_words(polynomial) if polynomial is not None else f"no polynomial ({because[name]})"
        said += ", in one pass with it" if polynomial is None and residual.recorded else ""
        yield f"{clipped(name, 40):<11} {said}"
    if learnt := sum(p.numel() for p in residual.parameters() if p.requires_grad):
        yield f"learnt      {learnt} coefficient{'s' if learnt > 1 else ''}"


def name_of(function: Callable) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return name if name.isidentifier() else "residual"


def by_of(fields: Fields, exponents: Sequence[int]) -> str:
    return "".join(name * n for name, n in zip(fields.inputs, exponents, strict=True))


def parts_of(result: object, N: int) -> tuple[tuple, list[torch.Tensor]]:
    """The residuals that a function returned, each [N, 1], and their keys; None of the only one."""
    expected = f"a residual [{N}, 1], or a tuple or dict of such"
    if isinstance(result, torch.Tensor):
        keys, found = (None,), [result]
    elif isinstance(result, Mapping):
        keys, found = tuple(result), list(result.values())
    else:
        need(isinstance(result, (tuple, list)), "function", expected, result, TypeError)
        keys, found = tuple(range(len(result))), list(result)
    need(bool(found), "function", expected, result)
    for part in found:
        need(isinstance(part, torch.Tensor), "function", expected, part, TypeError)
        need(part.shape == (N, 1), "function", expected, tuple(part.shape))
    return keys, found


def learnt(recorded: Sequence[torch.Tensor], known: set) -> list[nn.Parameter]:
    """The parameters in the graphs of residuals, but for those that are known."""
    leaves = [node.variable for node in nodes_of(*recorded) if hasattr(node, "variable")]
    return [leaf for leaf in dict.fromkeys(leaves) if isinstance(leaf, nn.Parameter) and leaf not in known]


def named_columns(fields: Fields, x: torch.Tensor) -> Values:
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.shape[1] != len(fields.inputs):
        return {}  # which `partials` refuses
    return dict(zip(fields.inputs, x.split(1, dim=1), strict=True))


def all_sampled(residual: Residual, like: Mapping[str, torch.Tensor]) -> Values:
    """Numbers to try a residual with, of the dtype and on the device of those that came."""
    names = (*residual.reads, *residual.coordinates)
    return {name: sampled(i, like[name]) for i, name in enumerate(names)}


def sampled(i: int, like: torch.Tensor) -> torch.Tensor:
    """The i-th of such numbers."""
    return (torch.linspace(0.5, 1.5, symbols.SAMPLES)[:, None] + 0.01 * i).to(like)


def need_smooth(values: Sequence[torch.Tensor], times: int) -> None:
    """That no operation jumps in a derivative that counts."""
    for node in nodes_of(*values):
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if (highest := JUMPS.get(name, times)) < times:
            raise NotProvided(
                f"diff: expected at most {highest} derivative{'' if highest == 1 else 's'} of a residual with {name}, "
                f"whose next one jumps (what the jump gives would be left out, silently), got {times}"
            )


def are_own(values: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> bool:
    """Whether each sample's residual is a function of that sample alone, as far as slopes are numbers there; refused
    where it is not."""
    told = True
    for value in values:
        for i, one in enumerate(value.unbind() if value.requires_grad else ()):
            for slope in torch.autograd.grad(one.sum(), of, retain_graph=True, materialize_grads=True):
                others = torch.cat([slope[:i], slope[i + 1 :]])
                told = told and not bool(others.isnan().any())
                if bool((others.nan_to_num(0.0) != 0).any()):
                    raise NotProvided("diff: expected residuals of each sample by itself, got one that mixes samples")
    return told
