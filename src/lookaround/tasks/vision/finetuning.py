"""Networks that begin with weights trained elsewhere: where those come from, the new head, rates and frozen stages."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookaround.tasks.vision.networks import ARCHITECTURE

_TORCHVISION, _TIMM = "torchvision:", "timm:"
# torchvision's DenseNet files are older than its names.
_DENSE = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$")


@dataclass(frozen=True)
class Start:
    """Weights to begin with.

    Attributes:
        source: as the user named it.
        tensors: by name.
        classes: that the head tells apart, or None where that is not known.
    """

    source: str
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...] | None

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell weights apart."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            whole.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()[:16]

    def put(self, model: nn.Module, classes: Sequence[str]) -> None:
        """Loads the weights into a network; a head for other classes stays as it was drawn.

        Raises:
            ValueError: for weights of another network.
        """
        own, head = model.state_dict(), head_of(model)
        fits = {name: self.tensors[name] for name in own if name in self.tensors and not name.startswith(f"{head}.")}
        lasts = {name: self.tensors.get(name) for name in own if name.startswith(f"{head}.")}
        if self.classes in (None, tuple(classes)) and all(
            tensor is not None and tensor.shape == own[name].shape for name, tensor in lasts.items()
        ):
            fits |= {name: tensor for name, tensor in lasts.items() if tensor is not None}
        self._check(own, fits, head)
        model.load_state_dict({**own, **fits})

    def _check(self, own: Mapping[str, Tensor], fits: Mapping[str, Tensor], head: str) -> None:
        for name, tensor in own.items():
            if name.startswith(f"{head}.") or name.endswith("num_batches_tracked"):
                continue
            if name not in fits:
                raise ValueError(f"--init-from {self.source} holds another network: it has no {name}")
            if fits[name].shape != tensor.shape:
                shapes = f"{tuple(fits[name].shape)}, not {tuple(tensor.shape)}"
                raise ValueError(f"--init-from {self.source} holds another network: its {name} has the shape {shapes}")


def head_of(model: nn.Module) -> str:
    """The name of the last linear layer, which tells classes apart.

    Raises:
        ValueError: for a network that has none.
    """
    linear: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("this network has no linear layer to replace, so it cannot be fine-tuned; choose another")
    return linear[-1]


def freeze(model: nn.Module, stages: Sequence[str]) -> None:
    """Leaves stages as they are: no gradient, and in evaluation mode always, so that their norm statistics stay too.

    Args:
        model: to train.
        stages: names of modules, such as ``conv1`` and ``layer1``; all inside is meant.

    Raises:
        ValueError: for a name that the network does not have, or when nothing but the head would be left out.
    """
    modules = dict(model.named_modules())
    for stage in stages:
        if stage not in modules or not stage:
            names = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"--frozen: the network has no stage {stage!r}; it has {names}")
        modules[stage].requires_grad_(False)
        for module in modules[stage].modules():
            module.register_forward_pre_hook(_stay)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--frozen {' '.join(stages)} leaves nothing to train; name fewer stages")


def _stay(module: nn.Module, inputs: Any) -> None:
    """Puts a frozen module back into evaluation mode, wherever a training loop put it."""
    module.training = False


def groups(model: nn.Module, body_rate: float) -> list[dict[str, Any]]:
    """The head with the method's learning rate, and the rest with ``body_rate`` times that; what is frozen is in neither."""
    head = head_of(model)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    own = [parameter for name, parameter in trained if name.startswith(f"{head}.")]
    rest = [parameter for name, parameter in trained if not name.startswith(f"{head}.")]
    both = [{"params": own, "lr_scale": 1.0}, {"params": rest, "lr_scale": body_rate}]
    return [group for group in both if group["params"]]


def load_start(source: str) -> Start:
    """Reads weights; nothing is ever downloaded.

    Args:
        source: a safetensors file; the folder of a run; ``torchvision:NAME`` or ``timm:NAME``, whose weights are on the machine.

    Raises:
        ValueError: in one line, for weights that are not there or cannot be read.
    """
    if source.startswith(_TORCHVISION):
        return _from_torchvision(source)
    path = _from_timm(source) if source.startswith(_TIMM) else Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"--init-from {source}: there is no {path}; give a safetensors file or the folder of a run")
    return _from_file(source, path)


def _from_file(source: str, path: Path) -> Start:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(ARCHITECTURE, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"--init-from {source}: {path} is no safetensors file: {error}") from error
    classes = described.get("classes")
    return Start(source, tensors, None if classes is None else tuple(classes))


def _from_torchvision(source: str) -> Start:
    from torchvision import models

    name = source.removeprefix(_TORCHVISION).replace("-", "_")
    if name not in models.list_models():
        raise ValueError(f"--init-from {source}: torchvision has no model {name!r}")
    weights: Any = models.get_model_weights(name)
    url: str = weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise ValueError(
            f"--init-from {source}: its weights are not on this machine ({path}); nothing is downloaded here, fetch them with "
            f"torchvision.models.{name}(weights='IMAGENET1K_V1')"
        )
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"--init-from {source}: {path} is damaged: {str(error).splitlines()[0]}") from error
    return Start(source, {_DENSE.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}, None)


def _from_timm(source: str) -> Path:
    name = source.removeprefix(_TIMM)
    try:
        import timm
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise ValueError(f"--init-from {source} needs timm: pip install timm") from error
    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"--init-from {source}: timm has no model {name!r}")
    described = timm.models.get_pretrained_cfg(name)
    path = described and described.hf_hub_id and try_to_load_from_cache(described.hf_hub_id, "model.safetensors")
    if not isinstance(path, str):
        raise ValueError(
            f"--init-from {source}: its weights are not on this machine; nothing is downloaded here, fetch them with "
            f"timm.create_model({name!r}, pretrained=True)"
        )
    return Path(path)
