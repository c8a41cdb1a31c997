"""A network that can be built again from its file: weights, architecture and normalization in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lookaround.averaging.files import save_tensors
from lookaround.errors import UsageError
from lookaround.tasks.vision.data import ImageData
from lookaround.tasks.vision.data.images import normalized
from lookaround.tasks.vision.models import build_model

# Keys of a file's metadata. Each stands alone, so that a soup of networks keeps what they agree on. The safetensors library writes
# several in random order; `save_tensors` does not, so equal networks are equal files.
ARCHITECTURE = "lookaround.architecture"
NOTE = "lookaround.{}"


@dataclass(frozen=True)
class Architecture:
    """What `lookaround.tasks.vision.models.build_model` needs, and what predictions and inputs mean.

    Attributes:
        name: of the network.
        width: of its first convolution, or None for its own.
        channels: of an image.
        image_size: height and width of an image, in pixels.
        classes: names in the order of the logits.
        mean: per channel, of images scaled to [0, 1]; subtracted from them.
        std: per channel; images are divided by it.
    """

    name: str
    width: int | None
    channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def for_data(cls, name: str, width: int | None, data: ImageData) -> Architecture:
        """The named network for the images and classes of ``data``.

        Raises:
            UsageError: for images that are not square.
        """
        channels, height, image_width = data.train_images.shape[1:]
        if height != image_width:
            raise UsageError(f"networks take square images, {data.name} has {image_width}×{height}; pass --image-size")
        return cls(name, width, channels, height, data.classes, data.mean, data.std)

    def prepare(self, images: Tensor) -> Tensor:
        """What the network takes, from images as they are: uint8 ``(N, C, H, W)`` of its channels and size, to float32.

        Raises:
            ValueError: for images of another dtype or shape.
        """
        shape = (self.channels, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"the network takes uint8 images of shape (N, {', '.join(map(str, shape))}), got {images.dtype} "
                f"of shape {tuple(images.shape)}"
            )
        return normalized(images, self.mean, self.std)

    def build(self) -> nn.Module:
        """A network with initial weights drawn from torch's global generator.

        Raises:
            ValueError: for an unknown name, or a width or image size that the network does not take.
        """
        return build_model(
            self.name,
            classes=len(self.classes),
            channels=self.channels,
            image_size=self.image_size,
            width=self.width,
        )


def save_network(path: Path, model: nn.Module, architecture: Architecture, notes: Mapping[str, str]) -> None:
    """Writes the model's weights and buffers under their own names, atomically; the same network gives the same bytes.

    Args:
        path: of the safetensors file.
        model: on any device.
        architecture: goes into the file's metadata, from which `load_network` builds the model again.
        notes: what else the metadata is to say, such as the method and the seed, under ``lookaround.NAME``.

    Raises:
        OSError: when it cannot be written.
    """
    described = {ARCHITECTURE: json.dumps(asdict(architecture), ensure_ascii=False)}
    noted = {NOTE.format(name): note for name, note in notes.items()}
    save_tensors(path, model.state_dict(), {"format": "pt", **noted, **described})


def load_network(path: str | Path) -> tuple[nn.Module, Architecture]:
    """The network in a ``model.safetensors`` of a run folder, or in a soup of some, on the CPU and in evaluation mode.

    Raises:
        UsageError: for a file that is missing, damaged, or holds no architecture to build.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from lookaround.tasks.vision import VisionConfig, VisionTask, load_network
        >>> task = VisionTask.load(VisionConfig(width=4), torch.device("cpu"))
        >>> images = task.data.test_images[:5]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     task.save(Path(folder, "model.safetensors"), task.network(), {})
        ...     model, about = load_network(f"{folder}/model.safetensors")
        >>> with torch.inference_mode():
        ...     probabilities = model(about.prepare(images)).softmax(1)
        >>> len([about.classes[index] for index in probabilities.argmax(1)])
        5
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if ARCHITECTURE not in metadata:
                raise ValueError(f"its metadata have no {ARCHITECTURE}")
            described = json.loads(metadata[ARCHITECTURE])
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sequences = {key: tuple(described[key]) for key in ("classes", "mean", "std")}
        architecture = Architecture(**{**described, **sequences})
        model = architecture.build()
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is no network saved by lookaround train: {reason}") from error
    return model.eval(), architecture
