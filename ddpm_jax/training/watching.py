"""Quick evaluations while a run trains: figures for its log, and the score by which its best checkpoint is known."""

import dataclasses
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ddpm_jax import files
from ddpm_jax.training import evaluation, evaluation_sets, processes
from ddpm_jax.training.run import Parts, as_learned
from ddpm_jax.training.state import State

Watch = Callable[[State], tuple[dict[str, Any], float | None]]
"""state -> what metrics.jsonl says of it, and the score of its checkpoint: lower is better."""


def watch(parts: Parts, workdir: files.Place) -> Watch | None:
    """What measures a state every run.evaluate_every steps; None for a run that asks for none.

    A network whose images can't be measured, as they aren't finite, is said to be so; training goes on.

    Raises:
        FileNotFoundError, ImportError, ValueError: at once, for features or data that can't be measured by.
    """
    run = parts.config.run
    if not run.evaluate_every:
        return None
    task = evaluation.quickly(parts.config, features=run.evaluate_features, num=run.evaluate_num)
    evaluation.check(parts, task)
    try:
        evaluation_sets.sources(task.data, task.held_out)
    except (ValueError, FileNotFoundError):  # a set of one split
        task = dataclasses.replace(task, held_out="")

    def measure(state: State) -> tuple[dict[str, Any], float | None]:
        try:
            result = evaluation.evaluate(as_learned(parts, state), state, task, workdir)
        except ValueError as error:
            if processes.writes():
                tqdm.write(f"no evaluation at step {int(state.step)}: {error}")
            return {}, None
        return {"evaluation": evaluation.brief(result)}, evaluation.best(result)

    return measure
