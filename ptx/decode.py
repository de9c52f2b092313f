"""Parsed PTX -> what machine.cpp executes: every operand a slot, every opcode a canonical name.

A slot holds 64 bits for each of 32 lanes. Registers, immediates, addresses of variables and special registers are all
slots, so an instruction has nothing but slots, a few fields and a handler (instructions.cpp) found by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from .parse import (
    SINK,
    Address,
    Function,
    Immediate,
    Instruction,
    Label,
    Location,
    Module,
    Operand,
    PtxError,
    Register,
    Scalar,
    Symbol,
    Variable,
    width,
)

# The fields of ptx::Instruction, in order.
FIELDS = (
    "handler guard negated outs n_outs ins n_ins target space size is_signed strong flush saturate rounding boolean "
    "transposed offset"
).split()
INSTRUCTION = np.dtype([(name, np.int32) for name in FIELDS])

# The first slots, in the order that Machine::start_block fills.
SPECIAL = (
    "%tid.x %tid.y %tid.z %ntid.x %ntid.y %ntid.z %ctaid.x %ctaid.y %ctaid.z %nctaid.x %nctaid.y %nctaid.z "
    "%laneid %warpid %nwarpid %lanemask_lt %lanemask_le %lanemask_gt %lanemask_ge %lanemask_eq %dynamic_smem_size "
    "%zero"
).split()
# Special registers that say 0 here, as if one thread block ran on one multiprocessor at time 0.
ZERO = {"%clock", "%clock64", "%clock_hi", "%globaltimer", "%smid", "%gridid", "%cluster_ctarank", "%envreg1"}

GENERIC, GLOBAL, SHARED, LOCAL, PARAM = range(5)
SPACES = {"global": GLOBAL, "const": GLOBAL, "shared": SHARED, "local": LOCAL, "param": PARAM}
SHARED_WINDOW, LOCAL_WINDOW = 1 << 60, 1 << 61
NONE, AND, OR, XOR = range(4)
BOOLEAN = {"and": AND, "or": OR, "xor": XOR, "popc": XOR}
ROUNDING = {"rn": 0, "rna": 0, "rni": 0, "rz": 1, "rzi": 1, "rm": 2, "rmi": 2, "rp": 3, "rpi": 3}
SHUFFLE = {"idx": 0, "up": 1, "down": 2, "bfly": 3}

TYPES = set("pred b8 u8 s8 b16 u16 s16 f16 bf16 b32 u32 s32 f32 f16x2 bf16x2 tf32 b64 u64 s64 f64".split())
# Modifiers that change nothing here: approximate is exact, all is cached and ordered.
IGNORED = set(
    "rn rz rm rp rni rzi rmi rpi ftz sat approx full uni sync aligned weak volatile relaxed acquire release acq_rel "
    "gpu sys cta noftz nc ca cg cs cv lu wb wt global shared local const param to".split()
)
STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel"}
NOP = {"membar", "fence", "prefetch", "prefetchu", "discard", "applypriority", "createpolicy", "nanosleep"}
NOP |= {"griddepcontrol", "brkpt", "pmevent"}
BITWISE = {"mov", "selp", "and", "or", "xor", "not", "cnot", "shl", "bfi", "popc", "clz", "brev"}
HERE = "ptx/instructions.cpp (what it does) and ptx/decode.py (its operands)"


@dataclass
class Program:
    """A kernel as the machine takes it."""

    name: str
    params: list[Variable]
    threads: tuple[int, int, int] | None
    code: np.ndarray
    operands: np.ndarray
    slots: int
    constants: dict[int, int]  # slot -> value
    globals: dict[int, tuple[str, int]]  # slot -> variable of the module and offset
    param_offsets: list[int]
    param_bytes: int
    static_shared: int
    local_bytes: int
    granule: int  # the fewest bytes that an access takes
    opcodes: list[str]
    locations: list[Location]


@dataclass
class Layout:
    """Variables one after the other, aligned."""

    offsets: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def add(self, v: Variable) -> int:
        self.size = -(-self.size // v.align) * v.align
        self.offsets[v.name] = self.size
        self.size += v.size
        return self.offsets[v.name]


def signed(bits: int, size: int = 64) -> int:
    bits &= 2**size - 1
    return bits - 2**size if bits >> (size - 1) else bits


@cache
def taken_apart(opcode: str) -> tuple[list[str], set[str], list[str], dict[str, int], int]:
    """Its words, those after the first, and which of them are types; what they tell of fields, if not 0, and the space.
    Nobody changes any of these."""
    parts = opcode.replace("::", ":").split(".")
    parts = [p for p in parts if ":" not in p or p.startswith("shared")]
    parts = ["shared" if p.startswith("shared") else p for p in parts]
    modifiers = set(parts[1:])
    fields = {
        "flush": int("ftz" in modifiers),
        "saturate": int("sat" in modifiers),
        "rounding": next((ROUNDING[p] for p in parts if p in ROUNDING), 0),
        "strong": int(bool(modifiers & STRONG)),
    }
    told = {name: value for name, value in fields.items() if value}
    space = next((SPACES[p] for p in parts if p in SPACES), GENERIC)
    return parts, modifiers, [p for p in parts[1:] if p in TYPES], told, space


class Decoder:
    def __init__(self, module: Module, kernel: Function, handler: Callable[[str], int]):
        self.module = module
        self.kernel = kernel
        self.handler = handler
        self.slots: dict[object, int] = {name: i for i, name in enumerate(SPECIAL)}
        self.constants: dict[int, int] = {}
        self.globals: dict[int, tuple[str, int]] = {}
        self.rows: list[dict[str, int]] = []
        self.operands: list[int] = []
        self.opcodes: list[str] = []
        self.locations: list[Location] = []
        self.labels: dict[str, int] = {}
        self.branches: list[tuple[int, str, Instruction]] = []
        self.tables: list[tuple[int, str, Instruction]] = []
        self.params, self.shared, self.local = Layout(), Layout(), Layout()
        self.spaces: dict[str, str] = {}
        self.granule = 16
        self.inlined = 0
        self.frames: dict[tuple, tuple[tuple[str, int], ...]] = {}  # with files by number -> by name
        self.now: Instruction | None = None

    # ---- The whole ----

    def decode(self) -> Program:
        for v in self.kernel.params:
            self.params.add(v)
            self.spaces[v.name] = "param"
        dynamic = [v for v in self.module.variables.values() if v.space == "shared" and not v.size]
        for v in self.module.variables.values():
            if v.space == "shared" and v.size:
                self.shared.add(v)
                self.spaces[v.name] = "shared"
        self.function(self.kernel, prefix="", returns_to=None)
        for v in dynamic:  # they all begin where the static ones end
            self.shared.offsets[v.name] = -(-self.shared.size // 16) * 16
            self.spaces[v.name] = "shared"
        last = Instruction("exit", (), None, Location((), 0), "the kernel's end")
        self.instruction(last, "")
        for pc, label, i in self.branches:
            self.rows[pc]["target"] = self.at(label, i)
        for slot, label, i in self.tables:
            self.constants[slot] = self.at(label, i)
        for key, slot in self.slots.items():  # dynamic shared memory has its place only now
            if isinstance(key, tuple) and key[0] == "variable" and self.spaces.get(key[1]) == "shared":
                self.constants[slot] = self.shared.offsets[key[1]] + key[2]
        place, slots = self.places()
        otherwise = [-1 if name == "guard" else 0 for name in FIELDS]
        code = np.array([tuple(map(row.get, FIELDS, otherwise)) for row in self.rows], INSTRUCTION)
        guarded = code["guard"] >= 0
        code["guard"][guarded] = place[code["guard"][guarded]]
        return Program(
            self.kernel.name,
            self.kernel.params,
            self.kernel.threads,
            code,
            place[np.array(self.operands, np.intp)],
            slots,
            {int(place[slot]): bits for slot, bits in self.constants.items()},
            {int(place[slot]): variable for slot, variable in self.globals.items()},
            [self.params.offsets[v.name] for v in self.kernel.params],
            self.params.size,
            self.shared.size,
            self.local.size,
            self.granule,
            self.opcodes,
            self.locations,
        )

    def places(self) -> tuple[np.ndarray, int]:
        """Where each slot ends up, and how many there are: registers that are first written, and then read, between one
        label and the next share places. A kernel has tens of thousands of registers, and the CPU's caches are small."""
        own = {slot for key, slot in self.slots.items() if key[0] not in ("register", "negated")}
        labels, block, home, last = set(self.labels.values()), 0, {}, {}
        touched = [self.touched(row) for row in self.rows]
        for pc, (row, (outs, read)) in enumerate(zip(self.rows, touched, strict=True)):
            block += pc in labels
            for slot in (*read, *outs):
                if home.setdefault(slot, block) != block or (slot not in last and (slot in read or "guard" in row)):
                    own.add(slot)
                last[slot] = pc
        place = np.full(len(self.slots), -1, np.int32)
        place[sorted(own)] = np.arange(len(own))  # the special ones stay the first
        free, count = [], len(own)
        for pc, (outs, read) in enumerate(touched):
            for slot in outs:
                if place[slot] < 0:
                    place[slot] = free.pop() if free else count
                    count = max(count, int(place[slot]) + 1)
            free += {int(place[slot]) for slot in (*outs, *read) if last[slot] == pc and slot not in own}
        return place, count

    def touched(self, row: dict[str, int]) -> tuple[list[int], list[int]]:
        """The slots that an instruction writes, and those that it reads."""
        outs = self.operands[row["outs"] : row["outs"] + row["n_outs"]]
        ins = self.operands[row["ins"] : row["ins"] + row["n_ins"]]
        return outs, [*ins, row["guard"]] if "guard" in row else ins

    def at(self, label: str, i: Instruction) -> int:
        if label not in self.labels:
            raise self.error(f"there is no label {label.split('/')[-1]}", i)
        return self.labels[label]

    def error(self, message: str, i: Instruction | None = None) -> PtxError:
        i = i or self.now
        where = self.readable(i.location)
        return PtxError(f"kernel {self.kernel.name}, {where} (PTX line {i.location.ptx_line}): `{i.text}`: {message}")

    def readable(self, location: Location) -> Location:
        """With files by name."""
        frames, names = location.frames, self.module.files
        if frames not in self.frames:
            named = (names.get(int(file[1:]), file) if file.startswith("#") else file for file, _ in frames)
            self.frames[frames] = tuple(zip(named, (line for _, line in frames), strict=True))
        return Location(self.frames[frames], location.ptx_line)

    def function(self, function: Function, prefix: str, returns_to: str | None) -> None:
        """A body. That of a called function stands where the call was, its registers under a prefix."""
        for v in function.variables.values():
            layout = self.shared if v.space == "shared" else self.local
            layout.add(replace(v, name=prefix + v.name))
            self.spaces[prefix + v.name] = "shared" if v.space == "shared" else "local"
        for item in function.body:
            if isinstance(item, Label):
                self.labels[prefix + item.name] = len(self.rows)
                continue
            self.now = item
            word = item.opcode.split(".")[0]
            if word == "call":
                self.call(item, prefix)
            elif word == "ret" and returns_to is not None:
                self.emit("bra", item, prefix)
                self.branches.append((len(self.rows) - 1, returns_to, item))
            elif word == "brx":
                self.indirect_branch(item, function, prefix)
            else:
                self.instruction(item, prefix)

    def call(self, i: Instruction, prefix: str) -> None:
        groups = [o for o in i.operands if isinstance(o, tuple)]
        name = next(o.name for o in i.operands if isinstance(o, Symbol))
        callee = self.module.functions.get(name)
        if callee is None:
            if "assert" in name or name == "__trap":
                return self.emit("trap", i, prefix)
            raise self.error(f"{name} has no body: an external call cannot be executed")
        self.inlined += 1
        if self.inlined > 200:
            raise self.error("more than 200 calls (recursion?)")
        inner = f"{prefix}{name}#{self.inlined}/"
        takes, gives = groups[-1] if groups and callee.params else (), groups[0] if callee.returns else ()
        for formal, actual in zip([*callee.returns, *callee.params], [*gives, *takes], strict=True):
            self.local.offsets[inner + formal.name] = self.local.offsets[prefix + actual.name]
            self.spaces[inner + formal.name] = "local"
        end = inner + "end"
        skip = None
        if i.guard is not None:  # lanes that do not call go around
            self.emit("bra", replace(i, guard=replace(i.guard, negated=not i.guard.negated)), prefix)
            skip = len(self.rows) - 1
        self.function(callee, inner, returns_to=end)
        self.labels[end] = len(self.rows)
        if skip is not None:
            self.branches.append((skip, end, i))

    def indirect_branch(self, i: Instruction, function: Function, prefix: str) -> None:
        index, table = i.operands[0], i.operands[1].name
        slots = []
        for label in function.targets[table]:
            slot = self.slots.setdefault(("label", prefix + label), len(self.slots))
            self.tables.append((slot, prefix + label, i))
            slots.append(slot)
        self.emit("brx", i, prefix, ins=[self.slot(index, prefix), *slots])

    # ---- Operands ----

    def constant(self, bits: int) -> int:
        bits %= 2**64
        slot = self.slots.setdefault(("constant", bits), len(self.slots))
        self.constants[slot] = bits
        return slot

    def slot(self, o: Scalar, prefix: str) -> int:
        if o is SINK or (isinstance(o, Register) and o.name == "_"):
            return self.slots.setdefault("_", len(self.slots))
        if isinstance(o, Register):
            slot = self.slots.setdefault(("register", prefix + o.name), len(self.slots))
            if not o.negated:
                return slot
            negated = self.slots.setdefault(("negated", len(self.slots)), len(self.slots))
            row = replace(self.now, guard=None)
            self.emit("not.pred", row, prefix, outs=[negated], ins=[slot])
            return negated
        if isinstance(o, Immediate):
            return self.constant(o.bits)
        if isinstance(o, Symbol):
            return self.symbol(o, prefix)
        raise self.error(f"operand {o} is not expected here")

    def symbol(self, o: Symbol, prefix: str) -> int:
        if o.name in SPECIAL:
            return self.slots[o.name]
        if o.name in ZERO:
            return self.constant(0)
        if o.name == "WARP_SZ":
            return self.constant(32)
        name = prefix + o.name if prefix + o.name in self.spaces else o.name
        space = self.spaces.get(name)
        if space == "param":
            return self.constant(self.params.offsets[name] + o.offset)
        if space == "local":
            return self.constant(self.local.offsets[name] + o.offset)
        v = self.module.variables.get(o.name)
        if space == "shared" or (v and v.space == "shared"):
            return self.slots.setdefault(("variable", name, o.offset), len(self.slots))
        if v is None:
            raise self.error(f"{o.name} is not known: neither a register nor a variable")
        slot = self.slots.setdefault(("variable", o.name, o.offset), len(self.slots))
        self.globals[slot] = (o.name, o.offset)
        return slot

    def flat(self, operands: tuple[Operand, ...]) -> list[Scalar]:
        return [s for o in operands for s in (o if isinstance(o, tuple) else (o,))]

    def emit(self, name: str, i: Instruction, prefix: str, outs=(), ins=(), **fields: int) -> None:
        handler = self.handler(name)
        if handler < 0:
            raise self.error(f"no instruction {name} is known; add it to {HERE}", i)
        if i.guard is not None:
            fields |= {"guard": self.slot(replace(i.guard, negated=False), prefix), "negated": int(i.guard.negated)}
        fields |= {"handler": handler, "outs": len(self.operands), "n_outs": len(outs)}
        self.operands += outs
        fields |= {"ins": len(self.operands), "n_ins": len(ins)}
        self.operands += ins
        self.rows.append(fields)
        self.opcodes.append(i.opcode)
        self.locations.append(self.readable(i.location))

    # ---- Instructions ----

    def instruction(self, i: Instruction, prefix: str) -> None:
        self.now = i
        if "cache_hint" in i.opcode:  # the policy, the last operand
            i = replace(i, operands=i.operands[:-1])
        parts, modifiers, types, fields, space = taken_apart(i.opcode)
        word = parts[0]
        put = lambda name, outs=(), ins=(), **more: self.emit(  # noqa: E731
            name, i, prefix, [self.slot(o, prefix) for o in outs], [self.slot(o, prefix) for o in ins], **fields | more
        )
        match word:
            case "ld" | "ldu" | "st":
                self.memory(i, prefix, word, types[-1], space, fields)
            case "atom" | "red":
                self.atomic(i, prefix, word, parts, types[-1], space, fields)
            case "cp":
                self.asynchronous(i, prefix, parts, fields)
            case "ldmatrix":
                if i.operands[1:] and types[-1] != "b16":
                    raise self.error(f"only ldmatrix of b16 is known; add it to {HERE}")
                base, offset = self.address(i.operands[1])
                put(
                    "ldmatrix",
                    self.flat(i.operands[:1]),
                    [base, Immediate(2**32 - 1)],
                    space=SHARED,
                    size=16,
                    offset=offset,
                    transposed=int("trans" in modifiers),
                )
            case "stmatrix":
                base, offset = self.address(i.operands[0])
                ins = [base, *self.flat(i.operands[1:]), Immediate(2**32 - 1)]
                put("stmatrix", (), ins, space=SHARED, size=16, offset=offset, transposed=int("trans" in modifiers))
            case "wgmma":
                self.warpgroup(i, put, parts, types)
            case "mov" if isinstance(i.operands[0], tuple):
                put("unpack", i.operands[0], i.operands[1:], size=width(types[-1]) // len(i.operands[0]))
            case "mov" if isinstance(i.operands[1], tuple):
                put("pack", i.operands[:1], i.operands[1], size=width(types[-1]) // len(i.operands[1]))
            case "cvta":
                window = SHARED_WINDOW if "shared" in modifiers else LOCAL_WINDOW if "local" in modifiers else 0
                name = "sub.u64" if "to" in modifiers else "add.u64"
                put(name, i.operands[:1], [i.operands[1], Immediate(window)])
            case "setp":
                compare = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(parts[1], parts[1])
                type = types[-1].replace("b", "u") if not types[-1].startswith("bf") else types[-1]
                boolean = BOOLEAN.get(parts[2], NONE)
                put(f"setp.{compare}.{type}", self.flat(i.operands[:1]), i.operands[1:], boolean=boolean)
            case "cvt":
                self.convert(i, put, parts, types)
            case "shfl":
                ins = [*i.operands[1:]]
                put("shfl.b32", self.flat(i.operands[:1]), ins, boolean=SHUFFLE[parts[2]])
            case "mma":
                if parts[4:6] != ["row", "col"]:
                    raise self.error("only mma.row.col is known")
                put(
                    f"mma.{types[-3]}.{types[0]}",
                    self.flat(i.operands[:1]),
                    [*self.flat(i.operands[1:4]), Immediate(2**32 - 1)],
                )
            case "bar" | "barrier":
                self.barrier(i, put, parts)
            case "bra":
                put("bra")
                self.branches.append((len(self.rows) - 1, prefix + i.operands[0].name, i))
            case "ret" | "exit":
                put("exit")
            case "trap":
                put("trap")
            case "activemask":
                put("activemask.b32", i.operands)
            case _ if word in NOP:
                put("nop")
            case "vote" | "redux" | "match":
                name = ".".join(p for p in parts if p != "sync")
                put(name, self.flat(i.operands[:1]), i.operands[1:])
            case _ if "cc" in modifiers or word in ("addc", "subc", "madc"):
                kept = [p for p in parts if p not in IGNORED]
                kept[-1] = "u" + kept[-1][1:]
                carry = Register("carry")
                outs = [i.operands[0], carry] if "cc" in modifiers else i.operands[:1]
                put(".".join(kept), outs, [*i.operands[1:], carry])
            case _:
                self.plain(i, put, parts)

    def plain(self, i: Instruction, put: Callable, parts: list[str]) -> None:
        """The usual: first operand out, the others in, name without the modifiers that change nothing."""
        kept = [p for p in parts if p not in IGNORED]
        word, type = kept[0], kept[-1]
        if word in BITWISE and type != "pred":
            kept[-1] = f"b{8 * width(type)}"
        elif type.startswith("b") and not type.startswith("bf") and word not in ("prmt", "lop3", "shf"):
            kept[-1] = "u" + type[1:]
        if word == "mad" and type.startswith("f"):
            kept[0] = "fma"
        put(".".join(kept), self.flat(i.operands[:1]), self.flat(i.operands[1:]))

    def address(self, o: Operand) -> tuple[Scalar, int]:
        if not isinstance(o, Address):
            raise self.error(f"{o} is no address")
        return o.base, signed(o.offset)

    def memory(self, i: Instruction, prefix: str, word: str, type: str, space: int, fields: dict[str, int]) -> None:
        values = self.flat(i.operands[:1] if word != "st" else i.operands[1:2])
        base, offset = self.address(i.operands[1 if word != "st" else 0])
        size = width(type)
        if space == PARAM:  # a called function's parameters are local memory of the caller
            name = base.name if isinstance(base, Symbol) else ""
            scoped = prefix + name if prefix + name in self.spaces else name
            space = LOCAL if self.spaces.get(scoped) == "local" else PARAM
        if space in (GLOBAL, SHARED, GENERIC):
            self.granule = min(self.granule, size * len(values))
        fields = fields | {"space": space, "size": size, "is_signed": int(type.startswith("s")), "offset": offset}
        slots = [self.slot(v, prefix) for v in values]
        address = self.slot(base, prefix)
        if word == "st":
            self.emit("st", i, prefix, [], [address, *slots], **fields)
        else:
            self.emit("ld", i, prefix, slots, [address], **fields)

    def atomic(self, i, prefix: str, word: str, parts: list[str], type: str, space: int, fields) -> None:
        operation = next(p for p in parts[1:] if p in "add min max and or xor exch cas inc dec".split())
        outs, (where, *values) = (i.operands[:1], i.operands[1:]) if word == "atom" else ((), i.operands)
        if isinstance(values[0], tuple):  # of each number by itself
            for k, value in enumerate(values[0]):
                one = Address(where.base, where.offset + k * width(type))
                out = [group[k] for group in outs] if outs else []
                self.atomic(replace(i, operands=(*out, one, value)), prefix, word, parts, type, space, fields)
            return
        base, offset = self.address(where)
        type = type.replace("b", "u") if not type.startswith("bf") else type
        self.granule = min(self.granule, width(type))
        fields = fields | {"space": space, "size": width(type), "offset": offset}
        ins = [self.slot(o, prefix) for o in (base, *values)]
        # The handler takes the address, then what the memory is combined with.
        self.emit(f"atom.{operation}.{type}", i, prefix, [self.slot(o, prefix) for o in outs], ins, **fields)

    def warpgroup(self, i: Instruction, put: Callable, parts: list[str], types: list[str]) -> None:
        """Done when it is issued, so that nothing is left to wait for."""
        if parts[1] != "mma_async":
            return put("nop")
        sums, a, described, keep, *signs = i.operands
        signs = [sign.bits for sign in signs]
        if types[0] != "f32" or not isinstance(a, tuple) or signs[:2] != [1, 1]:
            raise self.error(f"only wgmma with A in registers and its sum in f32 is known; add it to {HERE}")
        ins = [*sums, *a, described, keep, Immediate(2**32 - 1)]
        put(f"wgmma.{types[-1]}", sums, ins, size=16, space=SHARED, transposed=int(signs[2:] == [1]))

    def asynchronous(self, i: Instruction, prefix: str, parts: list[str], fields: dict[str, int]) -> None:
        kind = ".".join(p for p in parts[:3] if p not in IGNORED)
        if "bulk" in parts or "mbarrier" in parts:
            raise self.error(
                f"sm_90's bulk copies and mbarriers are not known; compile for sm_80, or add them to {HERE}"
            )
        if kind != "cp.async":
            return self.emit(kind, i, prefix, [], [self.slot(o, prefix) for o in i.operands], **fields)
        (to, to_offset), (source, source_offset) = map(self.address, i.operands[:2])
        size = i.operands[2].bits
        live = i.operands[3] if len(i.operands) > 3 else Immediate(size)
        self.granule = min(self.granule, 4)
        ins = [self.slot(o, prefix) for o in (to, source, live)]
        more = {"space": SHARED, "size": size, "offset": to_offset, "target": source_offset}
        self.emit(kind, i, prefix, [], ins, **fields | more)

    def convert(self, i: Instruction, put: Callable, parts: list[str], types: list[str]) -> None:
        to, of = types[0], types[-1]
        real = {"f16", "bf16", "f32", "f64"}
        if to == of and to in real and any(p in ("rni", "rzi", "rmi", "rpi") for p in parts):
            return put(f"round.{to}", i.operands[:1], i.operands[1:])
        kept = [p for p in parts[1:] if p in ("relu", "satfinite")] + (["rna"] if "rna" in parts else [])
        rounding = (
            {}
            if to not in {"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"} or of not in real
            else {"rounding": next((ROUNDING[p] for p in parts if p in ROUNDING), 1)}
        )
        put(".".join(["cvt", *kept, to, of]), i.operands[:1], i.operands[1:], **rounding)

    def barrier(self, i: Instruction, put: Callable, parts: list[str]) -> None:
        if "warp" in parts:
            return put("bar.warp", (), i.operands)
        if "arrive" in parts:
            raise self.error(f"bar.arrive is not known; add it to {HERE}")
        reduction = "red" in parts
        outs = i.operands[:1] if reduction else ()
        where, *rest = i.operands[1:] if reduction else i.operands
        predicate = rest.pop() if reduction else Immediate(0)
        count = rest[0] if rest else Immediate(0)
        boolean = next((BOOLEAN[p] for p in parts if p in BOOLEAN), NONE)
        put("bar", outs, [where, count, predicate], boolean=boolean)


def decode(module: Module, kernel: Function, handler: Callable[[str], int]) -> Program:
    return Decoder(module, kernel, handler).decode()


def initial_bytes(v: Variable, address_of: Callable[[str], int]) -> bytes:
    """A module variable's initial value."""
    data = bytearray(v.size)
    size = width(v.type)
    for k, value in enumerate(v.values):
        if m := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", value):
            bits = int(m[1], 16)
        elif re.fullmatch(r"-?\w+", value) and (value[0].isdigit() or value[0] == "-"):
            bits = int(value, 0)
        else:
            bits = address_of(value)
        data[k * size : (k + 1) * size] = (bits % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(data)
