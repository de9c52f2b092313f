"""Once a function it is looked at whether derivatives by autograd are those of its values: a path may be cut in part.

What is cut, and wanted, is refused; derivatives that are others are warned of, since someone may have meant them.
"""

from __future__ import annotations

import contextlib
import copy
import types
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import distributed, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as everywhere

from .advice import warn
from .backends import core
from .backends.dependence import LOOK_FOR, Evaluated
from .backends.differences import ROOMY, Found, NotProbed, look, still
from .backends.exact import HALF, graphs, is_checkpointed, tracked
from .backends.functions import tangent_of
from .backends.replayed import numbers_matter
from .backends.running import Graphs, with_graph
from .boundary import PLAIN
from .directions import Cotangents, Projections
from .errors import NotProvided, clipped
from .held import Held
from .parts import drawing_modules, modules_of, roots_of, values_of
from .rows import Rows, behind

OTHER = (
    "{} (look for a detach, no_grad or NumPy on one of its paths, or for a straight-through estimator, which may be "
    "meant); it is the derivative by autograd that is computed"
)
NUMBER = (
    "{}: {} in it takes numbers out of what depends on the inputs, where no derivative goes on, and it could not be "
    "seen that they make no difference; compute with the tensor itself, or detach() it first where constants are meant"
)
DRAWS = (
    "teacher: {}, and the student is told something else each time; let him draw no random numbers, as by dropout, and "
    "keep no state"
)
OF_FORWARD, OF_BACKWARD = ("_forward_hooks", "_forward_pre_hooks"), ("_backward_hooks", "_backward_pre_hooks")
HOOKS = OF_FORWARD + OF_BACKWARD
PASSING = "BackwardHookFunctionBackward", "CloneBackward0"  # nodes that give what they are given
OF_ALL = tuple(f"_global{hooks}" for hooks in HOOKS)
SIMPLE = (bool, int, float, str, bytes, type(None))
MANY = 64  # of a list, whose tensors are not told any more


class Flow(NamedTuple):
    """How pairs of value and tangents flow through a function: why not, its outputs, the operations by their counts."""

    unfollowed: str | None
    outputs: int = 0
    counts: dict[str, int] = {}  # noqa: RUF012
    without_rule: dict[str, int] = {}  # noqa: RUF012  # those by their own body or by a jvp
    shapes: tuple[torch.Size, ...] = ()  # of its parameters, by which another head is noticed
    fused: dict[tuple[int, str], int] = {}  # noqa: RUF012  # chains within it, by their layers and backend
    ends: tuple[int, ...] | None = None  # as a Problem has them


NUMBERS = count()
GRAPHS = 8  # kinds of graphs of a function, each of which is looked at; of more, fewer and fewer
STATES = 8  # of a function, of which what is known is kept


@dataclass
class Looked:
    """What was found of a function by running it beside its inputs, by the order of derivatives, and in which calls."""

    found: dict[int, Found] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    whole: bool = False  # whether no path is cut, for good
    hidden: tuple[str, ...] | None = None  # hooks that are hidden while it is looked at (`hidden_of`)
    cuts: bool = False  # whether constants are made of what depends on its inputs, which may be others each time


