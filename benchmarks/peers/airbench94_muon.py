"""Train airbench94-Muon on CIFAR-10 in PyTorch, for comparison with the speedruns.

    python -m benchmarks.peers.airbench94_muon
    python -m benchmarks.peers.airbench94_muon --batch-size 1000 --epochs 3.5 --keep-memory
    python -m benchmarks.peers.airbench94_muon --steps 5 --precision bfloat16   # timing only

Source: K. Jordan, airbench (arXiv:2404.00498). The version with the optimizer Muon is
`airbench94_muon.py` in github.com/KellerJordan/cifar10-airbench. This is a new implementation with
the published hyperparameters.
Parameters: 1,971,640, as many as `speednet` has.
Expected test accuracy: 94.0 % with test-time augmentation, the published mean of 200 runs.

The device is the GPU if there is one, else the CPU. Images and normalization are those of
`cifar_jax.data`. The test images are used once, at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.optim.lr_scheduler import LinearLR  # pyright: ignore[reportMissingImports]

from benchmarks import peers
from cifar_jax import data, runtime

CROP_PADDING, LABEL_SMOOTHING = 2, 0.2
MUON_LR, MUON_MOMENTUM = 0.24, 0.6
BIAS_LR, HEAD_LR, SGD_MOMENTUM = 0.053, 0.67, 0.85  # For a loss summed over the batch.
WEIGHT_DECAY = 2e-6  # Multiplied by the batch size in `Trainer`. Muon has no weight decay.
WHITENING_IMAGES, WHITENING_EPSILON, WHITENING_BIAS_EPOCHS = 5000, 5e-4, 3
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315


class Network(nn.Module):
    """Network of airbench94. It maps normalized images `[N, 3, 32, 32]` to logits `[N, 10]`."""

    def __init__(self):
        super().__init__()
        self.whitening: Any = nn.Conv2d(3, 24, 2)
        self.whitening.weight.requires_grad_(False)
        layers: list[nn.Module] = [nn.GELU()]
        for inputs, width in ((24, 64), (64, 256), (256, 256)):
            layers += _layers(inputs, width, nn.MaxPool2d(2)) + _layers(width, width)
        self.groups = nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(256, 10, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: Tensor) -> Tensor:
        # Divide by 256, as airbench's script with Muon does. The airbench paper divides by 9.
        return self.head(self.groups(self.whitening(x))) / self.head.in_features

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the filters to scaled eigenvectors of image patches, and to their negatives."""
        patches = F.unfold(images, 2)  # [N, 12, patches of an image]
        moments = (patches @ patches.mT).mean(0) / patches.shape[-1]
        values, vectors = torch.linalg.eigh(moments)
        filters = (vectors / (values + WHITENING_EPSILON).sqrt()).T.reshape(12, 3, 2, 2)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))


def _layers(inputs: int, outputs: int, *pooling: nn.Module) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])  # The first filters copy the input channels.
    # In PyTorch, momentum 0.4 means that the old statistics have weight 0.6.
    norm = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return [conv, *pooling, norm, nn.GELU()]


class Muon(torch.optim.Optimizer):
    """Optimizer for convolution kernels: Nesterov momentum with orthogonalized updates."""

    def __init__(self, kernels: list[nn.Parameter], lr: float, momentum: float):
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the kernels. Every kernel must have a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                state = self.state[kernel]
                if not state:
                    state["momentum"] = torch.zeros_like(kernel)
                buffer = state["momentum"].mul_(group["momentum"]).add_(kernel.grad)
                direction = kernel.grad.add(buffer, alpha=group["momentum"]).flatten(1)
                # Scale the filters to a mean squared norm of 1.
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                kernel.sub_(orthogonalized(direction).reshape(kernel.shape), alpha=group["lr"])


