"""ClickHouse's compressed blocks and their checksum: what is taken, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.clickhouse_blocks import BLOCK_BYTES, checksum, from_blocks, to_blocks
from deploy.local.clickhouse_error import EngineError
from deploy.local.clickhouse_http import zstd


def block(method: int, packed: bytes, size: int) -> bytes:
    whole = struct.pack("<BII", method, 9 + len(packed), size) + packed
    return checksum(whole) + whole


@given(st.binary(max_size=3000))
def test_what_goes_into_blocks_comes_out(content: bytes) -> None:
    assert from_blocks(to_blocks(content)) == content


def test_a_long_content_is_several_blocks_and_none_is_none() -> None:
    content = bytes(range(256)) * 10_000
    assert len(content) > 2 * BLOCK_BYTES
    blocks = to_blocks(content)
    first = 16 + struct.unpack_from("<I", blocks, 17)[0]
    assert from_blocks(blocks[:first]) == content[:BLOCK_BYTES] and from_blocks(blocks) == content
    assert to_blocks(b"") == b"" == from_blocks(b"")


def test_other_methods_are_taken() -> None:
    assert from_blocks(block(0x02, b"plain", 5) + block(0x90, zstd.compress(b"packed"), 6)) == b"plainpacked"


@pytest.mark.parametrize("at", [0, 15, 16, 17, 21, 30, -1])
def test_a_damaged_byte_anywhere_is_found(at: int) -> None:
    damaged = bytearray(to_blocks(b"where is my parcel? " * 20))
    damaged[at] ^= 1
    with pytest.raises(EngineError) as raised:
        from_blocks(bytes(damaged))
    assert raised.value.code in (40, 271) and str(raised.value).startswith(f"Code: {raised.value.code}. DB::Exception")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"SELECT 1", "ends within a block's head"),
        (to_blocks(b"x" * 100)[:-1], "ends within a block"),
        (block(0x82, b"\xff" * 20, 1000), "Decompression failed"),
        (block(0x90, b"no zstd", 7), "Cannot decompress"),
        (block(0x02, b"abc", 4), "holds 3 bytes instead of 4"),
        (block(0x77, b"abc", 3), "method 0x77"),
    ],
)
def test_what_is_no_block_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(EngineError, match=said) as raised:
        from_blocks(body)
    assert raised.value.code == 271


@given(st.binary(min_size=8, max_size=700), st.data())
def test_each_byte_counts_in_the_hash(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    other = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
    assert len(checksum(data)) == 16
    assert checksum(data) != checksum(other) and checksum(data) != checksum(data + b"\0")


@pytest.mark.parametrize("size", [11, 2**20, 2**31, 2**32 - 1])
def test_blocks_that_hold_more_than_is_taken_are_refused_before_they_are_unpacked(size: int) -> None:
    with pytest.raises(EngineError) as raised:
        from_blocks(block(0x02, b"x" * 4, 4) + block(0x82, b"\x00", size), most=14)
    assert raised.value.code == 307


def test_a_block_of_zstd_is_unpacked_no_further_than_it_says() -> None:
    with pytest.raises(EngineError) as raised:
        from_blocks(block(0x90, zstd.compress(bytes(2**26)), 7))
    assert (raised.value.code, "8 bytes instead of 7" in str(raised.value)) == (271, True)
