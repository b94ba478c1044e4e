"""What Keras and PyTorch define differently: for notebook 11 and its tests."""

import keras
import numpy as np
import pandas as pd
import torch
from keras import ops
from PIL import Image
from torch import nn
from torch.nn import functional


def definition_differences() -> pd.DataFrame:
    """Return what the two define differently, measured now: definition, keras, torch and torch_set.

    torch has its default arguments, torch_set the stock arguments of torch_cnn.py or the nearest ones.
    """
    rows = [
        (
            "RMSprop: first step in learning rates, gradient 1e-4",
            *_first_steps("RMSprop", 1e-4, alpha=0.9, eps=1e-7**0.5),
        ),
        ("Adam: first step in learning rates, gradient 1e-7", *_first_steps("Adam", 1e-7, eps=1e-7)),
        ("batch norm: running variance after 0, 0, 0, 4", *_running_variances()),
        ("convolution 64 → 64: standard deviation of fresh weights", *_initial_deviations()),
        ("order in which [[[0 1] [2 3]]] (rows, columns, channels) is flattened", *_flattened()),
        ("resizing noise 150 → 50 px: mean difference from Pillow's, of 255", *_resized()),
    ]
    return pd.DataFrame(rows, columns=["definition", "keras", "torch", "torch_set"])


def _first_steps(name: str, gradient: float, **arguments: float) -> list[float]:
    variable = keras.Variable([0.0])
    getattr(keras.optimizers, name)(1.0).apply([ops.convert_to_tensor([gradient])], [variable])
    steps = [-float(ops.convert_to_numpy(variable)[0])]
    for options in ({}, arguments):
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([gradient])
        getattr(torch.optim, name)([parameter], 1.0, **options).step()
        steps.append(-parameter.item())
    return steps


def _running_variances() -> list[float]:
    values = np.array([[0.0], [0.0], [0.0], [4.0]], np.float32)
    layer = keras.layers.BatchNormalization(momentum=0.9)
    layer(values, training=True)
    norms = [nn.BatchNorm1d(1), nn.BatchNorm1d(1, eps=1e-3, momentum=0.1)]
    for norm in norms:
        norm(torch.from_numpy(values))
    return [float(ops.convert_to_numpy(layer.moving_variance)[0]), *(float(norm.running_var) for norm in norms)]


def _initial_deviations() -> list[float]:
    layer = keras.layers.Conv2D(64, 3)
    layer.build((None, None, None, 64))
    convolution = nn.Conv2d(64, 64, 3)
    default = float(convolution.weight.detach().std())
    nn.init.xavier_uniform_(convolution.weight)
    return [float(np.std(layer.get_weights()[0])), default, float(convolution.weight.detach().std())]


def _flattened() -> list[str]:
    maps = np.arange(4.0, dtype=np.float32).reshape(1, 1, 2, 2)
    by_keras = ops.convert_to_numpy(keras.layers.Flatten()(maps))[0]
    by_torch = nn.Flatten()(torch.from_numpy(maps).permute(0, 3, 1, 2))[0].numpy()
    return [" ".join(str(int(value)) for value in order) for order in (by_keras, by_torch, by_torch)]


def _resized() -> list[float]:
    image = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((50, 50), Image.Resampling.BILINEAR), np.float32)
    by_keras = ops.convert_to_numpy(ops.image.resize(image.astype(np.float32), (50, 50)))
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    by_torch = [
        functional.interpolate(pixels, (50, 50), mode="bilinear", antialias=antialias)[0].permute(1, 2, 0).numpy()
        for antialias in (False, True)
    ]
    return [float(np.abs(resized - pillow).mean()) for resized in (by_keras, *by_torch)]
