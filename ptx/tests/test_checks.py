"""What the PTX machine finds and counts, on hand-written PTX, and that it does not cry wolf."""

from pathlib import Path

import numpy as np
import pytest
from test_instructions import HEAD, kernel

from ptx import PtxError, PtxFailure, load, missing
from ptx.compile import apart, kernels_in
from ptx.compile import missing as missing_tool

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SCHEDULES = ["round_robin", "ahead", "reverse", "random:1", "random:2"]
TILE = ".shared .align 16 .b8 tile[1024];\n"
# %r1: own cell, %r2: that of the thread 32 further, %r3: that of the next lane
CELLS = """
mov.u32 %r9, tile; mad.lo.u32 %r1, %r60, 4, %r9; add.u32 %r10, %r60, 32; and.b32 %r10, %r10, 63;
mad.lo.u32 %r2, %r10, 4, %r9; xor.b32 %r11, %r60, 1; mad.lo.u32 %r3, %r11, 4, %r9; add.u64 %d10, %d0, %d60;
"""


def findings(body, variables=TILE, *, grid=1, block=64, schedule="round_robin", arrays=None, **options):
    arrays = [np.zeros(block, np.uint64)] if arrays is None else arrays
    module = load(kernel(CELLS + body, len(arrays), variables))
    return module.launch("k", grid, block, arrays, schedule=schedule, findings="return", **options).findings


