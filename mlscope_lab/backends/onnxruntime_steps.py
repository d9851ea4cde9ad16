"""ONNX Runtime's stepper: each node of the optimised graph in an InferenceSession of its own.

ONNX Runtime writes the graph that it made of a model, with the session's own settings; its nodes run one by one, with
all optimisation off. So nothing that is looked at changes what is fused, the kernels and their weights are those of the
session, and only what is still to be read is held.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.heap import Freed
from mlscope_lab.backends.onnxruntime_blocks import filled, find_blocks, reorder_node
from mlscope_lab.backends.onnxruntime_branches import bodies
from mlscope_lab.backends.onnxruntime_kinds import kinds_of, passes_on, quantization_of, quantized_input
from mlscope_lab.backends.onnxruntime_origins import origins_of, places_of
from mlscope_lab.backends.onnxruntime_pieces import RANDOM, Piece, Pieces, read_pieces, type_proto
from mlscope_lab.backends.onnxruntime_values import dtype_of, from_array, held, size_of, to_array, type_of
from mlscope_lab.backends.onnxruntime_written import Source, write_graph
from mlscope_lab.backends.stepping import Receive, Stepper
from mlscope_lab.errors import InputError, SessionError
from mlscope_lab.trace.graph import Graph, Operation, Value

__all__ = ["OnnxRuntimeStepper"]

Array = npt.NDArray[Any]
_log = logging.getLogger(__name__)
# sessions have their own threads each; more than this many threads are not kept waiting
_THREADS: Final = 1024
_FLOATS: Final = "tensor(float)"  # all that ONNX Runtime blocks


class OnnxRuntimeStepper(Stepper):
    """See the module's description. A value in ONNX Runtime's blocked layout is shown, and taken, in plain NCHW."""

    method = "nodes of the optimised graph, each in an InferenceSession of its own"
    can_replay = True
    can_replace = True

    def __init__(self, source: Source) -> None:
        super().__init__()
        import onnxruntime

        self._ort = onnxruntime
        self._source = source
        self._folder = tempfile.TemporaryDirectory(prefix="steps-", dir=source.scratch)
        try:
            self._file = write_graph(source, Path(self._folder.name) / "graph.onnx")
            self._pieces = read_pieces(self._file, source.name, places_of(source.outline))
            self._blocks = find_blocks(self._pieces, self._weights)
        except BaseException:
            self._folder.cleanup()
            raise
        self._runners: dict[str, Any] = {}
        self._reorders: dict[int | None, Any] = {}
        self._shown: Array = np.empty(0, np.float32)
        self._room = _THREADS // (source.threads or os.cpu_count() or 1) if source.threads != 1 else 1 << 30
        self._sources, self._scopes = origins_of(self._pieces.pieces, source.outline)
        self._last_read = _last_reads(self._pieces)
        self._writers = {name: piece for piece in self._pieces.pieces for name in piece.writes}
        self._dequantized = {
            piece.node.input[0]: piece.node for piece in self._pieces.pieces if piece.node.op_type == "DequantizeLinear"
        }
        self._constants: dict[str, Array] = {}
        self._sizes: dict[str, int] = {}
        self._ran: _Run | None = None
        self._opened = 0
        self._prepared = False
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> Sequence[str]:  # type: ignore[override]
        """What the user should know of what the last run showed."""
        return tuple(self._notes)

    def graph_file(self) -> Path:
        """Return the optimised graph as an ONNX file, large constants in a file beside it; there until `close`.

        Nodes are called as the operations of the graph that `run` returns, tensors as its values. Of a graph that
        branches it is what the last run took.

        Raises
        ------
        SessionError
            If the graph branches and nothing ran yet.
        """
        self._check()
        pieces: Sequence[Piece] = self._pieces.pieces
        if any(piece.conditions for piece in pieces):
            if self._ran is None:
                raise SessionError("The graph branches, so its file depends on what runs; call run(...) first")
            pieces = self._ran.executed
        path = self._file.with_name("ran.onnx")
        path.write_bytes(self._pieces.file(pieces).SerializeToString())
        return path

    # -- a run ------------------------------------------------------------------------------------------------------

    def _run(self, feeds: Mapping[str, Array], receive: Receive) -> Graph:
        self._ran = None
        self._source.session.check(feeds)
        self._notes = {}
        run = self._ran = _Run()
        values: dict[str, Any] = {}
        freed = Freed()
        for spec in self._source.session.inputs:
            array = np.asarray(feeds[spec.name])
            dtype = "str" if array.dtype.kind in "OUT" else spec.dtype
            values[spec.name] = from_array(array, dtype)
            run.inputs.append(spec.name)
            self._show(run, spec.name, None, receive, values, [])
        self._prepare({name: type_of(value) for name, value in values.items()})
        self._show_constants(run, receive)
        for position, piece in enumerate(self._pieces.pieces):
            if piece.conditions and not self._taken(piece, values):
                continue
            run.executed.append(piece)
            if piece.node.op_type in RANDOM:
                self._notes[f"'{piece.label}' draws random numbers, others than in the session"] = None
            values.update(self._compute(piece, values))
            if piece.fixed:
                self._sizes.update((name, size_of(values[name])) for name in piece.writes)
            else:
                written: list[int] = []
                try:
                    for name in piece.writes:
                        self._show(run, name, piece, receive, values, written)
                finally:
                    run.add(self._operation(piece, run, written), piece)
            for name in self._last_read[position]:
                if name in values:
                    freed.add(4 * size_of(values.pop(name)))
        return self._graph_of(run)

    def _taken(self, piece: Piece, values: Mapping[str, Any]) -> bool:
        """Tell whether the branches that a piece lies in are taken in this run."""
        for name, wanted in piece.conditions:
            array = self._known(name, values)  # missing where it lies in a branch that is not taken itself
            if array is None or bool(array.reshape(-1)[0]) != wanted:
                return False
        return True

    def _known(self, name: str, values: Mapping[str, Any]) -> Array | None:
        """Return the array of a constant or of a value that is there; None for others."""
        if name in self._pieces.initializers and name not in self._constants:
            self._constants[name] = self._pieces.constant(name)
        return self._constants[name] if name in self._constants else to_array(values[name]) if name in values else None

    def _partial(self) -> Graph | None:
        return self._graph_of(self._ran) if self._ran is not None else None

    def _graph_of(self, run: _Run) -> Graph:
        outputs = {spec.name: run.index[spec.name] for spec in self._source.session.outputs if spec.name in run.index}
        inputs = {name: run.index[name] for name in run.inputs if name in run.index}
        return Graph(values=tuple(run.values), operations=tuple(run.operations), inputs=inputs, outputs=outputs)

    def _show(
        self, run: _Run, name: str, piece: Piece | None, receive: Receive, values: dict[str, Any], shown: list[int]
    ) -> None:
        """Show a value that has an array, note its position in `shown`, and put in its place what comes back."""
        value = values[name]
        dtype = dtype_of(value)
        if dtype is None:
            self._notes[f"'{name}' is a {type_of(value)}, which is no array and is not shown"] = None
            return
        array = to_array(value)
        if name in self._blocks.names and piece is not None:
            array = self._plain(run, name, value, piece)
        quantization = self._quantization(run, name, piece, values) if array.dtype.kind in "iu" else None
        index = run.value(Value(name=name, shape=array.shape, dtype=dtype, quantization=quantization))
        shown.append(index)
        other = receive(index, array)
        if other is not None:
            values[name] = self._own(run, index, other)

    def _show_constants(self, run: _Run, receive: Receive) -> None:
        """Show outputs of the model that are constants: operations that read nothing."""
        for spec in self._source.session.outputs:
            if spec.name in self._pieces.initializers and spec.name not in run.index:
                array = self._pieces.constant(spec.name)
                index = run.value(Value(name=spec.name, shape=array.shape, dtype=spec.dtype))
                operation = Operation(
                    name=spec.name, type="Constant", kinds=("shape",), inputs=(), outputs=(index,),
                    parameter_count=array.size,
                )  # fmt: skip
                run.add(operation, None)
                receive(index, array)

    def _operation(self, piece: Piece, run: _Run, written: Sequence[int]) -> Operation:
        constants = dict.fromkeys(piece.constants)
        count = sum(self._pieces.elements(name) for name in constants) + sum(
            self._sizes.get(name, 0) for name in dict.fromkeys(piece.reads)
        )
        return Operation(
            name=piece.label,
            type=piece.node.op_type,
            kinds=kinds_of(piece.node),
            inputs=tuple(run.index[name] for name in piece.reads if name in run.index),
            outputs=tuple(written),
            scope=self._scopes.get(piece.label, ""),
            sources=self._sources.get(piece.label, ()),
            parameter_count=count,
        )

    def _quantization(
        self, run: _Run, name: str, piece: Piece | None, values: Mapping[str, Any]
    ) -> tuple[float, int] | None:
        """Return scale and zero point of an integer tensor, where they are known and hold for all of it."""

        def constant(of: str) -> Array | None:
            return self._known(of, values)

        found = None
        if piece is not None:
            found = quantization_of(piece.node, constant) if name == piece.writes[0] else None
            if found is None and passes_on(piece.node) and piece.reads and piece.reads[0] in run.index:
                found = run.values[run.index[piece.reads[0]]].quantization
        if found is None and name in self._dequantized:
            found = quantized_input(self._dequantized[name], constant)
        return found

    # -- replay -----------------------------------------------------------------------------------------------------

    def _replay(self, operations: Sequence[int], given: Mapping[int, Array], wanted: Sequence[int]) -> dict[int, Array]:
        run = self._ran
        if run is None:
            raise SessionError("Nothing ran yet; call run(...) first")
        values = {run.values[index].name: self._own(run, index, array) for index, array in given.items()}
        shown: dict[int, Array] = {index: given[index] for index in wanted if index in given}
        for position in operations:
            piece = run.pieces[position]
            outputs = run.operations[position].outputs
            if piece is None:
                shown |= {i: self._pieces.constant(run.values[i].name) for i in outputs if i in wanted}
                continue
            for fixed in self._fixed_for(piece, values):
                values.update(self._compute(fixed, values))
            hidden = [name for name in piece.reads if name not in values]
            if hidden:
                raise SessionError(
                    f"Operation '{piece.label}' reads '{hidden[0]}', which is no array, so it runs again only together "
                    "with the operation that writes that"
                )
            values.update(self._compute(piece, values))
            for index in outputs:
                if index in wanted:
                    value = run.values[index]
                    plain = values[value.name]
                    if value.name in self._blocks.names:
                        plain = self._reordered(plain, value.shape[1])
                    shown[index] = to_array(plain)
        return {index: shown[index] for index in wanted}

    def _fixed_for(self, piece: Piece, values: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield what computes the constants that a piece reads, in order."""
        waiting, needed = [piece], dict[int, Piece]()
        while waiting:
            for name in waiting.pop().reads:
                writer = self._writers.get(name)
                if writer is not None and writer.fixed and name not in values:
                    needed[id(writer)] = writer
                    waiting.append(writer)
        return (one for one in self._pieces.pieces if id(one) in needed) if needed else iter(())

    # -- one node ---------------------------------------------------------------------------------------------------

    def _compute(self, piece: Piece, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run a piece and return what it wrote by name."""
        if not piece.writes:
            return {}
        feeds = {name: values[name] for name in piece.reads}
        try:
            runner = self._runner(piece, {name: type_of(value) for name, value in feeds.items()})
            if any(isinstance(value, (np.ndarray, list)) for value in feeds.values()):
                # ONNX Runtime makes no OrtValue of strings
                results = [held(result) for result in runner.run(list(piece.writes), feeds)]
            else:
                results = runner.run_with_ort_values(list(piece.writes), feeds)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise SessionError(
                f"Operation '{piece.label}' ({piece.node.op_type}) of model '{self._source.name}' failed in ONNX "
                f"Runtime: {error}"
            ) from error
        return dict(zip(piece.writes, results, strict=True))

    def _prepare(self, types: dict[str, str]) -> None:
        """Make the sessions of all pieces before the first run, as far as types tell.

        A session that is made between two large values stays there, and the memory of those that are gone is then too
        small for the next: each value would take new memory.
        """
        if self._prepared:
            return
        self._prepared = True
        for piece in self._pieces.pieces:
            if len(self._runners) >= self._room or any(name not in types for name in piece.reads):
                continue
            try:
                runner = self._runner(piece, types)
            except Exception as error:  # in a branch that is not taken it may; what runs fails again, by its name
                _log.debug("'%s' cannot be opened yet: %s", piece.label, error)
                continue
            types.update((output.name, output.type) for output in runner.get_outputs())
        for name in self._blocks.names & self._blocks.channels.keys():
            self._reorder(self._blocks.channels[name])

    def _runner(self, piece: Piece, types: Mapping[str, str]) -> Any:
        """Return the session of a piece, for values of some types."""
        runner = self._runners.get(piece.label)
        if runner is None:
            protos = {name: type_proto(types[name]) for name in piece.reads}
            runner = self._open(self._pieces.model([piece], protos, piece.writes))
            if len(self._runners) < self._room:
                self._runners[piece.label] = runner
        return runner

    def _open(self, model: Any) -> Any:
        settings = self._source.settings()
        settings.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # an arena keeps what it once held, here for each node
        settings.enable_cpu_mem_arena = False
        settings.enable_mem_pattern = False
        # one session runs at a time: threads of the others must not spin beside it
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = {
            "providers": [self._source.provider],
            "provider_options": [dict(self._source.provider_options)],
            "enable_fallback": 0,
        }
        if not model.graph.initializer and not any(True for node in model.graph.node for _ in bodies(node)):
            return self._ort.InferenceSession(model.SerializeToString(), settings, **provider)
        # large constants are looked for beside the file; a new one each, for truncating an old one waits for the disk
        path = self._file.with_name(f"piece{self._opened}.onnx")
        self._opened += 1
        path.write_bytes(model.SerializeToString())
        session = self._ort.InferenceSession(str(path), settings, **provider)
        path.unlink()
        return session

    # -- the blocked layout -----------------------------------------------------------------------------------------

    def _plain(self, run: _Run, name: str, value: Any, piece: Piece) -> Array:
        """Return a blocked value in NCHW."""
        around = {read: run.values[run.index[read]].shape for read in piece.reads if read in run.index}
        channels = self._blocks.channels_of(name, piece, around)
        if channels is None:
            channels = int(value.shape()[1])
            self._notes[f"'{name}' may have channels more than the model, of zeros: nothing tells how many"] = None
        shape = (value.shape()[0], channels, *value.shape()[2:])
        # what is shown is read during the call only, so that all share one memory
        if self._shown.size < np.prod(shape):
            self._shown = np.empty(int(np.prod(shape)), np.float32)
        array = self._shown[: int(np.prod(shape))].reshape(shape)
        binding = self._reorder(channels).io_binding()
        binding.bind_ortvalue_input("from", value)
        binding.bind_ortvalue_output("to", self._ort.OrtValue.ortvalue_from_numpy(array))
        self._reorder(channels).run_with_iobinding(binding)
        array.flags.writeable = False
        return array

    def _own(self, run: _Run, index: int, array: Array) -> Any:
        """Return a value as its readers take it, made of an array as `run` shows it."""
        value = run.values[index]
        want = {"bfloat16": "float32"}.get(value.dtype, value.dtype)
        if array.shape != value.shape or (want != "str" and array.dtype.name != want):
            raise InputError(f"'{value.name}' is {want}{list(value.shape)}, not {array.dtype.name}{list(array.shape)}")
        if value.name not in self._blocks.names or index in run.inputs_at:
            return from_array(array, value.dtype)
        return self._reordered(from_array(filled(array), value.dtype), None)

    def _reordered(self, value: Any, channels: int | None) -> Any:
        """Return a blocked value plain, with so many channels; for None a plain one blocked."""
        return self._reorder(channels).run_with_ort_values(["to"], {"from": value})[0]

    def _reorder(self, channels: int | None) -> Any:
        if channels not in self._reorders:
            node = reorder_node("from", "to", channels=channels)
            piece = Piece("reorder", node, ("from",), (0,), (), ("to",), False)
            self._reorders[channels] = self._open(self._pieces.model([piece], {"from": type_proto(_FLOATS)}, ["to"]))
        return self._reorders[channels]

    def _weights(self) -> dict[str, int]:
        """Return channels by output of each convolution in the graph as it was before its layout was changed."""
        level = self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        found = {}
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            before = read_pieces(write_graph(self._source, Path(folder) / "before.onnx", level), self._source.name)
            casts = {p.writes[0]: p.node.input[0] for p in before.pieces if p.node.op_type == "Cast" and p.fixed}
            for piece in before.pieces:
                if piece.node.op_type in {"Conv", "FusedConv"}:
                    weight = casts.get(piece.node.input[1], piece.node.input[1])
                    if weight in before.initializers:
                        found[piece.writes[0]] = int(before.initializers[weight].dims[0])
        return found

    def _close(self) -> None:
        self._runners.clear()
        self._reorders.clear()
        self._shown = np.empty(0, np.float32)
        self._constants.clear()
        self._ran = None
        self._folder.cleanup()


class _Run:
    """What was shown so far."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.index: dict[str, int] = {}
        self.inputs: list[str] = []
        self.operations: list[Operation] = []
        self.pieces: list[Piece | None] = []
        self.executed: list[Piece] = []

    @property
    def inputs_at(self) -> set[int]:
        return {self.index[name] for name in self.inputs if name in self.index}

    def value(self, value: Value) -> int:
        self.index[value.name] = len(self.values)
        self.values.append(value)
        return len(self.values) - 1

    def add(self, operation: Operation, piece: Piece | None) -> None:
        self.operations.append(operation)
        self.pieces.append(piece)


def _last_reads(pieces: Pieces) -> list[list[str]]:
    """Return by position of a piece what nobody reads after it."""
    last: dict[str, int] = {}
    for position, piece in enumerate(pieces.pieces):
        last.update(dict.fromkeys((*piece.needs, *piece.writes), position))
    found: list[list[str]] = [[] for _ in pieces.pieces]
    for name, position in last.items():
        found[position].append(name)
    return found
