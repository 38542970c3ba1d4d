"""A small builder of ONNX graphs whose bytes are the same on every machine.

Only what the scripts beside it need: named initializers, nodes in order, one file. It checks a model before writing it.
"""

import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 13
IR_VERSION = 8


class Graph:
    """Collects nodes and initializers in the order in which they are added."""

    def __init__(self, name):
        self.name = name
        self.nodes = []
        self.initializers = []
        self.names = set()

    def constant(self, name, values, dtype=np.float32):
        """Adds an initializer, once for each name, and returns the name."""
        if name not in self.names:
            self.names.add(name)
            array = np.ascontiguousarray(np.asarray(values, dtype=dtype))
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op, inputs, output, **attributes):
        """Adds a node with one output, named as that output, and returns the name."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def save(self, path, inputs, outputs, description):
        """Checks the model and writes it; the file appears whole or not at all. Inputs and outputs are (name, shape),
        f32 where no element type follows."""
        value = lambda name, shape, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, shape)
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [value(*described) for described in inputs],
            [value(*described) for described in outputs],
            initializer=self.initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="fleetune-examples",
            doc_string=description,
        )
        onnx.checker.check_model(model, full_check=True)
        part = f"{path}.part"
        with open(part, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
        os.replace(part, path)
