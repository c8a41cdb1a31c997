"""Run all benchmarks, or those named."""

import importlib
import sys

NAMES = (
    "lookahead_average",
    "step_overhead",
    "lookaround_step",
    "running_average",
    "train_speed",
    "soup",
    "sharded_soup",
    "landscape",
    "branches",
    "same_loss",
    "text_training",
)


def main(names: list[str]) -> None:
    """Run the benchmarks one after the other; each prints its own table."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}: choose from {', '.join(NAMES)}")
    for name in names or NAMES:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
