"""The experiments in PyTorch: an `nn.Module` and an explicit loop.

What to see here: the model is a class whose `forward` is plain Python, and nothing about training is hidden: the loop
zeroes gradients, goes back through the loss and steps. Started by `torchrun`, the same loop trains on several devices,
a process for each (workers.py). Siblings: keras_models.py, tf_models.py.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from carspotter.models.experiments import (
    CAFFE_MEANS,
    Experiment,
    convolutions,
    draw_colours,
    draw_epoch,
    feature_count,
    learning_rates,
)
from carspotter.models.metrics import probabilities_from_logits
from carspotter.models.weights import read_vgg16
from carspotter.models.workers import Worker, this_worker

CHECKPOINT = "checkpoint{}.pt"
RESUME = "resume.pt"
DEVICE_SHARE = 0.5  # of the free memory of a GPU that the photos may take; beyond it they travel batch by batch


class PhotoDataset:
    """Batches in the order of `draw_epoch`, on the device: images (B, 3, S, S) 0 … 255, labels (B,).

    The images stay uint8, and on the GPU altogether where they fit; a batch is gathered and warped there. Features
    (N, F) in place of images are given as they are. Where several processes train together, each has every so many'th
    photo of a batch, which may be none of the last.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int, training: bool):
        self.experiment, self.seed, self.training = experiment, seed, training
        self.device, self.worker = _device(), this_worker("torch") if training else Worker()
        # A memory-mapped array is read-only, which torch warns of; nothing here writes to it.
        self.images = images
        self.labels = torch.tensor(np.array(labels), device=self.device)
        if self.device.type == "cuda" and images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            self.images = torch.from_numpy(np.array(images)).to(self.device)

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order, matrices, colours = np.arange(len(self.images)), None, None
        if self.training:
            order, matrices = draw_epoch(self.experiment, self.seed, epoch, len(order), self.images.shape[1])
            colours = draw_colours(self.experiment, self.seed, epoch, len(order))
        for start in range(0, len(order), self.experiment.batch_size):
            batch = slice(start + self.worker.number, start + self.experiment.batch_size, self.worker.count)
            photos = order[batch]
            if isinstance(self.images, torch.Tensor):
                photos = torch.from_numpy(photos).to(self.device)
                images = self.images[photos]
            else:
                images = torch.from_numpy(self.images[photos]).to(self.device)
            if images.ndim == 4:
                images = images.permute(0, 3, 1, 2)  # a view: the memory stays channels-last
            if matrices is not None:
                images = warp(images, torch.from_numpy(matrices[batch]).to(self.device))
            if colours is not None:
                images = recolour(images, torch.from_numpy(colours[batch]).to(self.device))
            yield images, self.labels[photos]


def warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Apply matrices (B, 3, 3), output pixel → input pixel, to images (B, 3, S, S) in one operation: float32.

    Bilinear; the nearest border pixel repeats. `grid_sample` counts from -1 to 1 instead of from 0 to S - 1.
    """
    size = images.shape[-1]
    to_unit = torch.tensor(
        [[2 / (size - 1), 0, -1], [0, 2 / (size - 1), -1], [0, 0, 1]], dtype=torch.float64, device=images.device
    )
    theta = (to_unit @ matrices @ torch.linalg.inv(to_unit))[:, :2].float()
    # As `affine_grid`, in one sum of a row and a column instead of a product for each pixel: a third quicker.
    along = torch.linspace(-1, 1, size, device=images.device)[:, None]
    across, down = along * theta[:, None, :, 0], along * theta[:, None, :, 1] + theta[:, None, :, 2]
    grid = across[:, None] + down[:, :, None]
    pixels = images.float().contiguous(memory_format=torch.channels_last)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=True)


def recolour(images: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Apply one colour change (B, 3, 4), for values 0 … 1, to each of images (B, 3, S, S), 0 … 255: float32."""
    colours = colours.float().transpose(1, 2)
    pixels = images.permute(0, 2, 3, 1)
    # One matrix product per photo; channels-last memory is a list of pixels already.
    changed = torch.baddbmm(255 * colours[:, 3:], pixels.flatten(1, 2), colours[:, :3]).clamp_(0, 255)
    return changed.reshape(pixels.shape).permute(0, 3, 1, 2)