def kinds(*args, **options):
    return {f.kind for f in findings(*args, **options)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_orders_and_without_it_there_is_a_race(schedule):
    write, read = "st.shared.u32 [%r1], %r60;", "ld.shared.u32 %r5, [%r2]; st.global.u32 [%d10], %r5;"
    assert kinds(f"{write} bar.sync 0; {read}", schedule=schedule) == set()
    assert kinds(f"{write} barrier.sync 1, 64; {read}", schedule=schedule) == set()
    assert kinds(f"{write} {read}", schedule=schedule) - {"uninitialised"} == {"race"}
    assert kinds(f"{write} bar.sync 0; {read} {write}", schedule=schedule) == {"race"}
    assert kinds(f"{write} bar.sync 0; {read} bar.sync 0; {write}", schedule=schedule) == set()
    # A barrier of one warp does not order two.
    assert kinds(f"{write} bar.warp.sync -1; {read}", schedule=schedule) - {"uninitialised"} == {"race"}


def test_a_named_barrier_of_some_warps_orders_only_them():
    body = """
    st.shared.u32 [%r1], %r60; setp.ge.u32 %p1, %r60, 64; @%p1 bra end; bar.sync 1, 64;
    ld.shared.u32 %r5, [%r2]; {} st.global.u32 [%d10], %r5;
end:"""
    assert kinds(body.replace("{}", ""), block=96) == set()
    assert "race" in kinds(body.replace("{}", "ld.shared.u32 %r5, [tile+256];"), block=96)


def test_lanes_of_a_warp_need_a_barrier_too():
    write, read = "st.shared.u32 [%r1], %r60;", "ld.shared.u32 %r5, [%r3]; st.global.u32 [%d10], %r5;"
    assert kinds(f"{write} bar.warp.sync -1; {read}") == set()
    assert kinds(f"{write} {read}") == {"race"}
    assert kinds(f"{write} shfl.sync.bfly.b32 %r6, %r60, 1, 31, -1; {read}") == {"race"}


def test_a_race_is_found_whatever_the_values():
    """Threads may write one value to one place by one instruction, as Triton does, but not by two instructions."""
    assert kinds("st.shared.u32 [tile], %r60;", block=32) == {"write race"}
    twice = "setp.lt.u32 %p1, %r60, 32; @%p1 st.shared.u32 [tile], 7; {} @!%p1 st.shared.u32 [tile], 7;"
    for schedule in SCHEDULES:
        assert kinds("st.shared.u32 [tile], 7;", schedule=schedule) == set()
        assert kinds(twice.format(""), schedule=schedule) == {"write race"}
        assert kinds(twice.format("bar.sync 0;"), schedule=schedule) == set()
        # A reader has to be ordered after every copy, not only after its own warp's.
        read = "st.shared.u32 [tile], 7; bar.warp.sync -1; ld.shared.u32 %r5, [tile];"
        assert "race" in kinds(read, schedule=schedule)


def test_races_of_reads_by_several_warps():
    """The write comes from a warp that itself read the place last."""
    body = """
    setp.eq.u32 %p1, %r60, 0; @%p1 st.shared.u32 [tile], 1; bar.sync 0; ld.shared.u32 %r5, [tile];
    setp.eq.u32 %p2, %r60, 95; {} @%p2 st.shared.u32 [tile], 2; st.global.u32 [%d10], %r5;"""
    for schedule in SCHEDULES:
        assert kinds(body.replace("{}", ""), block=96, schedule=schedule) == {"race"}
        assert kinds(body.replace("{}", "bar.sync 0;"), block=96, schedule=schedule) == set()


def test_narrow_neighbours_are_no_race():
    body = """
    mov.u32 %r5, tile; add.u32 %r5, %r5, %r60; cvt.u16.u32 %h1, %r60; st.shared.u8 [%r5], %h1; bar.sync 0;
    ld.shared.u8 %r6, [tile+63]; st.global.u32 [%d10], %r6;"""
    assert kinds(body) == set()


def test_blocks_are_never_ordered():
    shared_place = np.zeros(1, np.uint64)
    for schedule in SCHEDULES:
        run = lambda body, s=schedule: kinds(body, grid=3, block=1, arrays=[shared_place], schedule=s)  # noqa: E731
        assert run("st.global.u64 [%d0], 1;") == {"write race"}
        assert run("atom.global.add.u64 %d20, [%d0], 1;") == set()
        assert run("atom.global.add.u64 %d20, [%d0], 1; ld.global.u64 %d21, [%d0];") == {"race"}
        assert run("atom.global.add.u64 %d20, [%d0], 1; ld.relaxed.gpu.global.u64 %d21, [%d0];") == set()
        assert run("ld.global.u64 %d21, [%d0];") == set()
        assert run("ld.global.u64 %d21, [%d0]; st.global.u64 [%d0], %d21;") == {"race", "write race"}


def test_a_race_names_both_sides():
    body = "st.shared.u32 [%r1], %r60; bar.sync 0; ld.shared.u32 %r5, [%r2]; st.shared.u32 [%r1], 1;"
    (finding,) = (f for f in findings(body, schedule="ahead") if f.opcode == "st.shared.u32")
    assert finding.count == 32
    assert "block 0 thread 32: nothing orders it with block 0 thread 0 at PTX line" in str(finding)
    assert "(ld.shared.u32), shared byte 128, 32 times" in str(finding)


@pytest.mark.parametrize(
    "opcode", ["ld.global.u32 %r5, [%d11];", "st.global.u32 [%d11], %r60;", "red.global.add.u32 [%d11], 1;"]
)
def test_global_bounds(opcode):
    data = np.zeros(70, np.uint32)
    (finding,) = findings(f"mul.wide.u32 %d11, %r60, 4; add.u64 %d11, %d11, %d0; add.u64 %d11, %d11, 28; {opcode}",
                          arrays=[data[:68]])  # fmt: skip
    assert finding.kind == "out of bounds"
    assert "thread 61: 4 bytes, at byte 272 of argument 0, which has 272, 3 times" in str(finding)
    (finding,) = findings(f"sub.u64 %d11, %d0, 4; {opcode}", arrays=[data[4:]], block=1)
    assert "at byte -4 of argument 0" in str(finding)
    assert not data[68:].any()


def test_bounds_of_views_and_of_other_memories():
    data = np.zeros((8, 8), np.float32)
    read = "ld.global.f32 %r5, [%d0+{}];"
    assert kinds(read.format(4 * 51), arrays=[data[:, :4]], block=1) == set()
    assert kinds(read.format(4 * 60), arrays=[data[:, :4]], block=1) == {"out of bounds"}
    assert kinds("ld.shared.u32 %r5, [tile+1024];") == {"out of bounds"}
    assert kinds("ld.shared.u32 %r5, [tile+-4];") == {"out of bounds"}
    assert kinds(".local .align 4 .b8 depot[8]; mov.u64 %d9, depot; ld.local.u32 %r5, [%d9+8];") == {"out of bounds"}
    assert kinds("ld.shared.u32 %r5, [tile+2];", block=1) == {"misaligned", "uninitialised"}
    assert kinds("ld.global.u64 %d9, [%d0+4];", arrays=[np.zeros(4, np.uint64)], block=1) == {"misaligned"}


def test_uninitialised_shared_memory():
    assert kinds("ld.shared.u32 %r5, [%r1];") == {"uninitialised"}
    assert kinds("st.shared.u16 [%r1], %h1; ld.shared.u32 %r5, [%r1];") == {"uninitialised"}
    assert kinds("st.shared.u32 [%r1], 0; ld.shared.u32 %r5, [%r1];") == set()
    # It does not last from block to block.
    body = "mov.u32 %r20, %ctaid.x; setp.eq.u32 %p1, %r20, 0; @%p1 st.shared.u32 [%r1], 0; ld.shared.u32 %r5, [%r1];"
    assert kinds(body, grid=2) == {"uninitialised"}


COPY = """
mul.wide.u32 %d11, %r60, 4; add.u64 %d12, %d11, %d1; cp.async.ca.shared.global [%r1], [%d12], 4;
cp.async.commit_group;
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("cp.async.wait_group 0; ld.shared.u32 %r5, [%r1];", set()),
        ("cp.async.wait_all; ld.shared.u32 %r5, [%r1];", set()),
        ("cp.async.wait_group 1; ld.shared.u32 %r5, [%r1]; cp.async.wait_all;", {"unwaited copy"}),
        ("cp.async.wait_group 1; st.shared.u32 [%r1], 0; cp.async.wait_all;", {"unwaited copy"}),
        ("cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r5, [%r1];", set()),
        ("cp.async.wait_group 1;", {"unwaited copy"}),
        ("cp.async.wait_group 0; ld.shared.u32 %r5, [%r2];", {"race", "unwaited copy", "uninitialised"}),
        ("cp.async.wait_group 0; bar.sync 0; ld.shared.u32 %r5, [%r2];", set()),
        ("bar.sync 0; cp.async.wait_group 0; ld.shared.u32 %r5, [%r2];", {"race", "unwaited copy"}),
        ("cp.async.wait_group 0; add.u64 %d12, %d12, 256; cp.async.ca.shared.global [%r1], [%d12], 4; "
         "cp.async.wait_all;", {"out of bounds"}),
        ("st.global.u32 [%d12], 1; cp.async.wait_all;", {"race"}),
    ],
)  # fmt: skip
def test_asynchronous_copies(body, expected):
    if body.startswith("st.global"):  # the source, written by the next lane while it is read
        body = "xor.b32 %r20, %r60, 1; mul.wide.u32 %d11, %r20, 4; add.u64 %d12, %d11, %d1;" + body
    for schedule in SCHEDULES:
        arrays = [np.zeros(64, np.uint64), np.arange(64, dtype=np.uint32)]
        found = kinds(COPY + body, arrays=arrays, schedule=schedule)
        assert found <= expected and bool(found) == bool(expected), schedule


def test_a_copy_arrives_only_at_the_wait():
    out, data = np.zeros(64, np.uint64), np.arange(64, dtype=np.uint32)
    body = "st.shared.u32 [%r1], 77;" + COPY + "ld.shared.u32 %r5, [%r1]; cp.async.wait_all; st.global.u32 [%d10], %r5;"
    assert kinds(body, arrays=[out, data]) == {"unwaited copy"}
    assert (out == 77).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_barriers_in_divergent_code(schedule):
    half = "setp.lt.u32 %p1, %r60, {}; @%p1 bra other; bar.sync 0; bra end;\nother: bar.sync 0;\nend:"
    assert kinds(half.format(32), schedule=schedule) == {"divergent barrier"}
    assert kinds(half.format(16), schedule=schedule) == {"divergent barrier"}
    exited = "setp.lt.u32 %p1, %r60, {}; @%p1 exit; bar.sync 0;"
    assert kinds(exited.format(32), schedule=schedule) == {"divergent barrier"}
    assert kinds(exited.format(5), schedule=schedule) == {"divergent barrier"}
    assert kinds(exited.format(64), schedule=schedule) == set()
    named = "setp.lt.u32 %p1, %r60, 32; @%p1 bra end; bar.sync 1, 64;\nend:"
    assert kinds(named, schedule=schedule) == {"deadlock"}
    waits = "setp.lt.u32 %p1, %r60, 32; @%p1 bra other; bar.sync 1; bra end;\nother: bar.sync 2;\nend:"
    assert kinds(waits, schedule=schedule) == {"deadlock"}


def test_lanes_that_meet_in_divergent_code():
    shuffle = "shfl.sync.bfly.b32 %r5, %r60, 1, 31, {};"
    assert kinds(f"setp.lt.u32 %p1, %r60, 16; @%p1 bra end; {shuffle.format(-1)}\nend:", block=32) == {"divergent warp"}
    assert kinds(f"setp.lt.u32 %p1, %r60, 16; @%p1 bra end; {shuffle.format('0xffff0000')}\nend:", block=32) == set()
    assert kinds(f"setp.lt.u32 %p1, %r60, 16; @%p1 {shuffle.format('0xffff')}", block=32) == set()
    assert kinds(f"setp.lt.u32 %p1, %r60, 16; @%p1 exit; {shuffle.format(-1)}", block=32) == set()
    assert kinds(shuffle.format("0xffff"), block=32) == {"divergent warp"}
    assert kinds("shfl.sync.idx.b32 %r5, %r60, 20, 31, -1;", block=16) == {"divergent warp"}


def test_what_never_ends_and_what_stops_itself():
    assert kinds("again: bra again;", max_steps=1000) == {"endless"}
    assert kinds("setp.eq.u32 %p1, %r60, 3; @%p1 trap;") == {"trap"}


def test_findings_raise_and_name_source_lines():
    body = """
    .loc 1 12 5
    st.shared.u32 [%r1], %r60;
    .loc 1 40 7, function_name $L__info_string0, inlined_at 2 15 3
    ld.shared.u32 %r5, [%r2];"""
    text = kernel(CELLS + body, 1, TILE) + '.file 1 "/somewhere/deep/tile.h"\n.file 2 "kernel.cu"\n'
    with pytest.raises(PtxFailure) as error:
        load(text).launch("k", 1, 64, [np.zeros(64, np.uint64)])
    assert "race at tile.h:40 in kernel.cu:15 (ld.shared.u32)" in str(error.value)
    assert "at tile.h:12 (st.shared.u32)" in str(error.value)
    assert error.value.result.kinds() >= {"race"}


def test_an_unknown_instruction_is_named():
    module = load(kernel(".loc 1 9 1\n frobnicate.sync.u32 %r1, %r60;", 1) + '.file 1 "a.cu"\n')
    with pytest.raises(
        PtxError, match=r"a\.cu:9 .*`frobnicate\.sync\.u32 %r1, %r60`: no instruction frobnicate.*instructions\.cpp"
    ):
        module.program("k")
    for body, what in [
        ("mov.u32 %r1, %r999x;", "not known"),
        ("bra nowhere;", "no label nowhere"),
        ("cp.async.bulk.shared.global [%r1], [%d0], 16;", "sm_90"),
        ("call.uni vprintf, ();", "no body"),
    ]:
        with pytest.raises(PtxError, match=what):
            load(kernel(body, 1)).program("k")


def test_arguments_are_checked():
    module = load(f"{HEAD}.visible .entry k(.param .u64 a, .param .u32 n)\n.reqntid 32\n{{\nret;\n}}\n")
    data = np.zeros(4)
    module.launch("k", 1, None, [data, 3])
    for args, block, options, message in [
        ([data], None, {}, "takes 2 arguments, given 1"),
        ([data, 1, 2], None, {}, "takes 2 arguments, given 3"),
        ([data, 1.5], None, {}, "is u32, given the float"),
        ([data, 1], 64, {}, "compiled for blocks of"),
        ([data, 1], None, {"schedule": "fast"}, "schedule 'fast'"),
        ([data, 1], None, {"findings": "print"}, "findings 'print'"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.launch("k", 1, block, args, **options)
    with pytest.raises(ValueError, match="expected one of"):
        module.launch("other", 1, 32, [data, 1])


# ---- Counts ----


def counts(body, variables=TILE, arrays=None, block=32):
    arrays = [np.zeros(64 * 64, np.float32)] if arrays is None else arrays
    return load(kernel(body, len(arrays), variables)).launch("k", 1, block, arrays, findings="return")


@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (4, 4), (8, 8), (32, 32), (64, 32)])
def test_sectors_per_request(stride, sectors):
    r = counts(f"mul.wide.u32 %d10, %r60, {stride}; add.u64 %d10, %d10, %d0; ld.global.u32 %r5, [%d10];",
               arrays=[aligned(4096)])  # fmt: skip
    assert (r.requests, r.sectors_per_request, r.ideal_sectors) == (1, sectors, max(1, min(4, stride)) if stride else 1)
    assert (r.bytes_read, r.unique_bytes_read) == (128, 128 if stride else 4)


def aligned(n):
    raw = np.zeros(n + 128, np.uint8)
    start = -raw.ctypes.data % 128
    return raw[start : start + n]


@pytest.mark.parametrize(
    ("width", "stride", "conflicts"),
    [
        ("u32", 4, 0),
        ("u32", 8, 1),
        ("u32", 32, 7),
        ("u32", 0, 0),
        ("v2.u32", 8, 0),
        ("v4.u32", 16, 0),
        ("v4.u32", 32, 4),
    ],
)
def test_bank_conflicts(width, stride, conflicts):
    registers = {"u32": "%r5", "v2.u32": "{%r5, %r6}", "v4.u32": "{%r5, %r6, %r7, %r8}"}[width]
    r = counts(f"mov.u32 %r1, tile; mad.lo.u32 %r1, %r60, {stride}, %r1; ld.shared.{width} {registers}, [%r1];")
    assert r.bank_conflicts == conflicts


def test_bytes_and_instructions():
    data = np.zeros(32, np.uint64)
    body = """
    add.u64 %d10, %d0, %d60; ld.global.u64 %d11, [%d10]; ld.global.u64 %d11, [%d10];
    setp.lt.u32 %p1, %r60, 8; @%p1 st.global.u64 [%d10], %d11; @%p1 add.u32 %r1, %r1, 1;"""
    r = counts(body, arrays=[data])
    assert (r.bytes_read, r.unique_bytes_read, r.bytes_written, r.unique_bytes_written) == (512, 256, 64, 64)
    assert (r.instructions["ld.global.u64"], r.count("ld."), r.instructions["add.u32"]) == (2, 3, 1)
    assert next(line for line in r.lines if line.opcode == "add.u32").threads == 8
    assert "global read 512 (256 unique) and written 64 (64 unique) bytes" in str(r)


@pytest.mark.skipif(missing_tool("nvcc") is not None, reason=str(missing_tool("nvcc")))
def test_the_example_of_the_documentation(capsys):
    page = Path(__file__).parents[2] / "docs" / "ptx.md"
    exec(page.read_text(encoding="utf-8").split("```py\n")[1].split("```")[0], {})
    assert "reverse" in capsys.readouterr().out


def test_memory_behind_a_structure():
    """Pointers in a structure are in bounds of the arrays that are named, and of no other."""
    text = f"{HEAD}.visible .entry k(.param .align 8 .b8 s[16])\n{{\n.reg .b64 %d<4>;\n.reg .b32 %r<2>;\n"
    text += (
        "ld.param.u64 %d0, [s+8]; ld.global.u32 %r0, [%d0]; add.u32 %r0, %r0, 1; st.global.u32 [%d0], %r0; ret;\n}\n"
    )
    array = np.array([41], np.uint32)
    structure = bytes(8) + array.ctypes.data.to_bytes(8, "little")
    load(text).launch("k", 1, 1, [structure], memory={"count": array})
    assert array[0] == 42
    with pytest.raises(PtxFailure, match="out of bounds"):
        load(text).launch("k", 1, 1, [structure])
    with pytest.raises(PtxFailure, match="of other"):
        load(text).launch("k", 1, 1, [structure], memory={"other": np.zeros(1, np.uint32)})


def test_kernels_of_one_text_are_taken_apart():
    """Each with the functions that it calls, those too that these call, and with all data of the module."""
    kernels = ["_Z1a", "_Z1b", "_Z1c"]
    functions = {"_Z1f": "{ call.uni _Z1g, (); }", "_Z1g": "", "_Z1h": ""}
    text = HEAD + "".join(f".func {name}();\n" for name in functions) + ".global .u32 data;\n"
    text += "".join(f".func {name}()\n{{ {body} ret; }}\n" for name, body in functions.items())
    for name, called in zip(kernels, ["call.uni _Z1f, ();", "{ call.uni _Z1g, (); }", ""], strict=True):
        text += f".visible .entry {name}(.param .u64 p)\n{{ {called} ret; }}\n"
    found = apart(text + '.file 1 "x.cuh"\n')
    assert list(found) == kernels
    for name, needed in zip(kernels, [{"_Z1f", "_Z1g"}, {"_Z1g"}, set()], strict=True):
        module = load(found[name])
        assert module.kernels == [name] and list(module.variables) == ["data"]
        assert {*module.parsed.functions} == {name, *needed} and module.parsed.files
        module.launch(name, 1, 32, [0])


@pytest.mark.skipif(missing_tool("cuobjdump") is not None, reason="needs cuobjdump")
def test_a_library_without_kernels_has_none():
    assert kernels_in(Path(np._core._multiarray_umath.__file__)) == {}
