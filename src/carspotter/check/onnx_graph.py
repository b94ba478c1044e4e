"""The experiments as an ONNX graph, written from a run's weights: the fourth sibling, for machines without a framework.

One graph for all three frameworks, instead of three converters: the model is small and its layers are known, the
`onnx` package alone is needed, and the graph can take uint8 photos and give the features beside the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from carspotter.models.experiments import Experiment

OPSET, IR_VERSION = 17, 8  # old enough for every ONNX Runtime since 1.12
NORM_EPSILON = 1e-3  # as the siblings have it


@dataclass(frozen=True)
class Layer:
    """Weights of a convolution, kernel (3, 3, in, out), or of a dense layer, kernel (in, out); all float32.

    `norm`: gamma, beta, running mean and running variance of the batch normalisation that goes with it, if any.
    """

    kernel: np.ndarray
    bias: np.ndarray
    norm: tuple[np.ndarray, ...] | None = None


def read_layers(framework: str, model: Any) -> list[Layer]:
    """Give a trained model's layers in the order of computation, the logits last: kernels as Keras keeps them."""
    return {"keras": _read_keras, "torch": _read_torch, "tensorflow": _read_tensorflow}[framework](model)


def build_graph(experiment: Experiment, layers: list[Layer], image_size: int) -> bytes:
    """Give the serialized ONNX model of `experiment` with these weights.

    Input `image` uint8 (N, S, S, 3), N free; outputs `features` float32 (N, dense units), what the last layer sees,
    and `logits` float32 (N, 1) for two classes, (N, classes) for more. Raises ImportError without the onnx package.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; install it with: pip install 'carspotter[export]'") from error
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))
        return name

    def add(operation: str, inputs: list[str], output: str, **attributes) -> str:
        nodes.append(helper.make_node(operation, inputs, [output], name=output, **attributes))
        return output

    def activate(x: str, layer: Layer, name: str) -> str:
        def normalise(x: str) -> str:
            figures = [
                constant(f"{name}_{part}", value)
                for part, value in zip(("gamma", "beta", "mean", "variance"), layer.norm, strict=True)
            ]
            return add("BatchNormalization", [x, *figures], f"{name}_norm", epsilon=NORM_EPSILON)

        if experiment.batch_norm == "before_relu":
            x = normalise(x)
        x = add("Relu", [x], f"{name}_relu")
        return normalise(x) if experiment.batch_norm == "after_relu" else x

    *convolutions, dense, last = layers
    x = add("Cast", ["image"], "pixels", to=TensorProto.FLOAT)
    x = add("Div", [x, constant("levels", np.float32(255))], "scaled")
    x = add("Transpose", [x], "channels_first", perm=[0, 3, 1, 2])
    for number, layer in enumerate(convolutions, 1):
        name = f"block{number}"
        weights = [constant(f"{name}_kernel", layer.kernel.transpose(3, 2, 0, 1)), constant(f"{name}_bias", layer.bias)]
        x = activate(add("Conv", [x, *weights], f"{name}_conv"), layer, name)
        x = add("MaxPool", [x], f"{name}_pool", kernel_shape=[2, 2], strides=[2, 2])
    # Rows, columns, channels, as the siblings flatten.
    x = add("Flatten", [add("Transpose", [x], "channels_last", perm=[0, 2, 3, 1])], "flat")
    weights = [constant("dense_kernel", dense.kernel), constant("dense_bias", dense.bias)]
    x = activate(add("Gemm", [x, *weights], "dense"), dense, "dense")
    x = add("Identity", [x], "features")
    add("Gemm", [x, constant("logits_kernel", last.kernel), constant("logits_bias", last.bias)], "logits")

    graph = helper.make_graph(
        nodes,
        experiment.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", image_size, image_size, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", last.kernel.shape[1]]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", last.kernel.shape[0]]),
        ],
        constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="carspotter",
    )
    checker.check_model(model)
    return model.SerializeToString()


def _read_keras(model) -> list[Layer]:
    from keras import layers

    weighted = [layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Dense)]
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    return [
        Layer(*layer.get_weights(), tuple(norm.get_weights()) if norm else None)
        for layer, norm in zip_longest(weighted, norms)  # the logits, last, have no norm
    ]


def _read_torch(model) -> list[Layer]:
    def array(tensor) -> np.ndarray:
        return tensor.detach().cpu().float().numpy()

    weighted = [*model.convolutions, model.dense, model.logits]
    norms = [*model.norms, model.dense_norm] if model.experiment.batch_norm != "none" else []
    return [
        Layer(
            array(layer.weight).transpose(2, 3, 1, 0) if layer.weight.ndim == 4 else array(layer.weight).T,
            array(layer.bias),
            tuple(array(t) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)) if norm else None,
        )
        for layer, norm in zip_longest(weighted, norms)
    ]


def _read_tensorflow(model) -> list[Layer]:
    parts = ("scale", "shift", "mean", "variance")
    return [
        Layer(
            layer["kernel"].numpy().astype(np.float32),
            layer["bias"].numpy().astype(np.float32),
            tuple(layer[part].numpy().astype(np.float32) for part in parts) if "scale" in layer else None,
        )
        for layer in (*model.blocks, model.dense, model.logits)
    ]
