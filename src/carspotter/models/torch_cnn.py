"""The CNNs of the series in PyTorch: an `nn.Module` and a loop.

What to see here: the model is a class whose `forward` is plain Python, and nothing about training is hidden: zero the
gradients, go back through the loss, step. The same four names stand in keras_cnn.py and tensorflow_cnn.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from carspotter.models.experiments import Experiment, count_features, draw_epoch, schedule_steps
from carspotter.models.metrics import accuracy, probabilities_from_logits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class CarCNN(nn.Module):
    """Convolution blocks, a dense layer, logits."""

    def __init__(self, experiment: Experiment, classes: int):
        super().__init__()
        channels = (3, *experiment.conv_channels)
        stack = []
        for before, after in zip(channels[:-1], channels[1:], strict=True):
            stack += [nn.Conv2d(before, after, 3, padding="same" if experiment.global_pooling else "valid")]
            stack += [*activation(experiment, nn.BatchNorm2d, after), nn.MaxPool2d(2)]
        stack += [nn.AdaptiveAvgPool2d(1)] if experiment.global_pooling else []
        stack += [nn.Flatten(), nn.Dropout(experiment.dropout_rate)]
        features = count_features(experiment)
        if experiment.dense_units:
            stack += [nn.Linear(features, experiment.dense_units)]
            stack += activation(experiment, nn.BatchNorm1d, experiment.dense_units)
        self.stack = nn.Sequential(*stack)
        self.logits = nn.Linear(experiment.dense_units or features, 1 if classes == 2 else classes)
        self.bfloat16 = experiment.dtype == "bfloat16"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dtype = self.logits.weight.dtype
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16):
            x = self.stack(images.to(dtype) / 255)
        # The last sum is never rounded to bfloat16: probabilities near 0 and 1 would clump.
        return self.logits(x.to(dtype))


def activation(experiment: Experiment, norm: type[nn.Module], channels: int) -> list[nn.Module]:
    """Return ReLU, with batch normalisation before or after it where the experiment asks for it."""
    if experiment.batch_norm == "none":
        return [nn.ReLU()]
    # PyTorch's momentum is the weight of the new batch: .1 is what Keras calls .9. Keras' ε is 1e-3.
    layers = [norm(channels, eps=1e-3, momentum=0.1), nn.ReLU()]
    return layers if experiment.batch_norm == "before_relu" else layers[::-1]


def build_model(experiment: Experiment, classes: int) -> CarCNN:
    """Return a CNN: images (N, 3, S, S), 0 … 255, to logits, (N, 1) for two classes, (N, classes) for more.

    Its initial weights follow `torch.manual_seed`. Raises ValueError where `image_size` leaves nothing to flatten.
    """
    model = CarCNN(experiment, classes)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # Glorot & Bengio 2010, Keras' default, instead of PyTorch's
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    if experiment.dtype == "float64":
        model = model.double()
    return model.to(DEVICE, memory_format=torch.channels_last)


class PhotoBatches:
    """Shuffled batches (images (B, 3, S, S), labels (B,)) on the device, augmented where the experiment says so.

    `images` is an array (N, S, S, 3), uint8, or maps of a frozen backbone, float; `labels` are class numbers (N,).
    Epoch after epoch the draws are those of `draw_epoch`, the same as in the other frameworks.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int = 0):
        self.labels, self.experiment, self.seed = labels, experiment, seed
        # On a GPU all photos at once: a batch need not travel.
        self.images = torch.tensor(images, device=DEVICE) if DEVICE.type == "cuda" else images

    def __len__(self) -> int:
        return len(draw_epoch(self.experiment, self.seed, 0, len(self.images)).photos)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of an epoch, counted from 0."""
        draws = draw_epoch(self.experiment, self.seed, number, len(self.images))
        for step, photos in enumerate(draws.photos):
            # A view, not a copy: the memory stays rows, columns, channels ("channels last").
            images = torch.as_tensor(self.images[photos]).permute(0, 3, 1, 2)
            if draws.affine is not None:
                images = transform(images, torch.from_numpy(draws.affine[step]).to(DEVICE))
            if draws.colours is not None:
                images = recolour(images, torch.from_numpy(draws.colours[step]).to(DEVICE))
            yield images, torch.as_tensor(self.labels[photos], device=DEVICE)


def transform(images: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Return images (B, 3, S, S) changed by matrices (B, 3, 3): float32, bilinear; the border repeats its pixels.

    The matrices count pixels from 0 to S - 1, `grid_sample` counts from -1 to 1.
    """
    size = images.shape[-1]
    pixels = torch.tensor([[2 / (size - 1), 0, -1], [0, 2 / (size - 1), -1], [0, 0, 1]], device=images.device)
    theta = (pixels @ affine @ torch.linalg.inv(pixels))[:, :2]
    grid = functional.affine_grid(theta, images.shape, align_corners=True)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=True)