@dataclass
class Known:
    """What is known of a function in one state of its modules."""

    looked: dict[tuple | None, Looked] = field(default_factory=dict)  # by its graph, as `Evaluated` tells it
    last: Looked = field(default_factory=Looked)  # of the graph of the run before
    unlike: int = 0  # how often the graph was of kinds that it had never been of
    is_chain: bool = False  # whether its whole forward was one chain of layers
    no_chain: str = ""  # or why it was none
    tensors: tuple = ()  # what its parameters were like then
    lost: int = 0  # calls since it was a chain, or pairs flowed through it, the last time
    reads: bool = False  # whether it took numbers of what depends on its inputs
    # of pairs, by the order of derivatives and autocast's dtype
    flows: dict[tuple[int, torch.dtype | None], Flow] = field(default_factory=dict)
    graphs: Graphs = field(default_factory=Graphs)  # and the graphs that it gave
    number: int = field(default_factory=NUMBERS.__next__)  # another one where something that was known is no more

    @property
    def found(self) -> dict[int, Found]:
        """What was found where its graph was as it was last."""
        return self.last.found

    def looked_at(self, graph: tuple | None, cuts: bool) -> Looked | None:
        """What was found where its graph was like this; None where that was not looked at, as of a function whose
        graph is another each time in most calls, unless constants are made in it."""
        if graph not in self.looked:
            self.unlike += 1
            if not cuts and self.unlike > GRAPHS and self.unlike & (self.unlike - 1):
                return None
            if len(self.looked) >= GRAPHS:
                self.looked.pop(next(iter(self.looked)), None)
            self.looked[graph] = Looked()
        self.last = looked = self.looked[graph]
        return looked

    def lose(self) -> None:
        """It is no chain any more, or pairs do not flow through it: by what nobody sees but he who runs it."""
        self.lost = self.lost or 1
        self.number = next(NUMBERS)

    def look_again(self) -> None:
        """After one call, two, four and so on forget why what was is no more."""
        self.lost += 1
        if not self.lost & (self.lost - 1):
            self.no_chain, self.number = "", next(NUMBERS)
            self.flows = {key: flow for key, flow in self.flows.items() if flow.unfollowed is None}


class Met(NamedTuple):
    """A function that was met, for as long as what it is made of lives."""

    parts: tuple[weakref.ref, ...]
    states: dict[tuple, Known]


KNOWN: dict[tuple, Met] = {}


def need_paths(
    role: str, function: object, ran: Evaluated, x: torch.Tensor, order: int,
    wanted: tuple[tuple[int, ...] | None, Projections, torch.Tensor | None], known: Known | None = None,
) -> tuple[bool, bool]:  # fmt: skip
    """Raise where derivatives by the `wanted` columns, along these vectors, would be 0 though the function changes.

    Whether that could be looked at is returned, and whether each sample's outputs were seen to be its own. `ran` is the
    run of this call: numbers that it took of what depends on x must be no part of what it gives, in another graph
    another path may be cut, and constants that are made of what depends on x may be others each time. Under
    torch.compile, and amid transforms of torch.func, nothing is looked at: there the inputs are not numbers.
    """
    run, read, kinds = ran.function, ran.read, ran.kinds
    if torch.compiler.is_compiling() or watched(x):
        need_tensors(role, read)
        return False, False
    told, own = True, False
    known = known_of(function, x) if known is None else known
    known.reads = known.reads or bool(read)
    looked = known.looked_at(ran.graph, bool(ran.cuts))
    if looked is not None and looked.hidden is None:
        looked.hidden = hidden_of(function, run, x, kinds)
    for found, times in () if looked is None else found_of(role, function, ran, x, order, wanted, known, looked):
        if found.cut.any() and (cut := wanted_of(found.cut, *wanted)).any():
            known.graphs.due = True  # in the next call it may be none
            raise NotProvided(message_of(role, cut, times))
        told, own = told and found.told, found.own if times == 1 else own
    if read:  # at each call: a branch may take them elsewhere
        hidden = hidden_of(function, run, x, kinds) if looked is None else looked.hidden
        if matter(function, run, x, hidden):
            need_tensors(role, read)
    return told and looked is not None, own and looked is not None


def matter(function: object, run: Callable, x: torch.Tensor, hidden: tuple[str, ...]) -> bool:
    """Whether numbers that are taken out of tensors have a part in what a function gives, as far as can be seen; those
    that hidden hooks take have none: they look."""
    try:
        with untouched(function, hidden), unseen():
            return bool(numbers_matter(run, x))
    except NotProbed:
        return True


def need_tensors(role: str, read: str) -> None:
    """Raise where numbers were taken of what depends on the inputs, by this."""
    if read:
        raise NotProvided(NUMBER.format(role, read))