class CarModel(nn.Module):
    """Convolution blocks, a dense layer, logits; takes pixels 0 … 255, or the features of a frozen backbone."""

    def __init__(self, experiment: Experiment, classes: int, image_size: int):
        super().__init__()
        self.experiment = experiment
        features, built = feature_count(experiment, image_size), convolutions(experiment)
        channels, self.pooled, learns = zip(*built, strict=True)
        padding = 1 if experiment.any_size else 0
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=padding)
            for before, after in zip((3, *channels[:-1]), channels, strict=True)
        )
        for convolution, learning in zip(self.convolutions, learns, strict=True):
            convolution.requires_grad_(learning)
        self.dense = nn.Linear(features, experiment.dense_units) if experiment.dense_units else None
        self.logits = nn.Linear(experiment.dense_units or features, 1 if classes == 2 else classes)
        if experiment.batch_norm != "none":
            # PyTorch's momentum is the weight of the new batch: .1 is what others call .9.
            self.norms = nn.ModuleList(BatchNorm(n, eps=1e-3, momentum=0.1) for n in channels)
            self.dense_norm = BatchNorm(experiment.dense_units, eps=1e-3, momentum=0.1) if self.dense else None
        if experiment.backbone:
            self.register_buffer("means", torch.tensor(CAFFE_MEANS).reshape(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bfloat16 = self.experiment.dtype == "bfloat16"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            x = self.features(images) if images.ndim == 4 else images.to(self.logits.weight.dtype)
            x = functional.dropout(x, self.experiment.dropout_rate, self.training)
            if self.dense is not None:
                x = self._activate(self.dense(x), self.dense_norm if self.experiment.batch_norm != "none" else None)
        # The last sum is not rounded to bfloat16: probabilities near 0 and 1 would clump.
        return self.logits(x.to(self.logits.weight.dtype))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Give what the head sees of images (B, 3, S, S): (B, features)."""
        x = images.to(self.logits.weight.dtype)
        x = x.flip(1) - self.means if self.experiment.backbone else x / 255
        mirrored = self.experiment.mirrored and not self.training
        x = torch.cat([x, x.flip(3)]) if mirrored else x
        for number, convolution in enumerate(self.convolutions):
            norm = self.norms[number] if self.experiment.batch_norm != "none" else None
            x = self._activate(convolution(x), norm, self.pooled[number])
        # Rows, columns, channels, as the siblings flatten: dense weights can be copied across.
        x = x.mean(dim=(2, 3)) if self.experiment.any_size else x.permute(0, 2, 3, 1).flatten(1)
        return sum(x.chunk(2)) / 2 if mirrored else x

    def _activate(self, x: torch.Tensor, norm: nn.Module | None, pooled: bool = False) -> torch.Tensor:
        if self.experiment.batch_norm == "after_relu":
            x = norm(functional.relu(x))
            return functional.max_pool2d(x, 2) if pooled else x
        x = x if norm is None else norm(x)
        # The maximum first: the same numbers and gradients as ReLU first, which then has a quarter of the work.
        return functional.relu(functional.max_pool2d(x, 2) if pooled else x)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the channels (axis 1), Ioffe & Szegedy 2015.

    As PyTorch's own, but the running variance is the batch's biased one, as Keras and TensorFlow keep it.
    """

    def __init__(self, channels: int, eps: float, momentum: float):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not len(x):  # several processes, and none of the last batch for this one
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # PyTorch updates the running figures itself, with the unbiased variance: let it do so into copies, and undo
        # the correction n / (n - 1) on the way back.
        count = x.numel() // x.shape[1]
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        if count == 1:  # a last batch of one photo, on the dense layer: PyTorch refuses, the siblings give the bias
            mean, y = x.detach().flatten().to(mean.dtype), (x - x) * self.weight + self.bias
        else:
            y = functional.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * ((count - 1) / count), self.momentum)
        return y


def make_dataset(
    images: np.ndarray, labels: np.ndarray, experiment: Experiment, seed: int = 0, training: bool = True
) -> PhotoDataset:
    """Make batches of images uint8 (N, S, S, 3) and class numbers (N,).

    Training batches are shuffled and, where the experiment says so, augmented; others keep the order and the pixels.
    """
    return PhotoDataset(images, labels, experiment, seed, training)


def build_model(
    experiment: Experiment, classes: int, image_size: int, seed: int = 0, weights: Path | None = None
) -> CarModel:
    """Build the model: images (N, 3, S, S), 0 … 255 → logits, (N, 1) for two classes, (N, classes) for more.

    Fresh weights are a function of `seed`; `weights` names a checkpoint to load instead. A backbone's are brought by
    `load_backbone`. Raises ValueError when the images are too small for the blocks.
    """
    model = CarModel(experiment, classes, image_size)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # Glorot & Bengio 2010 instead of PyTorch's own, as the siblings
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    if experiment.dtype == "float64":
        model = model.double()
    if weights:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.to(_device(), memory_format=torch.channels_last).eval()


def load_backbone(model: CarModel, path: Path) -> None:
    """Load VGG16's weights, a Keras file without the top, into a model; raises ValueError where they do not fit."""
    # Keras' kernels are (3, 3, in, out), PyTorch's (out, in, 3, 3).
    shapes = [(3, 3, c.in_channels, c.out_channels) for c in model.convolutions]
    arrays = read_vgg16(path, [shape for kernel in shapes for shape in (kernel, kernel[-1:])])
    with torch.no_grad():
        for convolution, kernel, bias in zip(model.convolutions, arrays[::2], arrays[1::2], strict=True):
            convolution.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
            convolution.bias.copy_(torch.from_numpy(bias))


@torch.inference_mode()
def compute_features(model: CarModel, images: np.ndarray, batch_size: int = 50) -> np.ndarray:
    """Give what a model's head sees of images uint8 (N, S, S, 3): float32 (N, features)."""
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device).permute(0, 3, 1, 2)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=model.experiment.dtype == "bfloat16"):
            found.append(model.features(batch).float().cpu().numpy())
    return np.concatenate(found)


