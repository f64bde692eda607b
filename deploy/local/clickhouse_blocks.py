"""ClickHouse's own compressed blocks, which its JDBC driver asks for unless told otherwise (`compress=1`). Pure.

A block: 16 bytes of checksum over all that follows, a byte for the method, the block's size without the checksum,
the size of what it holds (both 32 bits, least significant byte first), and that, compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import lz4.block
from clickhouse_cityhash.cityhash import CityHash128

from deploy.local.clickhouse_error import EngineError, too_large
from deploy.local.clickhouse_http import MAX_PLAIN_BYTES, zstd

BLOCK_BYTES = 2**20
_LZ4, _ZSTD, _NONE = 0x82, 0x90, 0x02
_CHECKSUM_BYTES = 16
_HEAD = struct.Struct("<BII")


def checksum(block: bytes) -> bytes:
    """CityHash128 of version 1.0.2 (later ones differ), as ClickHouse writes it before a block: 16 bytes."""
    first, second = divmod(CityHash128(block), 1 << 64)
    return struct.pack("<QQ", first, second)


def to_blocks(content: bytes) -> bytes:
    """The content in blocks of LZ4; nothing makes no block."""
    return b"".join(_block(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES))


def _block(part: bytes) -> bytes:
    packed = lz4.block.compress(part, store_size=False)
    whole = _HEAD.pack(_LZ4, _HEAD.size + len(packed), len(part)) + packed
    return checksum(whole) + whole


def from_blocks(body: bytes, most: int = MAX_PLAIN_BYTES) -> bytes:
    """What a run of blocks holds, of at most `most` bytes.

    Raises EngineError with ClickHouse's codes for a block that is cut or damaged, and for more.
    """
    return b"".join(_parts(body, most))


def _parts(body: bytes, most: int) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        start = at + _CHECKSUM_BYTES
        if len(body) < start + _HEAD.size:
            raise _broken("it ends within a block's head")
        method, size, whole_size = _HEAD.unpack_from(body, start)
        if size < _HEAD.size:
            raise _broken(f"a block of {size} bytes that holds {whole_size}")
        most -= whole_size
        if most < 0:  # said by the block itself, before anything is unpacked
            raise too_large("The blocks unpack to more than this server takes")
        if len(body) < start + size:
            raise _broken("it ends within a block")
        if checksum(body[start : start + size]) != body[at:start]:
            raise EngineError(40, f"Code: 40. DB::Exception: Checksum of the block at byte {at} {_DIFFERS}")
        yield _unpacked(method, body[start + _HEAD.size : start + size], whole_size)
        at = start + size


_DIFFERS = "doesn't match: the body was damaged. (CHECKSUM_DOESNT_MATCH)"


def _unpacked(method: int, packed: bytes, size: int) -> bytes:
    try:
        if method == _LZ4:
            part = lz4.block.decompress(packed, uncompressed_size=size)
        elif method == _ZSTD:
            part = zstd.ZstdDecompressor().decompress(packed, size + 1)
        elif method == _NONE:
            part = packed
        else:
            raise _broken(f"method {method:#x} is neither LZ4 nor ZSTD nor NONE")
    except (lz4.block.LZ4BlockError, zstd.ZstdError) as error:
        raise _broken(str(error)) from error
    if len(part) != size:
        raise _broken(f"a block holds {len(part)} bytes instead of {size}")
    return part


def _broken(what: str) -> EngineError:
    return EngineError(271, f"Code: 271. DB::Exception: Cannot decompress the body: {what}. (CANNOT_DECOMPRESS)")