def orthogonalized(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return a matrix with the singular vectors of `matrix` and singular values near 1.

    Each Newton-Schulz step maps a singular value σ to aσ + bσ³ + cσ⁵.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalized(matrix.T, steps).T
    a, b, c = NEWTON_SCHULZ
    x = matrix / matrix.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Trainer:
    """A network with its optimizers. If `bf16` is true, autocast computes in bfloat16.

    All learning rates fall linearly to zero in `steps` steps. The bias of the whitening convolution
    is an exception. The learning rate of this bias reaches zero after `bias_steps` steps, and the
    bias is then frozen.
    """

    def __init__(self, network: Network, batch_size: int, steps: int, bias_steps: int, bf16: bool):
        self.network, self.bias_steps, self.bf16, self.steps_done = network, bias_steps, bf16, 0
        trained = [p for p in network.groups.parameters() if p.requires_grad]

        def sgd(parameters: list[Any], lr: float) -> torch.optim.SGD:
            # SGD multiplies the decay by `lr`. The division cancels this factor.
            decay = WEIGHT_DECAY * batch_size / lr
            return torch.optim.SGD(parameters, lr, SGD_MOMENTUM, weight_decay=decay, nesterov=True)

        optimizers = (
            (sgd([network.whitening.bias], BIAS_LR), bias_steps),
            (sgd([p for p in trained if p.ndim == 1], BIAS_LR), steps),
            (sgd([network.head.weight], HEAD_LR), steps),
            (Muon([p for p in trained if p.ndim == 4], MUON_LR, MUON_MOMENTUM), steps),
        )
        self.schedules = [LinearLR(optimizer, 1.0, 0.0, total) for optimizer, total in optimizers]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on a batch, and return its mean loss before the update."""
        self.network.train()
        self.network.whitening.bias.requires_grad_(self.steps_done < self.bias_steps)
        logits = self.logits(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING, reduction="sum")
        loss.backward()
        for schedule in self.schedules:
            with torch.autocast(images.device.type, torch.bfloat16, self.bf16):
                schedule.optimizer.step()
            schedule.optimizer.zero_grad()
            schedule.step()
        self.steps_done += 1
        return loss.detach() / len(images)

    def logits(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, self.bf16):
            return self.network(images).float()

    @torch.inference_mode()
    def accuracies(self, images: Tensor, labels: Tensor) -> list[float]:
        """Return two accuracies in percent: without and with mirrored and shifted views."""
        self.network.eval()
        correct = torch.zeros(2)
        for x, y in zip(images.split(2000), labels.split(2000), strict=True):
            padded = F.pad(x, (1, 1, 1, 1), "reflect")
            plain = self.logits(x)
            total = plain + self.logits(x.flip(-1))
            # The two shifted images together count as much as the unshifted image.
            for shifted in (padded[..., 2:, 2:], padded[..., :-2, :-2]):
                total += (self.logits(shifted) + self.logits(shifted.flip(-1))) / 2
            correct += torch.stack([(z.argmax(1) == y).sum() for z in (plain, total)]).cpu()
        return (100 * correct / len(images)).tolist()


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of all epochs, in random order. Incomplete batches are left out.

    Crops are random. A random half of the images is mirrored in even epochs, and the other half in
    odd epochs.
    """
    device = images.device
    padded = F.pad(images, (CROP_PADDING,) * 4, "reflect").permute(0, 2, 3, 1).contiguous()
    mirrored = torch.rand(len(images), device=device) < 0.5
    pixels = torch.arange(32, device=device)
    while True:
        order = torch.randperm(len(images), device=device)
        for batch in order.split(size)[: len(order) // size]:
            down, across = torch.randint(2 * CROP_PADDING + 1, (2, len(batch), 1), device=device)
            columns = across + torch.where(mirrored[batch, None], pixels.flip(0), pixels)
            rows = (down + pixels)[:, :, None]
            crops = padded[batch[:, None, None], rows, columns[:, None, :]]
            yield crops.permute(0, 3, 1, 2), labels[batch]
        mirrored = ~mirrored


def main() -> None:
    """Train, evaluate, and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--steps", type=int, help="stop after this number of steps, to time the steps only"
    )
    parser.add_argument(
        "--keep-memory", action="store_true", help="keep freed memory for later steps"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    if options.keep_memory:
        runtime.keep_memory()
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset = data.load("cifar10")
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)

    def tensors(split: data.Split) -> tuple[Tensor, Tensor]:
        images = (torch.from_numpy(split.images) / 255 - mean) / std
        return images.permute(0, 3, 1, 2).to(device), torch.tensor(split.labels).long().to(device)

    images, labels = tensors(dataset.train)
    epoch = len(images) // options.batch_size
    steps = math.ceil(options.epochs * epoch)
    network: Any = Network()
    network.to(device, memory_format=torch.channels_last)
    network.whiten(images[:WHITENING_IMAGES])
    bias_steps, bf16 = WHITENING_BIAS_EPOCHS * epoch, options.precision == "bfloat16"
    trainer = Trainer(network, options.batch_size, steps, bias_steps, bf16)

    every, unit, last = (1, "step", options.steps) if options.steps else (epoch, "epoch", steps)
    seconds, started = [], time.perf_counter()
    source = batches(images, labels, options.batch_size)
    for step, batch in zip(range(1, last + 1), source, strict=False):
        loss = trainer.step(*batch)
        if step % every == 0 or step == last:
            mean_loss = loss.item()  # `item` waits for the GPU, so the time is complete.
            seconds.append(time.perf_counter() - started - sum(seconds))
            print(f"{unit} {step / every:g}: {seconds[-1]:.2f} s, loss {mean_loss:.3f}", flush=True)

    results = vars(options) | {"device": device, "torch": torch.__version__, "seconds": seconds}
    if not options.steps:
        plain, tta = trainer.accuracies(*tensors(dataset.test))
        print(f"accuracy {tta:.2f} % (without test-time augmentation {plain:.2f} %)")
        results |= {"accuracy": tta, "accuracy_without_tta": plain}
    results["wall_seconds"] = time.perf_counter() - peers.STARTED
    print(f"{results['wall_seconds']:.1f} s in all")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
