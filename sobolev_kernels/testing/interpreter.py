"""Triton's interpreter, several times faster: what it does again at each operation is done once.

Importing this changes triton within the process, which must have been started with TRITON_INTERPRET=1. Every number
stays as it is: these are types, shapes and checks, and the numbers are NumPy's.
"""

from __future__ import annotations

from dataclasses import replace

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

patch_language, np_dtype, broadcast = (
    interpreter._patch_lang, interpreter._get_np_dtype, TritonSemantic.broadcast_impl_value,
)  # fmt: skip
initialise = tl.block_type.__init__
patched, made, dtypes, sizes = set(), {}, {}, {}


def patch_once(function):
    """Triton puts its interpreter into triton.language at each launch and at each call of a function in a kernel. In
    this process nothing needs the other language."""
    if id(function.__globals__) not in patched:
        patched.add(id(function.__globals__))
        patch_language(function)
    return interpreter._LangPatchScope()


def the_type(cls, element_ty, shape):
    """One object for each type of a block."""
    key = (element_ty.name, *(n.value if isinstance(n, tl.constexpr) else n for n in shape))
    return made.setdefault(key, object.__new__(cls)) if key not in made else made[key]


def initialise_once(self, element_ty, shape):
    if not hasattr(self, "numel"):
        initialise(self, element_ty, shape)


def new_tensor(self, handle, type):
    """As tl.tensor.__init__, whose shape and size follow from the type."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    if type.name not in sizes:
        shape = type.shape if type.is_block() else ()
        count = 1
        for n in shape:
            count *= n
        sizes[type.name] = tl.tuple([tl.constexpr(n) for n in shape]), tl.constexpr(count)
    self.shape, self.numel = sizes[type.name]


def np_dtype_once(type):
    if type.name not in dtypes:
        dtypes[type.name] = np_dtype(type)
    return dtypes[type.name]


def broadcast_unlike(self, lhs, rhs):
    return (lhs, rhs) if lhs.type is rhs.type else broadcast(self, lhs, rhs)


interpreter._patch_lang, interpreter._get_np_dtype = patch_once, np_dtype_once
tl.block_type.__new__, tl.block_type.__init__ = the_type, initialise_once
tl.tensor.__init__ = new_tensor
TritonSemantic.broadcast_impl_value = broadcast_unlike
# What would say that an integer overflows is asserted in debug mode alone, but computed always
builder = interpreter.interpreter_builder
builder.options = replace(builder.options, sanitize_overflow=False)
