"""The scores of a fine-tuned model in each inference mode."""

import dataclasses

import minibert
from minibert.bench.engines import why_not
from minibert.common.console import table
from minibert.common.runtime import Runtime
from minibert.inference.fast_encoder import MODES, fast
from minibert.inference.predict import outputs
from minibert.tasks.models import load_tuned
from minibert.tasks.official_files import read_examples
from minibert.tasks.specs import TASKS
from minibert.tasks.splits import judge, some_of, tokenised


def quality(folder: str, task_name: str, data: str, max_length: int, some: int | None,
            runtime: Runtime) -> dict[str, dict]:
    """The scores of a fine-tuned model in every mode that runs here, in percent, and the changes of its
    logits.

    This function uses the dev set of the task. If `some` is not None, it uses only `some` of its examples.
    """
    task = dataclasses.replace(TASKS[task_name], max_length=max_length)
    model = load_tuned(folder, task)
    split = tokenised(task, read_examples(task, data, task.dev_splits[0]),
                      minibert.load_tokenizer(folder), 128)
    if some:
        split = some_of(split, some)
    model.to(runtime.device)
    exact, found = outputs(model, split.examples, runtime), {}
    for engine in ("minibert", *(f"minibert {mode}" for mode in MODES)):
        if why_not(engine, runtime.device):
            continue
        made = fast(model, engine.split()[1]) if engine != "minibert" else model
        scores, logits = judge(made, task, split, runtime)
        found[engine] = {**scores,
                         "largest_logit_change": float(abs(logits - exact).max()),
                         "mean_logit_change": float(abs(logits - exact).mean())}
        if task.kind == "classes":
            found[engine]["answers_changed"] = int((logits.argmax(-1) != exact.argmax(-1)).sum())
    rows = [{"mode": engine, **{key: f"{value:.4g}" if isinstance(value, float) else str(value)
                                for key, value in one.items()}} for engine, one in found.items()]
    print(table(rows, f"{folder} on the {len(split.examples.lengths)} examples of {task.name}'s dev set; "
                      f"largest logit {abs(exact).max():.2f}"), flush=True)
    return found
