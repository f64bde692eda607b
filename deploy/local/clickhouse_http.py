"""ClickHouse's HTTP protocol as plain values: URL parameters to a task, answers and errors to headers and status.

Pure. What the transport itself consumes (`query`, `database`, `session_id`, ...) is taken out; `param_x` are
server-side parameters; every other URL parameter is a setting, and an unknown one is ClickHouse's own error.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import lz4.frame

from deploy.local.clickhouse_engine import DEFAULT_FORMAT, Answer, Task
from deploy.local.clickhouse_error import EngineError, too_large
from deploy.local.clickhouse_sql import read_statement

try:  # the standard library's from Python 3.14 on
    from compression import zstd
except ImportError:
    from backports import zstd

# A request above one of these is refused, the first before more of it is read.
MAX_BODY_BYTES = 64 * 2**20
MAX_PLAIN_BYTES = 256 * 2**20
_OF_THE_TRANSPORT = frozenset(
    {
        *("query", "database", "default_format", "query_id", "user", "password", "role", "quota_key"),
        *("session_id", "session_timeout", "session_check", "close_session", "client_protocol_version"),
        *("buffer_size", "wait_end_of_query", "stacktrace", "add_http_cors_header", "compress", "decompress"),
        *("enable_http_compression", "http_zlib_compression_level", "send_progress_in_http_headers"),
        *("http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close"),
    }
)
_STATUS = {
    **dict.fromkeys((6, 26, 27, 32, 36, 38, 41, 43, 44, 53, 62, 69, 70, 117, 158, 372, 373, 456, 457), 400),
    **dict.fromkeys((192, 193, 497, 516), 403),
    **dict.fromkeys((46, 47, 50, 56, 60, 73, 78, 81, 115, 336), 404),
    48: 501,
    159: 408,
    202: 503,
    307: 413,
}
_CONTENT_TYPES = {
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
}
_BINARY = ("Native", "Arrow", "Parquet", "RowBinary", "ORC", "Avro", "MsgPack", "Protobuf", "BSON", "CapnProto")


def read_task(url: Mapping[str, str], body: bytes, default_format: str | None, reads_only: bool) -> Task:
    """The task that a request states. `url` are its parameters (form fields merged in), `body` is decompressed."""
    query = url.get("query", "").encode()
    whole = query + b"\n" + body if query and body else query or body
    statement = read_statement(whole)
    if not statement.verb:
        raise EngineError(62, "Code: 62. DB::Exception: Empty query. (SYNTAX_ERROR)")
    return Task(
        statement=statement,
        database=url.get("database"),
        default_format=_format(url.get("default_format") or default_format or DEFAULT_FORMAT),
        settings={k: v for k, v in url.items() if k not in _OF_THE_TRANSPORT and not k.startswith("param_")},
        params={k.removeprefix("param_"): v for k, v in url.items() if k.startswith("param_")},
        session_id=url.get("session_id") or None,
        session_timeout_s=_seconds(url.get("session_timeout", "60")),
        reads_only=reads_only or url.get("readonly", "0") != "0",
    )


def _format(name: str) -> str:
    if not name.isidentifier():
        raise EngineError(73, f"Code: 73. DB::Exception: Unknown format {name!r}. (UNKNOWN_FORMAT)")
    return name


def read_form(content_type: str, body: bytes) -> tuple[dict[str, str], bytes]:
    """The fields of a multipart form, which count as URL parameters, and no body; of anything else the body."""
    if not content_type.startswith("multipart/form-data"):
        return {}, body
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    fields: dict[str, str] = {}
    for part in message.iter_parts():
        if part.get_filename() is not None:
            raise EngineError(48, "Code: 48. DB::Exception: External tables are not served. (NOT_IMPLEMENTED)")
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        fields[str(name)] = content.decode() if isinstance(content, bytes) else ""
    return fields, b""


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EngineError(
            36, f"Code: 36. DB::Exception: session_timeout={text} is not a number. (BAD_ARGUMENTS)"
        ) from None


def is_set(flag: str | None) -> bool:
    """Whether a URL parameter of yes or no says yes."""
    return flag in ("1", "true")


def error_status(code: int) -> int:
    """The HTTP status that ClickHouse gives an error of this code."""
    return _STATUS.get(code, 500)


def answer_headers(answer: Answer, query_id: str, time_zone: str) -> dict[str, str]:
    """The headers that ClickHouse's clients read from an answer."""
    summary = {
        "read_rows": answer.read_rows,
        "read_bytes": answer.read_bytes,
        "written_rows": answer.written_rows,
        "written_bytes": answer.written_bytes,
        "elapsed_ns": answer.elapsed_ns,
    }
    headers = {
        "X-ClickHouse-Summary": json.dumps({name: str(count) for name, count in summary.items()}),
        "X-ClickHouse-Query-Id": query_id,
        "X-ClickHouse-Timezone": time_zone,
        "Content-Type": content_type(answer.format),
    }
    if answer.format:
        headers["X-ClickHouse-Format"] = answer.format
    return headers


def content_type(shape: str | None) -> str:
    """The media type of a result in ClickHouse's format `shape`."""
    if shape and shape.startswith(_BINARY):
        return "application/octet-stream"
    return _CONTENT_TYPES.get(shape or "", "text/plain; charset=UTF-8")


def decompress(body: bytes, encoding: str | None, most: int = MAX_PLAIN_BYTES) -> bytes:
    """The body as it was before `Content-Encoding`, of at most `most` bytes. Raises EngineError for any other."""
    name = (encoding or "identity").strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _DECOMPRESSORS:
        unknown = f"Unknown Content-Encoding {encoding}: use gzip, lz4 or zstd"
        raise EngineError(48, f"Code: 48. DB::Exception: {unknown}. (NOT_IMPLEMENTED)")
    try:
        return b"".join(_inflated(body, _DECOMPRESSORS[name], most))
    except (OSError, EOFError, zlib.error, RuntimeError, zstd.ZstdError) as error:
        raise EngineError(
            354, f"Code: 354. DB::Exception: The body is not {encoding}: {error}. (ZLIB_INFLATE_FAILED)"
        ) from error


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31), "x-gzip": lambda: zlib.decompressobj(31), "deflate": zlib.decompressobj,
    "lz4": lz4.frame.LZ4FrameDecompressor, "zstd": zstd.ZstdDecompressor,
}  # fmt: skip


def _inflated(body: bytes, decompressor: Callable[[], Any], most: int) -> Iterator[bytes]:
    """The frames of a compressed body, one after the other; none is unpacked beyond the bound."""
    while body:
        frame = decompressor()
        part = frame.decompress(body, most + 1)
        most -= len(part)
        if most < 0:
            raise too_large("The body unpacks to more than this server takes")
        if not frame.eof:
            raise EOFError("it is cut off")
        yield part
        body = frame.unused_data or b""


def compress(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """The body in the cheapest encoding that the client accepts, and that encoding's name."""
    names = {part.split(";")[0].strip().lower() for part in accepted.split(",")}
    if "lz4" in names:
        return lz4.frame.compress(body), "lz4"
    if "zstd" in names:
        return zstd.compress(body, level=1), "zstd"
    if "gzip" in names:
        return gzip.compress(body, compresslevel=3, mtime=0), "gzip"
    if "deflate" in names:
        return zlib.compress(body, level=3), "deflate"
    return body, None
