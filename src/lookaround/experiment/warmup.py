"""Whether a run's learning rate ever comes down: a warm-up is counted in epochs, and a budget may be shorter."""

from __future__ import annotations

from lookaround.experiment.running import Prepared


def never_down(prepared: Prepared) -> str:
    """A line that names the methods whose warm-up is as long as the run, or nothing.

    Their rate rises to the last minibatch. There an average is ahead of the weights that it averages, as a decay would be: a comparison
    of the two says nothing of longer runs.
    """
    task, epochs = prepared.task, prepared.epochs
    chosen = {spec.label: spec.resolve(task.defaults, task.branches).settings for spec in prepared.plan.methods}
    found = [label for label, own in chosen.items() if own.schedule != "constant" and 0 < epochs <= own.warmup]
    if not found:
        return ""
    return (
        f"{', '.join(found)}: the warm-up is as long as the run of {epochs:.3g} epochs, so the learning rate never comes down; "
        "warmup= is in epochs and can be a part of one"
    )
