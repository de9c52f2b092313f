"""PTX text -> functions of instructions, with every register under a name of its own and every source line kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Location(NamedTuple):
    """Where an instruction comes from: (file, line) frames, the innermost first, and its line in the PTX."""

    frames: tuple[tuple[str, int], ...]
    ptx_line: int

    def __str__(self) -> str:
        if not self.frames:
            return f"PTX line {self.ptx_line}"
        return " in ".join(f"{file}:{line}" for file, line in self.frames)


class PtxError(ValueError):
    """The PTX holds something that is not understood here."""


# Operands. A label, a variable, a parameter and a function are all symbols.


@dataclass(frozen=True)
class Register:
    name: str
    negated: bool = False


@dataclass(frozen=True)
class Immediate:
    bits: int


@dataclass(frozen=True)
class Symbol:
    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    base: Register | Immediate | Symbol
    offset: int = 0


@dataclass(frozen=True)
class Decimal:
    """1.0: only createpolicy, which does nothing here, was seen with one."""

    text: str


SINK = Register("_")
Scalar = Register | Immediate | Symbol | Address | Decimal
Operand = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    location: Location
    text: str


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Variable:
    """A parameter or a variable in some space. `values` of a module's own data may name other variables."""

    name: str
    size: int
    align: int
    space: str
    type: str
    values: tuple[str, ...] = ()


@dataclass
class Function:
    name: str
    is_kernel: bool
    params: list[Variable]
    returns: list[Variable]
    threads: tuple[int, int, int] | None = None
    body: list[Instruction | Label] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of brx.idx


@dataclass
class Module:
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    target: str = ""


NAME = r"[A-Za-z_$%][\w$.]*"
LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+([^\n;]*)")
INSTRUCTION = re.compile(r"(?:@(!?)([\w$%]+)\s+)?([a-z][\w.]*(?:::[\w.]+)*)(?![\w:])\s*([^;]*);")
VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?P<space>param|shared|local|global|const)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?\.(?P<type>\w+)\s+(?:\.ptr\s+(?:\.(?:global|shared|local|const)\s+)?"
    r"(?:\.align\s+\d+\s+)?)?(?P<name>[\w$%]+)\s*(?P<extent>(?:\[\d*\])*)\s*(?:=\s*(?P<values>.*))?$",
    re.S,
)


def width(type: str) -> int:
    """Bytes of a PTX type."""
    if type == "pred":
        return 1
    bits = int(re.sub(r"\D", "", type.removesuffix("x2")))
    return bits // 8 * (2 if type.endswith("x2") else 1)


def variable(text: str, line: int) -> Variable:
    m = VARIABLE.match(text.strip())
    if not m:
        raise PtxError(f"PTX line {line}: a declaration that parse.py does not read: {text.strip()!r}")
    size = width(m["type"])
    align = int(m["align"] or size)
    for extent in re.findall(r"\[(\d*)\]", m["extent"]):
        size *= int(extent or 0)
    values = tuple(v.strip() for v in (m["values"] or "").strip("{} \n\t").split(",") if v.strip())
    return Variable(m["name"], size, align, m["space"], m["type"], values)


class Parser:
    def __init__(self, text: str):
        lines = enumerate(text.split("\n"), 1)
        self.comments = {n: line.partition("//")[2].strip() for n, line in lines if "//" in line}
        keep_lines = lambda m: "\n" * m[0].count("\n")  # noqa: E731
        self.text = re.sub(r"/\*.*?\*/", keep_lines, re.sub(r"//[^\n]*", "", text), flags=re.S)
        self.position = 0
        self.line = 1
        self.module = Module()
        self.location: tuple[tuple[str, int], ...] = ()

    def error(self, message: str) -> PtxError:
        return PtxError(f"PTX line {self.line}: {message}")

    def take(self, pattern: str | re.Pattern) -> re.Match | None:
        m = re.compile(pattern).match(self.text, self.position)
        if m:
            self.line += m[0].count("\n")
            self.position = m.end()
        return m

    def parse(self) -> Module:
        while self.take(r"\s*") and self.position < len(self.text):
            if m := self.take(r'\.file\s+(\d+)\s+"([^"]*)"[^\n]*'):
                self.module.files[int(m[1])] = m[2].rsplit("/", 1)[-1]
            elif m := self.take(r"\.target\s+([^\n]*)"):
                self.module.target = m[1].strip()
            elif self.take(r"\.(version|address_size)[^\n]*") or self.take(r"\.section\s[^{]*\{[^}]*\}"):
                pass
            elif self.take(LOC) or self.take(r";"):
                pass
            elif re.compile(r"(\.\w+\s+)*\.(entry|func)\b").match(self.text, self.position):
                self.function()
            elif m := self.take(r"(\.[^;{]*(?:\{[^}]*\})?[^;{]*);"):
                if not m[1].startswith((".pragma", ".alias")):
                    v = variable(m[1], self.line)
                    self.module.variables[v.name] = v
            else:
                raise self.error(f"not read: {self.text[self.position :].splitlines()[0]!r}")
        return self.module

    def params(self, text: str) -> list[Variable]:
        return [variable(p, self.line) for p in text.split(",") if p.strip()]

    def function(self) -> None:
        m = self.take(
            r"(?:\.\w+\s+)*?\.(entry|func)\s*(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?\s*([^{;]*?)\s*([{;])"
        )
        if not m:
            raise self.error("a function's head that is not read")
        if m[6] == ";":
            return  # a declaration
        threads = re.search(r"\.(?:reqntid|maxntid)\s+([\d\s,]+)", m[5])
        sizes = [int(x) for x in re.findall(r"\d+", threads[1])] if threads else []
        function = Function(
            m[3],
            m[1] == "entry",
            self.params(m[4] or ""),
            self.params(m[2] or ""),
            tuple([*sizes, 1, 1][:3]) if ".reqntid" in m[5] else None,
        )
        self.location = ()
        self.module.functions[function.name] = function
        Body(self, function).parse()


