"""A trained model as an ONNX graph, layer by layer: for machines without a framework.

The models consist of a dozen stock layers, so that each is one line here, and the `onnx` package alone is needed. The
frameworks' own converters would bring tf2onnx or onnxscript, take no uint8 photos and give no features.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from carspotter.models.experiments import Experiment

OPSET, IR_VERSION = 17, 8  # old enough for every ONNX Runtime since 1.12
CAFFE_MEANS = (103.939, 116.779, 123.68)  # of ImageNet: blue, green, red; VGG16's weights know pixels less these
# What tells known cars from all else best, each part of length 1 (LOG.md): of MobileNetV2 the means of these maps, of
# all others means and deviations of what the last LEVELS max-pools give. The last layer sees only what separates the
# two classes.
FEATURE_MAPS = ("block_13_expand_relu", "out_relu")
LEVELS = 3


class Graph:
    """An ONNX graph under construction; `add` appends an operation and returns the name of its output."""

    def __init__(self):
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise ImportError(f"{error}; install it with: pip install 'carspotter[export]'") from error
        self.onnx, self.nodes, self.constants = onnx, [], []

    def add(self, operation: str, inputs: list, output: str | None = None, **attributes) -> str:
        names = [name if isinstance(name, str) else self.constant(name) for name in inputs]
        output = output or f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operation, names, [output], name=output, **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        value = np.asarray(value)
        value = value if value.dtype == np.int64 else np.ascontiguousarray(value, dtype=np.float32)
        self.constants.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def normalise(self, x: str, gamma, beta, mean, variance, epsilon: float) -> str:
        gamma = np.ones_like(mean) if gamma is None else gamma
        beta = np.zeros_like(mean) if beta is None else beta
        return self.add("BatchNormalization", [x, gamma, beta, mean, variance], epsilon=epsilon)

    def summarise(self, maps: list[str], deviations: bool) -> None:
        """Add the output `features`: means, and if wanted deviations, of each of the maps, each of length 1."""
        parts = []
        for x in maps:
            mean = self.add("GlobalAveragePool", [x])
            parts.append(mean)
            if deviations:
                squares = self.add("GlobalAveragePool", [self.add("Mul", [x, x])])
                variance = self.add("Relu", [self.add("Sub", [squares, self.add("Mul", [mean, mean])])])
                parts.append(self.add("Sqrt", [variance]))
        parts = [self.add("LpNormalization", [self.add("Flatten", [part])], axis=1, p=2) for part in parts]
        self.add("Concat", parts, "features", axis=1)

    def finish(self, size: int, logits: int, features: int, metadata: dict[str, str]) -> bytes:
        helper, kind, describe = self.onnx.helper, self.onnx.TensorProto, self.onnx.helper.make_tensor_value_info
        entry = describe("image", kind.UINT8, ["N", size, size, 3])
        answers = [describe("logits", kind.FLOAT, ["N", logits]), describe("features", kind.FLOAT, ["N", features])]
        graph = helper.make_graph(self.nodes, "photo_check", [entry], answers, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="carspotter")
        helper.set_model_props(model, metadata)
        self.onnx.checker.check_model(model)
        return model.SerializeToString()


def build_graph(framework: str, model: Any, experiment: Experiment, classes: list[str]) -> bytes:
    """Return a trained model as a serialized ONNX model.

    Input `image` uint8 (N, S, S, 3), N free; outputs `logits` float32 (N, 1) for two classes, (N, classes) for more,
    and `features` float32 (N, D), see FEATURE_MAPS. Its metadata hold the class names and whether a prediction is the
    mean of the photo's and its mirror image's. Raises ImportError without the onnx package, ValueError for a layer that
    has no line here.
    """
    graph = Graph()
    x = graph.add("Cast", ["image"], to=graph.onnx.TensorProto.FLOAT)
    x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])
    if experiment.backbone == "vgg16":
        x = graph.add("Gather", [x, np.array([2, 1, 0])], axis=1)
        x = graph.add("Sub", [x, np.reshape(CAFFE_MEANS, (3, 1, 1))])
    logits, maps = (_add_torch if framework == "torch" else _add_keras)(graph, model, x, experiment)
    deviations = experiment.backbone != "mobilenet_v2"
    graph.summarise([name for name, _ in maps], deviations)
    features = sum(channels for _, channels in maps) * (1 + deviations)
    metadata = {"classes": json.dumps(classes), "mirrored": json.dumps(experiment.average_mirror_images)}
    return graph.finish(experiment.image_size, logits, features, metadata)


def _add_keras(graph: Graph, model: Any, pixels: str, experiment: Experiment) -> tuple[int, list[tuple[str, int]]]:
    """Add the model; return how many logits it gives, and the maps that make features with their channels."""
    from keras import layers

    names: dict[int, str] = {}  # of the tensors; what comes before the first layer is the pixels
    pools: list[Any] = []
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer) or not isinstance(layer, layers.Layer):
            continue
        entries = layer.input if isinstance(layer.input, list) else [layer.input]
        entries = [names.get(id(entry), pixels) for entry in entries]
        x = entries[0]
        match layer:
            case layers.Rescaling():
                x = graph.add("Add", [graph.add("Mul", [x, np.float32(layer.scale)]), np.float32(layer.offset)])
            case layers.Conv2D() | layers.DepthwiseConv2D():
                kernel, *bias = layer.get_weights()
                deep = isinstance(layer, layers.DepthwiseConv2D)
                kernel = kernel.transpose(2, 3, 0, 1) if deep else kernel.transpose(3, 2, 0, 1)
                pad = "SAME_UPPER" if layer.padding == "same" else "VALID"
                groups = len(kernel) if deep else 1
                x = graph.add("Conv", [x, kernel, *bias], auto_pad=pad, strides=[*layer.strides], group=groups)
            case layers.BatchNormalization():
                figures = [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance]
                arrays = (None if figure is None else np.asarray(figure) for figure in figures)
                x = graph.normalise(x, *arrays, layer.epsilon)
            case layers.ReLU():
                bounds = [] if layer.max_value is None else [np.array(0.0), np.array(layer.max_value)]
                x = graph.add("Clip" if bounds else "Relu", [x, *bounds])
            case layers.ZeroPadding2D():
                (top, bottom), (left, right) = layer.padding
                x = graph.add("Pad", [x, np.array([0, 0, top, left, 0, 0, bottom, right])])
            case layers.MaxPooling2D():
                x = graph.add("MaxPool", [x], kernel_shape=[*layer.pool_size], strides=[*layer.strides])
                pools.append(layer.output)
            case layers.GlobalAveragePooling2D() | layers.GlobalMaxPooling2D():
                mean = isinstance(layer, layers.GlobalAveragePooling2D)
                x = graph.add("GlobalAveragePool" if mean else "GlobalMaxPool", [x])
                x = x if layer.keepdims else graph.add("Flatten", [x])
            case layers.Concatenate():
                x = graph.add("Concat", entries, axis=1)
            case layers.Add():
                x = graph.add("Add", entries)
            case layers.Flatten():  # Keras' order is rows, columns, channels
                x = graph.add("Flatten", [graph.add("Transpose", [x], perm=[0, 2, 3, 1])])
            case layers.Dense():
                kernel, bias = layer.get_weights()
                x = graph.add("Gemm", [x, kernel, bias], "logits" if layer is model.layers[-1] else None)
            case layers.Dropout() | layers.Identity():
                pass
            case _:
                raise ValueError(f"{type(layer).__name__}: no line for this layer in onnx_graph.py")
        if getattr(layer, "activation", None) is not None and layer.activation.__name__ == "relu":
            x = graph.add("Relu", [x])
        names[id(layer.output)] = x
    if experiment.backbone == "mobilenet_v2":
        pools = [model.get_layer(name).output for name in FEATURE_MAPS]
    return model.output_shape[-1], [(names[id(tensor)], tensor.shape[-1]) for tensor in pools[-LEVELS:]]


def _add_torch(graph: Graph, model: Any, pixels: str, experiment: Experiment) -> tuple[int, list[tuple[str, int]]]:
    """Add the model, as `_add_keras` does."""
    from torch import nn

    pools, channels = [], 0

    def of(tensor) -> np.ndarray | None:
        return None if tensor is None else tensor.detach().float().cpu().numpy()

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]  # in order of use
    x = pixels if experiment.backbone else graph.add("Div", [pixels, np.array(255.0)])
    for layer in leaves:
        match layer:
            case nn.Conv2d():
                pad = "VALID" if layer.padding in ("valid", (0, 0)) else "SAME_UPPER"
                x = graph.add("Conv", [x, of(layer.weight), of(layer.bias)], auto_pad=pad)
                channels = layer.out_channels
            case nn.BatchNorm2d() | nn.BatchNorm1d():
                figures = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
                x = graph.normalise(x, *map(of, figures), layer.eps)
            case nn.ReLU():
                x = graph.add("Relu", [x])
            case nn.MaxPool2d():
                x = graph.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
                pools.append((x, channels))
            case nn.AdaptiveAvgPool2d():
                x = graph.add("GlobalAveragePool", [x])
            case nn.Flatten():
                x = graph.add("Flatten", [x])
            case nn.Linear():
                output = "logits" if layer is leaves[-1] else None
                x = graph.add("Gemm", [x, of(layer.weight), of(layer.bias)], output, transB=1)
            case _ if type(layer).__name__ == "Pool":
                means = graph.add("GlobalAveragePool", [x])
                x = graph.add("Concat", [means, graph.add("GlobalMaxPool", [x])], axis=1) if layer.maximum else means
            case _ if type(layer).__name__ in ("Dropout", "Pixels"):
                pass
            case _:
                raise ValueError(f"{type(layer).__name__}: no line for this layer in onnx_graph.py")
    return leaves[-1].out_features, pools[-LEVELS:]
