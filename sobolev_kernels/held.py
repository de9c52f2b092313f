"""What a function could change by being run: its modules' attributes, what is in those that are lists and the like,
their buffers, and the generators."""

from __future__ import annotations

import ctypes
import random
import struct
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable

import numpy
import torch
from torch import nn

# The generators of numpy.random and of random, their memory and their state, when they were last asked for that.
LAST: list[tuple] = []
LAST_OF_PYTHON: list[tuple] = []
CONTAINERS = frozenset((list, dict, set, deque, OrderedDict, defaultdict))
OF_MODULES = frozenset(vars(nn.Module()))  # what each has of its own, which is held by itself
MEMORY = 4 * 625  # bytes of its 624 words, and of the place among them


def state_of_python() -> tuple:
    """That of random, in the same manner: its memory follows the head of the object, where that was seen."""
    generator = getattr(random.getstate, "__self__", None)
    if type(generator) is not random.Random or generator.gauss_next is not None:
        return random.getstate()
    memory = ctypes.string_at(id(generator) + object.__basicsize__, MEMORY)
    for of, then, state in LAST_OF_PYTHON[:]:
        if of is generator and then == memory:
            return state
    state = random.getstate()
    place, *words = struct.unpack(f"{MEMORY // 4}I", memory)
    LAST_OF_PYTHON[:] = [(generator, memory, state)] if (*words, place) == state[1] else []
    return state


def state_of_numpy() -> tuple:
    """That of numpy.random, which takes longer to ask for than a small layer to compute: while its memory stays as it
    was, and no second normal is waiting, it is the same."""
    generator = getattr(numpy.random, "get_bit_generator", lambda: None)()
    if type(generator) is not numpy.random.MT19937:
        return numpy.random.get_state()
    memory = ctypes.string_at(generator.ctypes.state_address, MEMORY)
    for of, then, state in LAST[:]:
        if of is generator and then == memory:
            return state
    state = numpy.random.get_state()
    LAST[:] = [] if state[3] else [(generator, memory, state)]
    return state


class Held:
    """These as they were when this was made, to be put back."""

    def __init__(
        self, modules: Iterable[nn.Module], devices: Iterable[torch.device] | None = None, buffers: bool = True,
        read: list[tuple[nn.Module, dict, dict]] | None = None,
    ):  # fmt: skip
        """`devices`: those whose generators are held too; None: no generator of torch. Without `buffers` it is quick:
        what is written to them, and into lists and the like, is not put back. `read`: modules with copies of their
        dicts, if the core made them."""
        if read is None:
            modules = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
            read = [(m, dict(vars(m)), dict(m._buffers)) for m in modules]
        self.modules, self.buffers, self.contents = read, [], []
        if buffers:
            held = [b for _, _, own in read for b in own.values() if b is not None and not b.is_inference()]
            self.buffers = [(b, b.clone(), b._version) for b in held]
            self.contents = [(c, c.copy()) for _, attributes, _ in read for c in containers_of(attributes)]
        self.others = (
            (random.getstate(), numpy.random.get_state()) if buffers else (state_of_python(), state_of_numpy())
        )
        self.generator = None if devices is None else torch.get_rng_state()
        self.generators = [(d, torch.cuda.get_rng_state(d)) for d in devices or () if d.type == "cuda"]

    def restore(self) -> None:
        random.setstate(self.others[0])
        numpy.random.set_state(self.others[1])
        if self.generator is not None:
            torch.set_rng_state(self.generator)
        for device, state in self.generators:
            torch.cuda.set_rng_state(state, device)
        for module, attributes, buffers in self.modules:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            module._buffers.update(buffers)
        for container, copy in self.contents:
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(copy)
        with torch.no_grad():
            for buffer, copy, version in self.buffers:
                if buffer._version != version:
                    buffer.copy_(copy)


def containers_of(attributes: dict[str, object]) -> list:
    """Those of a module's attributes that a forward may add to."""
    return [value for name in attributes.keys() - OF_MODULES if type(value := attributes[name]) in CONTAINERS]
