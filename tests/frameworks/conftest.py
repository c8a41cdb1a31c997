"""Other people's training loops, run for real where they are installed: `make test-frameworks`."""

from importlib.util import find_spec

NEEDS = {
    "test_lightning.py": "lightning",
    "test_fabric.py": "lightning",
    "test_trainer.py": "transformers",
    "test_accelerate.py": "accelerate",
    "test_timm_loop.py": "timm",
}
collect_ignore = [file for file, package in NEEDS.items() if find_spec(package) is None]
# timm alone is in the development extra for its optimizers; its loop belongs to the group that is run on request.
if find_spec("lightning") is None:
    collect_ignore.append("test_timm_loop.py")
