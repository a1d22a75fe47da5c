"""Other ways to train a network, for the benchmarks that set training beside them.

None of them varies the films. Each calls ``after_step`` with the number of films and the module behind every step of
its optimiser; what that raises ends the training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from chestxray.data.parallel import cores
from chestxray.schema import Label

Films = Sequence[tuple[Path, Label]]
AfterStep = Callable[[int, nn.Module], None]

LEARNING_RATE = 1e-3  # of AdamW, which both use
HAS_LIGHTNING = importlib.util.find_spec("lightning") is not None


def nothing_more(_films: int, _module: nn.Module) -> None:
    """Do nothing after a step."""


class Decoded(Dataset[tuple[Tensor, int]]):
    """Films opened, made grey and resized each time that they are asked for: shape (1, height, width)."""

    def __init__(self, films: Films, size: tuple[int, int]) -> None:
        self.films = films
        self.size = size

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.films[index]
        with Image.open(path) as image:
            levels = np.array(image.convert("L").resize(self.size[::-1], Image.Resampling.BILINEAR))
        return torch.from_numpy(levels)[None], label.class_index


def loader_of(films: Films, size: tuple[int, int], batch_size: int) -> DataLoader[tuple[Tensor, int]]:
    """Workers that decode, one a core."""
    return DataLoader(Decoded(films, size), batch_size, shuffle=True, num_workers=cores(), persistent_workers=True)


def plain_loop(
    loader: DataLoader[tuple[Tensor, int]], classifier: nn.Module, after_step: AfterStep = nothing_more
) -> Callable[[], None]:
    """A loop as tutorials have it. Returns what trains for an epoch."""
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE)

    def epoch() -> None:
        for levels, labels in loader:
            loss = functional.cross_entropy(classifier(levels), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            after_step(len(levels), classifier)

    return epoch


def lightning_trainer(
    loader: DataLoader[tuple[Tensor, int]],
    classifier: nn.Module,
    after_step: AfterStep = nothing_more,
    *,
    epochs: int = 1,
) -> Callable[[], None]:
    """The same by Lightning's Trainer. Returns what trains for so many epochs."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            return functional.cross_entropy(self.classifier(batch[0]), batch[1])

        def on_train_batch_end(self, _outputs: Any, batch: tuple[Tensor, Tensor], _index: int) -> None:
            after_step(len(batch[0]), self.classifier)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)

    module = Module()
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)

    def train() -> None:
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(module, loader)

    return train
