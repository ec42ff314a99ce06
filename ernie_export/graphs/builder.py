"""A small graph builder over onnx_ir: path-named nodes, checked calls of our operators, weights that stay on disk."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, InlinePass, RemoveUnusedNodesPass

from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.library import OPSETS, SPECS, functions
from ernie_export.graphs.ops.spec import DOMAIN
from ernie_export.graphs.weight_spec import Role, Rows, Weight

IR_VERSION = 11


class GraphBuilder:
    """Collects nodes in order; `weights` holds the description of every initializer that lives in the data file."""

    def __init__(
        self,
        name: str,
        dtype: ir.DataType,
        inputs: Sequence[tuple[str, ir.DataType, Sequence[int | str]]],
        bits: int | None = None,
        float8: bool = False,
        expert_tiles: bool = False,
    ) -> None:
        """`dtype`: of weights and activations. `inputs`: name, dtype and shape; a string is a dynamic dimension.

        `bits`: of the weights of linear layers and experts; None keeps them in `dtype`. `float8`: 8 bits are e4m3.
        `expert_tiles`: as of `Precision`.
        """
        self.dtype = dtype
        self.bits = bits
        self.float8 = float8
        self.expert_tiles = expert_tiles
        values = [ir.val(n, dtype, shape) for n, dtype, shape in inputs]
        self.graph = ir.Graph(values, [], nodes=[], name=name, opset_imports=dict(OPSETS))
        self.inputs = {value.name: value for value in values}
        self.weights: dict[str, Weight] = {}
        self._path: list[str] = []
        self._nodes: dict[str, ir.Node] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name the nodes made inside under `name`, as a folder."""
        self._path.append(name)
        yield
        self._path.pop()

    def op(self, op_type: str, *inputs: ir.Value, name: str | None = None, **attrs: Any) -> ir.Value:
        """Append a node of one output, named by the scope's path; returns the output."""
        return self.op_outputs(op_type, *inputs, outputs=1, name=name, **attrs)[0]

    def op_outputs(
        self, op_type: str, *inputs: ir.Value, outputs: int, name: str | None = None, domain: str = "", **attrs: Any
    ) -> tuple[ir.Value, ...]:
        """Append a node of several outputs, named by the scope's path; returns the outputs."""
        path = "/" + "/".join([*self._path, name or op_type])
        if path in self._nodes:
            raise ValueError(f"two nodes named {path}")
        node = ir.node(op_type, list(inputs), attrs, domain=domain, num_outputs=outputs, name=path)
        for index, value in enumerate(node.outputs):
            value.name = f"{path}/output_{index}"
        self.graph.append(node)
        self._nodes[path] = node
        return tuple(node.outputs)

    def custom(self, op_type: str, *inputs: ir.Value, **attrs: Any) -> tuple[ir.Value, ...]:
        """Append a call of one of our operators; its declaration settles inputs, attributes and outputs."""
        return self.call(op_type, inputs, attrs)

    def call(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any],
        name: str | None = None,
        outputs: int | None = None,
    ) -> tuple[ir.Value, ...]:
        """Append a call of one of our operators; see `custom`.

        Args:
            op_type: The operator.
            inputs: As declared.
            attributes: As declared.
            name: The node's name in the scope; None for the operator's.
            outputs: How many of the first outputs the graph has a use for; None for all.

        Returns:
            The outputs.
        """
        spec = SPECS[op_type]
        if len(inputs) != len(spec.inputs) or set(attributes) != set(spec.attributes):
            given = f"{len(inputs)}, {attributes}"
            raise ValueError(f"{op_type} takes {spec.inputs} and {spec.attributes}, was given {given}")
        count = len(spec.outputs) if outputs is None else outputs
        return self.op_outputs(op_type, *inputs, name=name, domain=DOMAIN, outputs=count, **attributes)

    def weight(self, weight: Weight) -> ir.Value:
        """Return the initializer of this name in the data file; it is made once, however often it is asked for."""
        if weight.name in self.weights:
            return self.graph.initializers[weight.name]
        self.weights[weight.name] = weight
        dtype = ir.DataType.from_numpy(np.dtype(weight.dtype))
        value = ir.val(weight.name, dtype, list(weight.shape))
        value.const_value = ir.LazyTensor(_not_data, dtype=dtype, shape=ir.Shape(weight.shape), name=weight.name)
        self.graph.register_initializer(value)
        return value

    def tensor(
        self, name: str, shape: Sequence[int], role: Role, dtype: ir.DataType | None = None, sources: Sequence[str] = ()
    ) -> ir.Value:
        """Return the checkpoint's tensor `name`, in the graph's dtype unless another is given.

        With `sources` the rows of these tensors, one after the other.
        """
        pieces = tuple(Rows(source) for source in sources or (name,))
        return self.weight(Weight(name, (dtype or self.dtype).numpy(), tuple(shape), pieces, role=role))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return a small initializer kept in the graph itself, named by the scope's path."""
        path = "/" + "/".join([*self._path, name])
        value = ir.val(path, const_value=ir.tensor(array, name=path))
        self.graph.register_initializer(value)
        return value

    def named(self, node: str, output: int) -> ir.Value:
        """Output number `output` of the node named `node`."""
        return self._nodes[node].outputs[output]

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Declare `value` a graph output called `name`."""
        value.name = name
        value.dtype = dtype
        value.shape = ir.Shape(shape)
        self.graph.outputs.append(value)

    def bind_at_load(self, constants: Collection[str] = ()) -> None:
        """Make every weight but `constants` an input of the graph: what runs it brings the values, for all graphs once.

        Codes of quantised weights become int32, the same bytes in words: TensorRT's plugins take no unsigned bytes.
        """
        for name, weight in self.weights.items():
            if name in constants:
                continue
            value = self.graph.initializers.pop(name)
            value.const_value = None
            if weight.quantization is not None:
                value.dtype = ir.DataType.INT32
                value.shape = ir.Shape([*weight.shape[:-1], weight.shape[-1] // 4])
            self.graph.inputs.append(value)

    def fix_dimensions(self, sizes: Mapping[str, int]) -> None:
        """Give dynamic dimensions of inputs and outputs, by name, a size."""
        for value in (*self.graph.inputs, *self.graph.outputs):
            assert value.shape is not None  # every input and output is declared with one
            dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            value.shape = ir.Shape([sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in dims])

    def save(self, path: Path, op_bodies: OpBodies, data_file: str, offsets: Mapping[str, int]) -> None:
        """Write the model with `op_bodies`, and each weight by its byte offset in `data_file`."""
        for name in self.weights.keys() & self.graph.initializers.keys():
            weight = self.weights[name]
            self.graph.initializers[name].const_value = ir.ExternalTensor(
                data_file,
                offsets[name],
                weight.nbytes,
                ir.DataType.from_numpy(np.dtype(weight.dtype)),
                shape=ir.Shape(weight.shape),
                name=name,
            )
        model = ir.Model(self.graph, ir_version=IR_VERSION, producer_name="ernie-export")
        bodies = {function.name: function for function in functions(op_bodies, self.dtype.name.lower())}
        used: set[str] = set()
        called = {node.op_type for node in self.graph if node.domain == DOMAIN}
        while called - used:  # bodies call further ones; a plugin has none
            used |= called
            called = {node.op_type for name in called for node in bodies.get(name, ()) if node.domain == DOMAIN}
        for function in bodies.values():
            if function.name in used:
                model.functions[function.identifier()] = function
        drop_unused_outputs(model)
        drop_unused_inputs(model)
        if op_bodies.inlined:
            inline(model)
        RemoveUnusedNodesPass()(model)
        onnx.save_model(ir.to_proto(model), str(path))


def drop_unused_outputs(model: ir.Model) -> None:
    """Leave out the last outputs of each function that no call has: ONNX Runtime computes what nobody reads."""
    wanted: Counter[str] = Counter()
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            if node.domain == DOMAIN:
                wanted[node.op_type] = max(wanted[node.op_type], len(node.outputs))
    for function in model.functions.values():
        del function.outputs[wanted[function.name] :]


def drop_unused_inputs(model: ir.Model) -> None:
    """Leave out the last inputs of each call that the body does not take, so that nothing is computed for them."""
    taken = {
        function.name: max((i + 1 for i, value in enumerate(function.inputs) if value.uses()), default=0)
        for function in model.functions.values()
    }
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type in taken:
            node.resize_inputs(min(len(node.inputs), taken[node.op_type]))


def inline(model: ir.Model) -> None:
    """Put functions' bodies in place of their calls, each node named by its path: the call's, then its operator.

    That is the name by which TensorRT's parser says what it refuses, and its reports what they measure. What layers
    have in common, such as their constants, is left once: an engine's plugins keep TensorRT from seeing it. What is
    left of our operators are plugins: the parser looks for them in the namespace that the node names, and by its
    domain in later versions only.
    """
    for node in model.graph:
        assert node.name is not None  # every node of a graph is made with its path
        node.metadata_props["call"] = node.name
    InlinePass()(model)
    CommonSubexpressionEliminationPass()(model)
    counts: Counter[str] = Counter()
    for node in model.graph:
        path = node.metadata_props.pop("call")
        if node.name != path:
            path = f"{path}/{node.op_type}"
            counts[path] += 1
            node.name = path if counts[path] == 1 else f"{path}_{counts[path]}"
        if node.domain == DOMAIN:
            node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))


def _not_data() -> ir.TensorProtocol:
    raise RuntimeError("a weight's values lie in the checkpoint until the data file is written")