def train(
    model: CarModel,
    dataset: PhotoDataset,
    validation_images: np.ndarray,
    epochs: int,
    folder: Path,
    on_epoch: Callable[[int, float, float, np.ndarray], bool],
    on_batch: Callable[[int], None] = lambda photos: None,
) -> None:
    """Train up to epoch `epochs`, going on from `folder/resume.pt` where a killed run left one.

    After each epoch: `on_epoch(epoch, training loss, training accuracy, validation probabilities)`; when it answers
    True, the weights are kept as the checkpoint of that epoch. The training figures are running means over the epoch,
    augmentation and dropout included. `on_batch(photos)` reports progress. Where the backbone is frozen, the dataset
    and `validation_images` hold features instead of images. Of several processes the first calls `on_epoch` and saves.
    """
    steps = epochs * -(-len(dataset.images) // dataset.experiment.batch_size)
    optimizer = make_optimizer(model, dataset.experiment, steps)
    finished = 0
    if (folder / RESUME).exists():
        state = torch.load(folder / RESUME, map_location=dataset.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        finished = state["epoch"]
    worker, count, batch_size = dataset.worker, len(dataset.images), dataset.experiment.batch_size
    parted = _join(model) if worker.count > 1 else model

    for epoch in range(finished + 1, epochs + 1):
        # Dropout: a resumed epoch draws what it would have drawn, and no two processes draw the same.
        torch.manual_seed(1_000_003 * dataset.seed + epoch + (worker.number << 32))
        model.train()
        # Summed on the device: asking for a number at every step would make a GPU wait for the answer.
        total_loss = torch.zeros((), dtype=torch.float64, device=dataset.device)
        correct = torch.zeros((), dtype=torch.int64, device=dataset.device)
        for number, (images, labels) in enumerate(dataset.batches(epoch)):
            photos = min(batch_size, count - number * batch_size)  # in the whole batch, of which this may be a part
            loss, hits = step(parted, optimizer, images, labels, worker.count * len(labels) / photos)
            if len(labels):  # the mean of nothing is no number
                total_loss += loss.double() * len(labels)
            correct += hits
            on_batch(photos)
        if worker.count > 1:
            distributed.all_reduce(total_loss)
            distributed.all_reduce(correct)
        if worker.number:
            continue  # the others wait for the first at the next step
        probabilities = predict_probabilities(model, validation_images)
        if on_epoch(epoch, total_loss.item() / count, correct.item() / count, probabilities):
            _save(model.state_dict(), folder / CHECKPOINT.format(f"_{epoch:04}"))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        _save(state, folder / RESUME)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, weight: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one step on a batch; give its mean loss and the number of photos it got right, before the step.

    Among N processes, `weight` is N times this one's share of the batch: DDP takes the plain mean of their gradients,
    and so it becomes the mean over all photos, however they are shared out.
    """
    optimizer.zero_grad(set_to_none=True)
    logits = model(images)
    if logits.shape[1] == 1:
        loss = functional.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
        predicted = logits[:, 0] > 0
    else:
        loss = functional.cross_entropy(logits, labels)
        predicted = logits.argmax(dim=1)
    (loss * weight).backward()
    optimizer.step()
    return loss.detach(), (predicted == labels).sum()


def _join(model: CarModel) -> DistributedDataParallel:
    """Meet the other processes of this training; all go on from the weights of the first."""
    if not distributed.is_initialized():
        distributed.init_process_group()  # as torchrun's variables say; gloo on CPUs, NCCL on GPUs
        atexit.register(distributed.destroy_process_group)
    return DistributedDataParallel(model)


def make_optimizer(model: CarModel, experiment: Experiment, steps: int) -> torch.optim.Optimizer:
    """Give the experiment's optimizer for the parameters that learn, in a training of `steps` steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if experiment.optimizer == "rmsprop":
        return RMSprop(parameters, experiment.learning_rate)
    return Adam(parameters, learning_rates(experiment, steps))


class RMSprop(torch.optim.Optimizer):
    """RMSprop as Keras has it: the step divides by √(v + ε), PyTorch's own by √v + ε; ρ is .9, PyTorch's .99."""

    def __init__(self, parameters, lr: float, rho: float = 0.9, eps: float = 1e-7):
        super().__init__(parameters, {"lr": lr, "rho": rho, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            squares = [self.state[p].setdefault("square", torch.zeros_like(p)) for p in parameters]
            # One kernel for many tensors, where there is one (`foreach`).
            torch._foreach_mul_(squares, group["rho"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["rho"])
            roots = torch._foreach_sqrt(torch._foreach_add(squares, group["eps"]))
            torch._foreach_addcdiv_(parameters, gradients, roots, -group["lr"])


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) with a rate for each step; as Keras has it, ε joins √v before that is corrected."""

    def __init__(self, parameters, rates: np.ndarray, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-7):
        super().__init__(parameters, {"betas": betas, "eps": eps, "taken": 0})
        self.rates = rates.tolist()

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            (beta, beta_square), taken = group["betas"], group["taken"] + 1
            rate = self.rates[taken - 1] * (1 - beta_square**taken) ** 0.5 / (1 - beta**taken)
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            means, squares = (
                [self.state[p].setdefault(name, torch.zeros_like(p)) for p in parameters] for name in ("mean", "square")
            )
            torch._foreach_lerp_(means, gradients, 1 - beta)
            torch._foreach_mul_(squares, beta_square)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta_square)
            roots = torch._foreach_add(torch._foreach_sqrt(squares), group["eps"])
            torch._foreach_addcdiv_(parameters, means, roots, -rate)
            group["taken"] = taken


@torch.inference_mode()
def predict_probabilities(model: CarModel, images: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Give the class probabilities of images uint8 (N, S, S, 3), or of features (N, F): float32 (N, classes)."""
    model.eval()
    device = next(model.parameters()).device
    logits = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
        batch = batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch.to(model.logits.weight.dtype)
        logits.append(model(batch).double().cpu().numpy())
    return probabilities_from_logits(np.concatenate(logits))


def describe(model: CarModel) -> dict:
    """Give what a run records about its model and machine: parameters (learned ones), device, versions."""
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    name += f", {count} processes" if (count := this_worker("torch").count) > 1 else ""
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": name,
        "versions": f"torch {torch.__version__}",
    }


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # torchrun numbers the processes of a machine: each takes the GPU of its number.
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) if this_worker("torch").count > 1 else 0)


def _save(state: dict, path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    torch.save(state, partial)
    os.replace(partial, path)
