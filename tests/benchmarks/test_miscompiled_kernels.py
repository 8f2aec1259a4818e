"""The search for miscompiled kernels, on machine code of a few lines."""

import pytest

from tests.benchmarks.scripts import load_script


@pytest.fixture(scope="module")
def search():
    return load_script("miscompiled_kernels")


def listing(*instructions):
    """As cuobjdump prints them, 16 bytes each."""
    return "".join(f"        /*{16 * i:04x}*/    {text} ;  /* 0x0 */\n" for i, text in enumerate(instructions))


def loop(filling, *, waits, first="PRMT R52, RZ, 0x7610, R52"):
    """A turn that begins with `first`, ends with two groups of products, and leaves all but `waits` behind."""
    group = ["HGMMA.64x128x16.F32.BF16 R88, R48, gdesc[UR8], R88, gsb0"]
    group += ["HGMMA.64x128x16.F32.BF16 R88, R52, gdesc[UR8], R88, gsb0", f"WARPGROUP.DEPBAR.LE gsb0, {waits:#x}"]
    uniform = [f"UMOV UR{i}, 0x1" for i in range(8, 12)]
    return listing(*uniform, first, *group, *["NOP"] * filling, "@P0 BRA 0x40", "EXIT")


def test_an_operand_that_the_next_turn_writes_at_once_is_found(search):
    assert search.overwritten_operands(search.parse(loop(20, waits=1))) == ["PRMT R52, RZ, 0x7610, R52"]


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(loop(20, waits=0), id="waited-for"),
        pytest.param(loop(80, waits=1), id="long-after"),
        pytest.param(loop(20, waits=1, first="PRMT R48, RZ, 0x7610, R48"), id="of-a-group-that-is-done"),
        pytest.param(loop(20, waits=1, first="STG.E desc[UR4][R52.64], R60"), id="read-alone"),
    ],
)
def test_operands_that_are_safe_are_left_alone(search, code):
    assert search.overwritten_operands(search.parse(code)) == []


def test_wide_results_count_as_all_their_registers(search):
    assert search.overwritten_operands(search.parse(loop(20, waits=1, first="LDS.128 R52, [R10]"))) != []
    assert search.overwritten_operands(search.parse(loop(20, waits=1, first="LDSM.16.M88.4 R50, [R10]"))) != []


def test_a_uniform_register_that_some_path_does_not_write_is_found(search):
    code = listing("@P0 BRA 0x20", "UMOV UR5, 0x1", "UIADD3 UR4, UR5, 0x20, URZ", "EXIT")
    assert search.unwritten_reads(search.parse(code)) == ["UIADD3 UR4, UR5, 0x20, URZ"]
    code = listing("UMOV UR5, 0x1", "@P0 BRA 0x20", "UIADD3 UR4, UR5, 0x20, URZ", "EXIT")
    assert search.unwritten_reads(search.parse(code)) == []