class Body:
    """A function's statements. Scopes ({...}, of inline assembly and of calls) may declare a register again."""

    def __init__(self, parser: Parser, function: Function):
        self.p = parser
        self.function = function
        self.scopes: list[dict[str, str]] = [{}]
        self.opened = 0
        self.known: dict[str, Operand] = {}  # by their text, until names are declared or forgotten

    def parse(self) -> None:
        p = self.p
        while p.take(r"\s*"):
            if m := p.take(INSTRUCTION):
                self.instruction(*m.groups())
            elif p.take(r"\}"):
                self.scopes.pop()
                self.known.clear()
                if not self.scopes:
                    return
            elif p.take(r"\{"):
                self.opened += 1
                self.scopes.append({})
                self.known.clear()
            elif m := p.take(LOC):
                self.locate(m)
            elif p.take(r"\.pragma[^;]*;") or p.take(r";"):
                pass
            elif m := p.take(r"([\w$]+):\s*\.branchtargets\s+([^;]*);"):
                self.function.targets[m[1]] = tuple(t.strip() for t in m[2].split(","))
            elif m := p.take(r"([\w$]+):\s*\.callprototype[^;]*;"):
                pass
            elif m := p.take(r"([\w$]+):(?!:)"):
                self.function.body.append(Label(m[1]))
            elif m := p.take(r"\.reg\s+\.(\w+)\s+([^;]*);"):
                self.known.clear()
                for name in m[2].split(","):
                    base, _, count = name.strip().partition("<")
                    suffix = f"@{self.opened}" if len(self.scopes) > 1 else ""
                    self.scopes[-1][base + "<" if count else base] = suffix
            elif m := p.take(r"(\.(?:local|shared|param)\s[^;]*);"):
                self.known.clear()
                v = variable(m[1], p.line)
                if len(self.scopes) > 1:
                    self.scopes[-1][v.name] = f"@{self.opened}"
                    v = Variable(v.name + f"@{self.opened}", v.size, v.align, v.space, v.type)
                self.function.variables[v.name] = v
            else:
                raise p.error(f"not read: {p.text[p.position :].splitlines()[0]!r}")

    def locate(self, m: re.Match) -> None:
        frames = [(int(m[1]), int(m[2]))]
        if inlined := re.search(r"inlined_at\s+(\d+)\s+(\d+)", m[3]):
            frames.append((int(inlined[1]), int(inlined[2])))
        comment = self.p.comments.get(self.p.line, "")
        chain = re.findall(r"([^\s:\[\]@]+):(\d+):\d+", comment)
        if chain:  # Triton writes the whole chain in a comment
            self.p.location = tuple((file, int(line)) for file, line in chain)
        else:
            self.p.location = tuple((f"#{file}", line) for file, line in frames)

    def resolve(self, name: str) -> str | None:
        """The unique name of a declared register or variable."""
        base = re.sub(r"\d+$", "", name) + "<"
        for scope in reversed(self.scopes):
            for key in (name, base):
                if key in scope:
                    return name + scope[key]
        return None

    def instruction(self, negated: str | None, guard: str | None, opcode: str, rest: str) -> None:
        p = self.p
        text = " ".join(f"{opcode} {rest}".split())
        if guard is not None:
            text = f"@{negated}{guard} {text}"
        operands = tuple(self.operand(o) for o in split(rest))
        register = Register(self.register(guard), bool(negated)) if guard is not None else None
        location = Location(p.location, p.line - rest.count("\n"))
        self.function.body.append(Instruction(opcode, operands, register, location, text))

    def register(self, name: str) -> str:
        unique = self.resolve(name)
        if unique is None:
            raise self.p.error(f"register {name} is not declared")
        return unique

    def operand(self, text: str) -> Operand:
        text = text.strip()
        if text not in self.known:
            self.known[text] = self.read(text)
        return self.known[text]

    def read(self, text: str) -> Operand:
        if text.startswith(("{", "(")):
            return tuple(self.scalar(o) for o in split(text[1:-1]))
        if "|" in text:
            return tuple(self.scalar(o) for o in text.split("|"))
        return self.scalar(text)

    def scalar(self, text: str) -> Scalar:
        text = text.strip()
        if text == "_":
            return SINK
        if text.startswith("["):
            base, offset = text[1:-1].strip(), 0
            if m := re.fullmatch(r"(.*?)\s*\+\s*(-?\w+)", base, re.S):
                base, offset = m[1], int(m[2], 0)
            return Address(self.scalar(base), offset)
        if text.startswith("!"):
            return Register(self.register(text[1:].strip()), True)
        if m := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
            return Immediate(int(m[1], 16))
        if m := re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|0[0-7]+|\d+)U?", text):
            digits = m[2]
            value = int(digits, 8) if re.fullmatch(r"0[0-7]+", digits) else int(digits, 0)
            return Immediate((-value if m[1] else value) % 2**64)
        if re.fullmatch(r"-?\d+\.\d*", text):
            return Decimal(text)
        if m := re.fullmatch(rf"({NAME})\s*(?:\+\s*(\d+))?", text):
            unique = self.resolve(m[1])
            if unique is not None and unique not in self.function.variables:
                return Register(unique)
            return Symbol(unique or m[1], int(m[2] or 0))
        raise self.p.error(f"operand {text!r} is not read")


def split(text: str) -> Iterator[str]:
    """At the commas outside of brackets."""
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[(") - (c in ")]}")
        if c == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    if text[start:].strip():
        yield text[start:]


def parse(text: str) -> Module:
    return Parser(text).parse()