def watched(x: torch.Tensor) -> bool:
    """Whether someone follows the call, who would take what the look does for a part of it; another process, too."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return True
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0 or x.is_meta:
        return True
    return forward_ad._current_level >= 0 or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def found_again(function: object, ran: Evaluated, x: torch.Tensor, wanted: tuple, known: Known) -> Found | None:
    """What was found of the function where its graph was like this, if no path is cut there; None where it is to be
    looked at, as where constants are made in it as never before, or may go elsewhere."""
    looked = known.looked.get(ran.graph)
    if looked is None or not looked.whole:
        return None
    known.last = looked
    if looked.cuts if ran.cuts is None else ran.cuts:
        calls = looked.calls[1] + 1
        due = not looked.cuts or not calls & (calls - 1)
        if due or may_be_cut(flat_of(function, ran, x, 1, looked.hidden), wanted):
            return None
        looked.calls[1] = calls
    return looked.found[1]


def found_of(
    role: str, function: object, ran: Evaluated, x: torch.Tensor, order: int, wanted: tuple, known: Known,
    looked: Looked,
) -> Iterator[tuple[Found, int]]:  # fmt: skip
    """What is known of the function, and of its derivative if that is differentiated; looked at where it is not.

    Of one that has constants of what depends on x in it that holds of a call where no derivative is 0: else they may
    have gone elsewhere since.
    """
    cuts = looked.cuts if ran.cuts is None else ran.cuts
    changed, looked.cuts = cuts != looked.cuts, cuts
    for times in range(1, order + 1):
        looked.calls[times] = calls = looked.calls.get(times, 0) + 1
        found = looked.found.get(times)
        flat = flat_of(function, ran, x, times, looked.hidden) if cuts and found is not None else None
        due = changed or (cuts and may_be_cut(flat, wanted))
        # what stood still, as with weights of 0, or has constants in it, is looked at again, less and less often
        if found is None or due or not ((found.settled and not cuts) or calls & (calls - 1)):
            before, found = found, looked_at(function, ran.function, x, times, looked.hidden)
            if cuts and before is not None and before.cut.shape == found.cut.shape:  # what was seen once is not unseen
                found = found._replace(cut=before.cut | found.cut)
            looked.found[times] = found
            looked.whole = all(found.settled and not found.cut.any() for found in looked.found.values())
            known.number = next(NUMBERS)
            tell(role, function, found, times)
        if flat is not None and flat.shape == found.cut.shape:
            found = found._replace(cut=found.cut & flat)
        yield found, times


def may_be_cut(flat: torch.Tensor | None, wanted: tuple) -> bool:
    """Whether one of the derivatives that are wanted is 0, or nobody knows."""
    return flat is None or bool(wanted_of(flat, *wanted).any())


def flat_of(
    function: object, ran: Evaluated, x: torch.Tensor, times: int, hidden: tuple[str, ...]
) -> torch.Tensor | None:
    """Which derivatives [O, D] are 0 in all samples in this very run; None where they are not taken for that alone."""
    if ran.y.shape[1] > ROOMY or is_checkpointed() or any(hooks_of(function, OF_BACKWARD)):
        return None
    x, y, devices = ran.x, ran.y, [x.device] if x.is_cuda else []
    try:
        if times > 1:
            with untouched(function, hidden), unseen(), torch.random.fork_rng(devices), graphs():
                x = tracked(x).detach().requires_grad_()
                y = tangent_of(ran.function, x.shape[1])(x)
        return torch.stack([still(y, x, o) for o in range(y.shape[1])])
    except Exception:  # whatever it is, the function is looked at
        return None


def looked_at(function: object, run: Callable, x: torch.Tensor, times: int, hidden: tuple[str, ...]) -> Found:
    """What is found of a function; of a module in half precision, in which little can be seen, by a copy in float32."""
    if x.dtype in HALF and isinstance(function, nn.Module):
        with contextlib.suppress(Exception):
            with graphs():
                wide = copy.deepcopy(function).float()
            return look_times(wide, lambda x: wide(x).view(len(x), -1), x.float(), times, hidden)
    try:
        return look_times(function, run, x, times, hidden)
    except NotProbed:
        return Found(torch.zeros(1, x.shape[1], dtype=torch.bool, device="cpu"), settled=False, told=False)


def look_times(function: object, run: Callable, x: torch.Tensor, times: int, hidden: tuple[str, ...]) -> Found:
    with untouched(function, hidden), unseen():
        found = look(run if times == 1 else tangent_of(run, x.shape[1]), x)
    return found._replace(told=found.told and not any(hooks_of(function, hidden)))


def hidden_of(function: object, run: Callable, x: torch.Tensor, kinds: tuple | None = None) -> tuple[str, ...]:
    """The hooks that are hidden while a function is looked at, since they may count or log calls: all, unless the graph
    is another without those of forwards, which then are a part of what is computed. `kinds` are those of the graph with
    them, if it was run."""
    if not any(hooks_of(function, OF_FORWARD)):
        return HOOKS
    made = []
    with unseen(), torch.random.fork_rng([x.device] if x.is_cuda else []):
        for hidden in (HOOKS,) if kinds is not None else (HOOKS, OF_BACKWARD):
            try:
                with untouched(function, hidden):
                    made.append(with_graph(run, x).kinds)
            except Exception:  # what goes on needs what a hook gives
                return OF_BACKWARD
    with_hooks, without = (nodes_in(kinds) for kinds in (kinds or made[-1], made[0]))
    return HOOKS if with_hooks == without else OF_BACKWARD


def nodes_in(kinds: tuple) -> Counter:
    """How many nodes of each kind a graph has, but for those that pass on what they are given."""
    return Counter(kind for kind in kinds[1:] if getattr(kind, "__name__", "") not in PASSING)


def unseen() -> contextlib.AbstractContextManager:
    """A checkpoint around the call saves nothing of what is run within it, which is not run again with the call."""
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:  # torch.func in a student refuses hooks
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(with_version, as_saved)


def with_version(tensor: torch.Tensor) -> tuple[torch.Tensor, int | None]:
    """And the version of one that has numbers and a version.

    An operation that held its own result, and so itself, would never be freed.
    """
    if type(tensor) not in PLAIN or tensor.is_inference():
        return tensor, None
    return tensor.detach(), tensor._version


def as_saved(saved: tuple[torch.Tensor, int | None]) -> torch.Tensor:
    """What was saved, unless it was written to since: of what hooks give back autograd does not ask that."""
    tensor, version = saved
    if version is not None and tensor._version != version:
        raise RuntimeError("one of the variables needed for gradient computation was written to in place")
    return tensor


def tell(role: str, function: object, found: Found, times: int) -> None:
    if found.other is not None:
        o, slope, change = found.other
        what = f"output {o}" if times == 1 else f"the derivative of output {o}"
        warn(function, OTHER, f"{role}: {what} changes by {change:.3g} where its derivative says {slope:.3g}")
    if role == "teacher" and found.draws and times == 1 and not any(drawing_modules(function)):
        warn(function, DRAWS, "he gives other values for the same inputs")


def wanted_of(
    cut: torch.Tensor, wrt: tuple[int, ...] | None, projections: Projections, given: torch.Tensor | None
) -> torch.Tensor:
    """The part of cut [O, D] that derivatives by these columns, along these vectors, would go through."""
    columns = torch.zeros_like(cut)
    columns[:, list(range(cut.shape[1]) if wrt is None else wrt)] = True
    if given is not None:
        used = (given != 0).flatten(0, -2).any(0).cpu()
        if isinstance(projections, Cotangents):
            columns &= used[:, None]
        else:
            columns[:, list(range(cut.shape[1]) if wrt is None else wrt)] &= used
    return cut & columns


def message_of(role: str, cut: torch.Tensor, times: int) -> str:
    """The outputs that change with the same columns as the first of them, and these."""
    first = cut[int(cut.any(1).double().argmax())]
    outputs = named("output", (cut == first).all(1).nonzero()[:, 0].tolist())
    what = outputs if times == 1 else f"the derivative of {outputs}"
    changes = "change" if outputs.startswith("outputs ") and times == 1 else "changes"
    columns = named("column", first.nonzero()[:, 0].tolist())
    return (
        f"{role}: {what} {changes} with {columns} of the inputs, but no path of autograd leads there, and a derivative "
        f"would be a silent zero; {LOOK_FOR}"
    )


def named(what: str, places: list[int]) -> str:
    return f"{what}{'s' if len(places) > 1 else ''} {clipped(', '.join(map(str, places)), 40)}"


def known_of(function: object, x: torch.Tensor, kinds: list | None = None) -> Known:
    """What is kept of a function; one that is made anew each time is the same if it is made of the same. `kinds`: of
    its modules, where they were read."""
    parts, constants = [function], []
    if not isinstance(function, nn.Module) or type(function) is Rows:
        parts.clear()
        made_of(function, parts, constants)
    kinds = modules_read(function)[0] if kinds is None else kinds
    states, key = (x.dtype, x.shape[1], *kinds), (*map(id, parts), *constants)
    met = KNOWN.get(key)
    if met is None or any(ref() is not part for ref, part in zip(met.parts, parts, strict=True)):
        try:
            met = Met(tuple(weakref.ref(part, lambda _: KNOWN.pop(key, None)) for part in parts), {})
        except TypeError:  # of what cannot be referred to weakly nothing is kept
            return Known()
        KNOWN[key] = met
    known = met.states.get(states)
    if known is None:
        if len(met.states) >= STATES:
            met.states.pop(next(iter(met.states)), None)
        known = met.states[states] = Known()
    if core.MISSING is None and not torch.compiler.is_compiling():
        function = behind(function)
        known.graphs.goes_by(core._C.plain(roots_of(function), values_of(function)))
    return known


def modules_read(function: object) -> tuple[list, list[torch.Tensor] | None]:
    """The classes of a function's modules, their modes, hooks and whatever else may make them compute something else,
    and their parameters, each once; None of these, if one is out of the ordinary."""
    kinds, parameters, roots = [], [], roots_of(behind(function))
    if torch.compiler.is_compiling():  # of a frame by itself, where it did not follow the whole call
        return [root.training for root in roots], None
    if core.MISSING is None and core._C.modules(roots, PLAIN, kinds, parameters):
        whole = torch.jit.ScriptModule not in map(type, roots)
    else:
        kinds, whole = [state for root in roots for module in root.modules() for state in state_of(module)], False
    for hooks in OF_ALL:
        kinds += getattr(everywhere, hooks)
    return kinds, parameters if whole else None


def state_of(module: nn.Module) -> Iterator[object]:
    """What the core reads of a module, of one that it cannot read or where there is no core."""
    inside = {} if isinstance(module, torch.jit.ScriptModule) else vars(module)
    yield from (type(module), module.training)
    yield from ((name, id(value)) for name, value in inside.items() if type(value) is bool or callable(value))
    yield from ((name, *inside[name]) for name in HOOKS if inside.get(name))


def made_of(function: object, parts: list[object], constants: list[object], depth: int = 0) -> None:
    """Appends the code and whatever else of a function can be called, and the constants it was made with; of tensors
    what they are like, by which a function of others with the same code is told."""
    if type(function) is Rows:
        constants.append(function.shape)
        function = function.student
    if isinstance(function, types.MethodType):
        parts.append(function.__self__)
        function = function.__func__
    code = getattr(function, "__code__", None)
    parts.append(function if code is None else code)
    if code is None or depth > 4:
        return
    enclosed = [cell.cell_contents for cell in function.__closure__ or () if cell_is_full(cell)]
    for value in (*enclosed, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if isinstance(value, SIMPLE) or (isinstance(value, tuple) and all(isinstance(v, SIMPLE) for v in value)):
            constants.append(value)
        elif callable(value):
            made_of(value, parts, constants, depth + 1)
        else:
            constants.append(likeness_of(value))


def likeness_of(value: object, depth: int = 0) -> Hashable:
    """The shapes and dtypes of tensors, also of a few in a list, tuple or dict."""
    if isinstance(value, torch.Tensor):
        with torch._C.DisableTorchFunction():  # one that stands for another, as while a student is followed
            return value.shape, value.dtype
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or len(value) > MANY or depth > 1:
        return None
    return tuple(likeness_of(each, depth + 1) for each in value)


def cell_is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


@contextmanager
def untouched(function: object, hidden: tuple[str, ...] = HOOKS) -> Iterator[None]:
    """Within it these hooks of modules are hidden.

    After it the modules of a function hold what they held: buffers, counters, what they keep of a call; and other
    generators than torch's are where they were.
    """
    held = Held(modules_of(function))
    hooks = list(hooks_of(function, hidden))
    try:
        for module, name in hooks:
            vars(module)[name] = OrderedDict()
        yield
    finally:
        held.restore()


def hooks_of(function: object, names: tuple[str, ...]) -> Iterator[tuple[nn.Module, str]]:
    """Which of these a function's modules have."""
    modules = [m for m in modules_of(function) if not isinstance(m, torch.jit.ScriptModule)]
    return ((m, name) for m in modules for name in names if getattr(m, name, None))
