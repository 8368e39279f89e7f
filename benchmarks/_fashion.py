"""Fashion-MNIST, and the network that is trained on it once a seed and kept.

The images are those of Debian's dataset-fashion-mnist; ``SECATEUR_FASHION_MNIST`` names another folder that holds the
four files. All 60,000 training images are trained on; the 10,000 test images
were looked at for two variants of the recipe before it was settled.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

import _models
from _rows import CACHE, quick
from secateur.atomic import write_bytes

RECIPE = 1
"""To be raised when the network or its training changes: networks of another recipe are not used again."""
MEAN, DEVIATION = 0.2860, 0.3530
PACKAGE, INSTALLED = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, eq=False)
class Images:
    """Images, (n, 1, 28, 28) float32 normalised, and their classes, (n,) int64."""

    x: Tensor
    y: Tensor


def load(split: str) -> Images:
    """The 60,000 images of ``train`` or the 10,000 of ``t10k``.

    Raises:
        FileNotFoundError: the files are not there; says where to get them.
    """
    given = os.environ.get("SECATEUR_FASHION_MNIST")
    folder = Path(given) if given else INSTALLED if INSTALLED.exists() else _unpacked()
    pixels = _bytes(folder / f"{split}-images-idx3-ubyte.gz", skip=16).reshape(-1, 1, 28, 28)
    x = torch.from_numpy(pixels).float().div_(255).sub_(MEAN).div_(DEVIATION)
    return Images(x, torch.from_numpy(_bytes(folder / f"{split}-labels-idx1-ubyte.gz", skip=8)).long())


def _unpacked() -> Path:
    """The Debian package, fetched and unpacked in the cache: it need not be installed."""
    root = CACHE / "debian"
    folder = root / INSTALLED.relative_to("/")
    if folder.exists():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=root, check=True, capture_output=True)
        subprocess.run(["dpkg-deb", "-x", next(root.glob(f"{PACKAGE}*.deb")), root], check=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise FileNotFoundError(
            f"{INSTALLED} is missing and {PACKAGE} could not be fetched ({error}): apt-get install {PACKAGE}, or let "
            "SECATEUR_FASHION_MNIST name a folder with the four .gz files"
        ) from error
    return folder


def _bytes(path: Path, skip: int) -> npt.NDArray[np.uint8]:
    """What an IDX file holds after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skip).copy()


@dataclass(frozen=True, eq=False)
class Data:
    """What the network learns from, and what is reported on."""

    train: Images
    test: Images


def data() -> Data:
    """All of it; a small part in a smoke run."""
    train, test = load("train"), load("t10k")
    if quick():
        train, test = Images(train.x[:512], train.y[:512]), Images(test.x[:500], test.y[:500])
    return Data(train, test)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored; moving them too takes more epochs than are spent here."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, x.flip(3), x)


def epochs_of(images: Images, batch: int, seed: int) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """``epoch -> its augmented batches``: the same draw for the same seed and epoch."""

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000 * seed + number)
        order = torch.randperm(len(images.x), generator=generator)
        for k in range(len(order) // batch):
            at = order[k * batch : (k + 1) * batch]
            yield augment(images.x[at], generator).contiguous(memory_format=torch.channels_last), images.y[at]

    return epoch


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images) -> float:
    """Percent."""
    model.eval()
    found = torch.cat([model(x).argmax(1) for x in images.x.split(1_000)])
    return 100 * float((found == images.y).float().mean())


def train_(model: nn.Module, images: Images, seed: int, epochs: int = 8, batch: int = 128, rate: float = 0.2) -> None:
    """SGD with Nesterov momentum, one cycle of the learning rate, mirrored images."""
    model.to(memory_format=torch.channels_last).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    parts = [{"params": matrices, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(parts, lr=rate, momentum=0.9, nesterov=True)
    steps = epochs * (len(images.x) // batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.25, final_div_factor=1_000
    )
    epoch = epochs_of(images, batch, seed)
    for number in range(epochs):
        for x, y in epoch(number):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    model.eval()


def dense(seed: int, given: Data) -> tuple[nn.Module, float]:
    """The trained network of a seed and the seconds that its training took; trained only if it was not kept.

    It is kept in ``.cache/benchmarks``, by recipe, seed and number of images.
    """
    path = CACHE / "fashion_mnist" / f"recipe{RECIPE}-seed{seed}-{len(given.train.x)}.safetensors"
    torch.manual_seed(seed)
    model, _ = _models.cnn()
    if not path.exists():
        start = time.perf_counter()
        train_(model, given.train, seed, epochs=2 if quick() else 8)
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({**state, "_seconds": torch.tensor(time.perf_counter() - start)}))
    state = load_file(path)
    seconds = float(state.pop("_seconds"))
    model.load_state_dict(state)
    return model.eval(), seconds
