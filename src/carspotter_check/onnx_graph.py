"""The experiments as an ONNX graph, written from a run's weights: the fourth sibling, for machines without a framework.

One graph for all three frameworks, instead of three converters: the model is small and its layers are known, the
`onnx` package alone is needed, and the graph can take uint8 photos and give the features beside the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from carspotter.models.experiments import CAFFE_MEANS, Experiment, convolutions

OPSET, IR_VERSION = 17, 8  # old enough for every ONNX Runtime since 1.12
NORM_EPSILON = 1e-3  # as the siblings have it, and Keras' MobileNetV2
# MobileNetV2's inverted residuals (Sandler et al. 2018, table 2): expansion, repetitions, stride of the first.
INVERTED_RESIDUALS = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))


@dataclass(frozen=True)
class Layer:
    """Weights of a convolution, kernel (3, 3, in, out), or of a dense layer, kernel (in, out); all float32.

    A depthwise convolution's kernel is (3, 3, channels, 1).

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

    Input `image` uint8 (N, S, S, 3), N free; outputs `features` float32 (N, units), what the last layer sees, and
    `logits` float32 (N, 1) for two classes, (N, classes) for more. Of a multi-level backbone `features` are the means
    of its last maps alone: what tells two models apart at every resolution tells a car from something else less well.
    Raises ImportError without the onnx package.
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

    def normalise(x: str, layer: Layer, name: str) -> str:
        figures = [
            constant(f"{name}_{part}", value)
            for part, value in zip(("gamma", "beta", "mean", "variance"), layer.norm, strict=True)
        ]
        return add("BatchNormalization", [x, *figures], f"{name}_norm", epsilon=NORM_EPSILON)

    def activate(x: str, layer: Layer, name: str) -> str:
        if experiment.batch_norm == "before_relu":
            x = normalise(x, layer, name)
        x = add("Relu", [x], f"{name}_relu")
        return normalise(x, layer, name) if experiment.batch_norm == "after_relu" else x

    def convolve(x: str, layer: Layer, name: str, pads: list[int], stride: int = 1, depthwise: bool = False) -> str:
        # ONNX wants (out, in, 3, 3), and a depthwise kernel has one channel in each of as many groups.
        kernel = layer.kernel.transpose(2, 3, 0, 1) if depthwise else layer.kernel.transpose(3, 2, 0, 1)
        weights = [constant(f"{name}_kernel", kernel), constant(f"{name}_bias", layer.bias)]
        groups = layer.kernel.shape[2] if depthwise else 1
        return add("Conv", [x, *weights], f"{name}_conv", pads=pads, strides=[stride, stride], group=groups)

    def mobilenet(x: str, layers: list[Layer]) -> list[str]:
        """Add the backbone; give the maps of `experiments.MOBILENET_LEVELS`."""
        left, side, levels = iter(layers), image_size, []

        def block(x: str, name: str, stride: int = 1, depthwise: bool = False, window: int = 3, bend: bool = True):
            nonlocal side
            # Keras pads an even side below and to the right only.
            pads = [0] * 4 if window == 1 else [0, 0, 1, 1] if stride == 2 and side % 2 == 0 else [1] * 4
            side = -(-side // stride)
            layer = next(left)
            x = normalise(convolve(x, layer, name, pads, stride, depthwise), layer, name)
            return add("Clip", [x, "zero", "six"], f"{name}_relu6") if bend else x, layer.kernel.shape[-1]

        constant("zero", np.float32(0))
        constant("six", np.float32(6))
        x, channels = block(x, "stem", stride=2)
        for group, (expansion, repetitions, first_stride) in enumerate(INVERTED_RESIDUALS):
            for number in range(repetitions):
                name, entry, stride = f"residual{group}_{number}", x, first_stride if number == 0 else 1
                if expansion > 1:
                    x, _ = block(x, f"{name}_expand", window=1)
                    if stride == 2 and group > 1:  # the last maps before the side is halved
                        levels.append(x)
                x, _ = block(x, f"{name}_depth", stride, depthwise=True)
                x, out = block(x, f"{name}_project", window=1, bend=False)
                if stride == 1 and channels == out:
                    x = add("Add", [entry, x], f"{name}_sum")
                channels = out
        return [*levels, block(x, "top", window=1)[0]]

    *layers, last = layers
    dense = layers.pop() if experiment.dense_units else None
    x = add("Cast", ["image"], "pixels", to=TensorProto.FLOAT)
    x = add("Transpose", [x], "channels_first", perm=[0, 3, 1, 2])
    if experiment.backbone == "vgg16":
        constants.append(numpy_helper.from_array(np.array([2, 1, 0]), "blue_green_red"))
        x = add("Gather", [x, "blue_green_red"], "reversed", axis=1)
        x = add("Sub", [x, constant("means", np.float32(CAFFE_MEANS).reshape(3, 1, 1))], "scaled")
    elif experiment.backbone == "mobilenet_v2":
        x = add("Div", [x, constant("half", np.float32(127.5))], "halved")
        x = add("Sub", [x, constant("one", np.float32(1))], "scaled")
    else:
        x = add("Div", [x, constant("levels", np.float32(255))], "scaled")
    if experiment.mirrored:
        for name, number in (("last", -1), ("before_first", np.iinfo(np.int64).min), ("across", 3), ("backwards", -1)):
            constants.append(numpy_helper.from_array(np.array([number]), name))
        mirrored = add("Slice", [x, "last", "before_first", "across", "backwards"], "mirrored")
        x = add("Concat", [x, mirrored], "both", axis=0)
    if experiment.backbone == "mobilenet_v2":
        *levels, x = mobilenet(x, layers)
    for number, convolution in enumerate(convolutions(experiment)):
        layer, name = layers[number], f"block{number + 1}"
        x = activate(convolve(x, layer, name, [1 if experiment.any_size else 0] * 4), layer, name)
        if convolution.pooled:
            x = add("MaxPool", [x], f"{name}_pool", kernel_shape=[2, 2], strides=[2, 2])
    if experiment.multi_level:
        pools = [
            add("Flatten", [add(f"Global{pool}Pool", [maps], f"{maps}_{pool}")], f"{maps}_{pool}_flat")
            for maps in (*levels, x)
            for pool in ("Average", "Max")
        ]
        x = add("Concat", pools, "flat", axis=1)
    elif experiment.any_size:
        x = add("Flatten", [add("GlobalAveragePool", [x], "mean")], "flat")
    else:
        # Rows, columns, channels, as the siblings flatten.
        x = add("Flatten", [add("Transpose", [x], "channels_last", perm=[0, 2, 3, 1])], "flat")
    width = (dense or last).kernel.shape[0]
    if experiment.mirrored:
        constants.append(numpy_helper.from_array(np.array([2, -1, width]), "two_halves"))
        x = add("Reshape", [x, "two_halves"], "pairs")
        x = add("ReduceMean", [x], "mean_of_pairs", axes=[0], keepdims=0)
    units = last.kernel.shape[0]  # of the output `features`
    if experiment.multi_level:
        units = layers[-1].kernel.shape[-1]  # the means of the last maps stand before their maxima
        for name, number in (("means_from", width - 2 * units), ("means_to", width - units), ("columns", 1)):
            constants.append(numpy_helper.from_array(np.array([number]), name))
        add("Slice", [x, "means_from", "means_to", "columns"], "features")
        x = normalise(x, dense or last, "levels")
    if dense:
        weights = [constant("dense_kernel", dense.kernel), constant("dense_bias", dense.bias)]
        x = activate(add("Gemm", [x, *weights], "dense"), dense, "dense")
    if not experiment.multi_level:
        x = add("Identity", [x], "features")
    add("Gemm", [x, constant("logits_kernel", last.kernel), constant("logits_bias", last.bias)], "logits")

    graph = helper.make_graph(
        nodes,
        experiment.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", image_size, image_size, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", last.kernel.shape[1]]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", units]),
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

    # A backbone that is one layer to the model is opened.
    flat = [inner for layer in model.layers for inner in getattr(layer, "layers", [layer])]
    weighted = [layer for layer in flat if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense)]
    norms = [layer for layer in flat if isinstance(layer, layers.BatchNormalization)]
    found = []
    for layer, norm in zip_longest(weighted, norms):  # dense layers, last, may have no norm
        kernel, *bias = layer.get_weights()
        # MobileNetV2's convolutions have no bias: batch norm follows each.
        bias = bias[0] if bias else np.zeros(norm.gamma.shape, np.float32)
        figures = norm.get_weights() if norm else None
        if norm and not norm.scale:  # nor a centre: it only brings features to one scale
            figures = [np.ones_like(figures[0]), np.zeros_like(figures[0]), *figures]
        found.append(Layer(kernel, bias, tuple(figures) if norm else None))
    return found


def _read_torch(model) -> list[Layer]:
    def array(tensor) -> np.ndarray:
        return tensor.detach().cpu().float().numpy()

    weighted = [*model.convolutions, *([model.dense] if model.dense is not None else []), model.logits]
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
        if layer
    ]