def recolour(images: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Return images (B, 3, S, S), 0 … 255, with colours changed by matrices (B, 3, 4), clipped to 0 … 255."""
    changed = torch.einsum("bihw,boi->bohw", images, colours[:, :, :3]) + 255 * colours[:, :, 3, None, None]
    return changed.clamp(0, 255)


def make_optimizer(model: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    """Return the experiment's optimizer for the weights that learn."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    if experiment.optimizer == "rmsprop":
        # Keras' ρ and ε; Keras adds ε under the root, PyTorch outside it.
        return torch.optim.RMSprop(learning, experiment.learning_rate, alpha=0.9, eps=1e-7**0.5)
    return torch.optim.Adam(learning, experiment.learning_rate, eps=1e-7)


def make_schedule(optimizer: torch.optim.Optimizer, experiment: Experiment, steps: int):
    """Return the schedule of the learning rate over `steps` steps; None where it is constant."""
    if experiment.schedule == "constant":
        return None
    rising, falling = schedule_steps(steps)
    rise = lr_scheduler.LinearLR(optimizer, 1 / 25, total_iters=rising)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, falling)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], [rising])


def loss_and_hits(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy of a batch, and the number of photos whose most probable class is their label."""
    if logits.shape[1] == 1:
        logits = logits[:, 0]
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return loss, ((logits > 0) == labels).sum()
    return functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum()


def train(
    model: nn.Module,
    batches: PhotoBatches,
    experiment: Experiment,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    first_epoch: int = 0,
    callbacks: Iterable = (),
) -> list[dict[str, float]]:
    """Train the model up to `experiment.epochs`, going on from `first_epoch`; return loss and accuracy of each epoch.

    `validation` are images and class numbers that are measured after each epoch. A callback has
    `on_train_begin(model, optimizer, schedule)` and `on_epoch_end(epoch, logs)`.
    """
    optimizer = make_optimizer(model, experiment)
    schedule = make_schedule(optimizer, experiment, experiment.epochs * len(batches))
    for callback in callbacks:
        callback.on_train_begin(model, optimizer, schedule)
    history = []
    for epoch in range(first_epoch, experiment.epochs):
        model.train()
        losses, hits, photos = 0, 0, 0
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            loss, right = loss_and_hits(model(images), labels)
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            # Added up on the device: asking for a number at each step would make a GPU wait.
            losses, hits, photos = losses + loss.detach() * len(labels), hits + right, photos + len(labels)
        logs = {"loss": float(losses) / photos, "accuracy": int(hits) / photos}
        if validation:
            logs["val_accuracy"] = accuracy(validation[1], predict(model, validation[0], experiment))
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)
        history.append(logs)
    return history


@torch.inference_mode()
def predict(model: nn.Module, images: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Return the class probabilities of images (N, S, S, 3), 0 … 255: float32 (N, classes)."""
    model.eval()
    probabilities = []
    for start in range(0, len(images), 100):
        batch = torch.tensor(images[start : start + 100], device=DEVICE).permute(0, 3, 1, 2)
        of_batch = probabilities_from_logits(model(batch).cpu())
        if experiment.average_mirror_images:
            of_batch = (of_batch + probabilities_from_logits(model(batch.flip(3)).cpu())) / 2
        probabilities.append(of_batch)
    return np.concatenate(probabilities)
