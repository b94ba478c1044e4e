"""Weights of a Keras CNN in its PyTorch sibling."""

from collections.abc import Iterable

import keras
import numpy as np
import torch
from keras import ops
from torch import nn


def keras_to_torch(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return weights, or their gradients, of a Keras CNN in PyTorch's layout, in the same order.

    Kernels (3, 3, in, out) become (out, in, 3, 3); of a dense layer (in, out) becomes (out, in), with inputs that
    were flattened as (rows, columns, channels) put in PyTorch's order, (channels, rows, columns).
    """
    found, channels = [], 1
    for array in arrays:
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
            channels = array.shape[0]
        elif array.ndim == 2:
            array = array.reshape(-1, channels, array.shape[1]).swapaxes(0, 1).reshape(array.shape).T
            channels = array.shape[0]
        found.append(array)
    return found


def copy_weights(source: keras.Model, target: nn.Module) -> None:
    """Copy the weights of a Keras CNN, with running means and variances, into its PyTorch sibling."""
    arrays = keras_to_torch(ops.convert_to_numpy(weight) for weight in source.weights)
    tensors = [tensor for name, tensor in target.state_dict().items() if not name.endswith("num_batches_tracked")]
    for tensor, array in zip(tensors, arrays, strict=True):
        tensor.copy_(torch.from_numpy(array.copy()))
