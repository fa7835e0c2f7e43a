"""Quick evaluations while a run trains: figures for its log, and the score by which its best checkpoint is known."""

from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from ddpm_jax import files
from ddpm_jax.training import evaluation, evaluation_sets, processes
from ddpm_jax.training.evaluation_task import quickly
from ddpm_jax.training.run import Parts, as_learned
from ddpm_jax.training.state import State

Watch = Callable[[State], tuple[dict[str, Any], float | None]]
"""state -> what metrics.jsonl says of it, and the score of its checkpoint: lower is better."""


def watch(parts: Parts, workdir: files.Place) -> Watch | None:
    """What measures a state every run.evaluate_every steps; None for a run that asks for none.

    What can't be measured (images that aren't finite, memory that isn't there) is said to be so; training goes on.

    Raises:
        FileNotFoundError, ImportError, ValueError: at once, for features or data that can't be measured by.
    """
    run = parts.config.run
    if not run.evaluate_every:
        return None
    task = quickly(parts.config, features=run.evaluate_features, num=run.evaluate_num)
    evaluation.check(parts, task)
    sources = evaluation_sets.sources(task.data, task.held_out)
    # Of one process. Of several, all meet a ValueError alike; what only one of them meets must end them all.
    harmless = (ValueError, OSError, jax.errors.JaxRuntimeError) if jax.process_count() == 1 else (ValueError,)

    def measure(state: State) -> tuple[dict[str, Any], float | None]:
        try:
            result = evaluation.evaluate(as_learned(parts, state), state, task, workdir, sources=sources)
        except harmless as error:
            if processes.writes():
                tqdm.write(f"no evaluation at step {int(state.step)}: {str(error).splitlines()[0]}")
            return {}, None
        return {"evaluation": evaluation.brief(result)}, evaluation.best(result)

    return measure
