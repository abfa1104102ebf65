"""What a run leaves behind: a line an epoch, metrics.json and training.png."""

import json
import platform
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
import numpy as np
import optax
from tqdm import tqdm

import amac_jax
from amac_jax.tools import datasets
from examples.mnist.curves import training_curves
from examples.mnist.training import TrainState

if TYPE_CHECKING:
    from examples.mnist.checkpoints import Checkpoints

ABOUT = ("versions", "device", "timing")  # in a checkpoint for information


class Report:
    """What a run leaves behind; metrics.json is rewritten every epoch, so nothing is lost.

    Without `out`, nothing is written: several processes need one report.
    """

    def __init__(
        self,
        configuration: dict[str, Any],
        data: datasets.Images,
        out: Path | None,
        program: str,
    ):
        device = jax.devices()[0]
        self.history: list[dict[str, np.ndarray]] = []
        self.content: dict[str, Any] = {
            "configuration": configuration,
            "dataset": {
                "name": data.name,
                "train": len(data.train_images),
                "test": len(data.test_images),
            },
            "versions": {
                "python": platform.python_version(),
                **{lib.__name__: lib.__version__ for lib in (amac_jax, jax, flax, optax, np)},
            },
            "device": f"{device.platform}, {device.device_kind}",
            "epochs": [],
        }
        self.out, self.program = out, program
        self.pauses: list[float] = []  # seconds for which training waited, one a save

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.content["epochs"])

    def add(self, row: dict[str, Any], metrics: dict[str, jax.Array]) -> None:
        self.content["epochs"].append(row)
        self.history.append(jax.device_get(metrics))
        self.write()

    def tell(self, text: str) -> None:
        """Prints a line at once, in a pipe too, and on a terminal above the bar."""
        if self.out:
            tqdm.write(text)
            sys.stdout.flush()

    def write(self) -> None:
        if not self.out:
            return
        partial_file = self.out / "metrics.json.partial"
        partial_file.write_text(json.dumps(self.content, indent=2) + "\n")
        partial_file.replace(self.out / "metrics.json")

    def steps(self) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([part[name] for part in self.history]) for name in self.history[0]
        }

    def run(self) -> dict[str, Any]:
        """What a run must share with a checkpoint that it goes on from."""
        return {
            "program": self.program,
            "configuration": self.content["configuration"],
            "dataset": self.content["dataset"],
        }

    def announce(self, text: str, state: TrainState, checkpoints: "Checkpoints | None") -> None:
        """Tells of an epoch when its checkpoint, if it has one, would survive a power failure."""
        if checkpoints is None:
            self.tell(text)
            return
        began = time.perf_counter()
        about = {name: self.content[name] for name in ABOUT}
        checkpoints.save(
            self.epoch,
            state,
            self.steps(),
            rows=self.content["epochs"],
            run=self.run(),
            about=about,
            then=partial(self.tell, text),
        )
        self.pauses.append(time.perf_counter() - began)

    def restored(self, checkpoints: "Checkpoints", like: TrainState) -> TrainState | None:
        """The state after the epochs of a checkpoint, which become the report's; or None."""
        saved = checkpoints.restore(like, run=self.run())
        if saved is None:
            self.tell(f"{checkpoints.folder}: no checkpoint yet; starting anew")
            return None
        self.tell(f"{checkpoints.folder}: going on after epoch {saved.epoch}")
        for name in ("versions", "device"):
            if saved.about[name] != self.content[name]:
                self.tell(f"not quite to the bit: the {name} changed from {saved.about[name]}")
        self.history = [saved.history]
        self.content |= {"timing": saved.about["timing"], "epochs": saved.rows}
        return saved.state

    def draw(self) -> None:
        if not self.out:
            return
        steps = self.steps()
        c = self.content["configuration"]
        title = (
            f"{c['optimizer']}, {c['model']}, {self.content['dataset']['name']}, seed {c['seed']}"
        )
        training_curves(steps, self.content["epochs"], title).savefig(
            self.out / "training.png", dpi=120
        )


def line(row: dict[str, Any], epochs: int) -> str:
    averaged = row["averaged_test_accuracy"]
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}   loss {row['loss']:.4f}   "
        f"train {row['train_accuracy']:.2f} %   test {row['test_accuracy']:.2f} %   "
        + (f"averaged weights {averaged:.2f} %   " if averaged is not None else "")
        + f"{row['seconds']:.1f} s"
    )
