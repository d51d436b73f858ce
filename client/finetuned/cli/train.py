"""`finetuned train`: start a TrainJob and watch it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from finetuned import (
    Baseline,
    BaselineExample,
    BottleneckActivation,
    BottleneckPlacement,
    ClassificationOptions,
    ClassWeights,
    Client,
    ContrastiveOptions,
    DataOptions,
    Dpo,
    EvaluationOptions,
    LearningRateSchedule,
    LongRows,
    Objective,
    Optimization,
    Pooling,
    PromoteIf,
    Task,
    WeightFormat,
)
from finetuned.cli.jobs import follow
from finetuned.cli.method import by_name, method_settings
from finetuned.cli.session import AsJson, Detach, Priority, connect

METHOD, STEPS, DATA, EVALUATION, PROMOTION = "Method", "Optimization", "Data", "Evaluation", "Promotion"
DPO = "Preferences (DPO)"


def _option(panel: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, case_sensitive=False)


def train(
    context: typer.Context,
    *,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="The rows to learn from.")],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="The adapter; this makes its next version.")
    ],
    base: Annotated[
        str | None, typer.Option(help="The base to train on; the server's.", show_default=False)
    ] = None,
    task: Annotated[
        Literal[
            "text-generation",
            "text-classification",
            "token-classification",
            "image-classification",
            "feature-extraction",
        ]
        | None,
        typer.Option(help="What the adapter is for; text-generation.", show_default=False),
    ] = None,
    objective: Annotated[
        Literal["SFT", "DPO", "CLASSIFICATION", "CONTRASTIVE"] | None,
        typer.Option(
            help="The loss; DPO for preferences, else the task's usual one.",
            show_default=False,
            case_sensitive=False,
        ),
    ] = None,
    eval_dataset: Annotated[str | None, _option(DATA, "Held-out rows; else a part of the dataset.")] = None,
    holdout_fraction: Annotated[float | None, _option(DATA, "Part held out without them; 0.1.")] = None,
    max_row_tokens: Annotated[int | None, _option(DATA, "The longest row; 1024 or the context.")] = None,
    long_rows: Annotated[
        Literal["REJECT", "TRUNCATE", "DROP"] | None, _option(DATA, "What happens to longer ones; REJECT.")
    ] = None,
    train_on_prompt: Annotated[bool, _option(DATA, "Learn the prompts too.", "--train-on-prompt")] = False,
    method: Annotated[
        Literal["lora", "qlora", "ia3", "bottleneck", "head", "layers", "full"] | None,
        _option(METHOD, "lora; where a base does not take it, qlora or head."),
    ] = None,
    target_module: Annotated[
        list[str] | None, _option(METHOD, "lora, ia3, bottleneck: only these modules (repeatable).")
    ] = None,
    rank: Annotated[int | None, _option(METHOD, "lora: rank of each update, 1 to 256; 16.")] = None,
    alpha: Annotated[
        float | None,
        _option(METHOD, "lora: numerator of the scaling; twice the rank, with --rank-stabilized 8."),
    ] = None,
    dropout: Annotated[float | None, _option(METHOD, "lora: dropout before the update; 0.")] = None,
    rank_stabilized: Annotated[bool, _option(METHOD, "lora: rsLoRA scaling.", "--rank-stabilized")] = False,
    decomposed: Annotated[bool, _option(METHOD, "lora: DoRA.", "--decomposed")] = False,
    rank_of: Annotated[list[str] | None, _option(METHOD, "lora: MODULE=RANK, another (repeatable).")] = None,
    alpha_of: Annotated[
        list[str] | None, _option(METHOD, "lora: MODULE=ALPHA, another (repeatable).")
    ] = None,
    feedforward_module: Annotated[
        list[str] | None, _option(METHOD, "ia3: targets whose input is scaled (repeatable).")
    ] = None,
    save_module: Annotated[
        list[str] | None, _option(METHOD, "lora, ia3: this one trains whole (repeatable).")
    ] = None,
    placement: Annotated[
        Literal["HOULSBY", "PFEIFFER", "PARALLEL"] | None, _option(METHOD, "bottleneck: where; HOULSBY.")
    ] = None,
    reduction_factor: Annotated[float | None, _option(METHOD, "bottleneck: of the base's width; 16.")] = None,
    width: Annotated[int | None, _option(METHOD, "bottleneck: its own, instead of the factor.")] = None,
    activation: Annotated[
        Literal["RELU", "GELU", "SILU"] | None, _option(METHOD, "bottleneck: nonlinearity; GELU.")
    ] = None,
    scaling: Annotated[float | None, _option(METHOD, "bottleneck: of what is added; 1.")] = None,
    pooling: Annotated[
        Literal["MEAN", "CLS", "LAST"] | None,
        _option(METHOD, "head: how a text's vectors become one; the base's own."),
    ] = None,
    last: Annotated[int | None, _option(METHOD, "layers: so many at the end; a quarter.")] = None,
    layer: Annotated[list[int] | None, _option(METHOD, "layers: by number from 0 (repeatable).")] = None,
    module: Annotated[list[str] | None, _option(METHOD, "layers: this one, too (repeatable).")] = None,
    beta: Annotated[float | None, _option(DPO, "How near to the beginning it stays; 0.1.")] = None,
    label_smoothing: Annotated[float | None, _option(DPO, "How often a choice is wrong; 0.")] = None,
    class_weights: Annotated[
        Literal["BALANCED", "NONE"] | None,
        _option(METHOD, "classification: how rare labels count; BALANCED, for tags NONE."),
    ] = None,
    label_weight: Annotated[
        list[str] | None, _option(METHOD, "classification: LABEL=WEIGHT in the loss (repeatable).")
    ] = None,
    scale: Annotated[float | None, _option(METHOD, "vectors: of cosines before the softmax; 20.")] = None,
    epochs: Annotated[
        float | None, _option(STEPS, "Passes over the rows; 3, or more of few rows; heads 30.")
    ] = None,
    max_steps: Annotated[int | None, _option(STEPS, "Optimiser steps, instead of epochs.")] = None,
    batch_rows: Annotated[int | None, _option(STEPS, "Rows in a step; 8.")] = None,
    micro_batch_rows: Annotated[int | None, _option(STEPS, "How many run at once; all.")] = None,
    activation_checkpointing: Annotated[
        bool | None,
        _option(
            STEPS,
            "Less memory, slower; where memory is short.",
            "--activation-checkpointing/--no-activation-checkpointing",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, _option(STEPS, "The peak; chosen from base, method and rows.")
    ] = None,
    head_learning_rate: Annotated[
        float | None, _option(STEPS, "Of a head beside what else trains; lora's usual one.")
    ] = None,
    schedule: Annotated[
        Literal["CONSTANT", "LINEAR", "COSINE"] | None, _option(STEPS, "After warm-up; COSINE.")
    ] = None,
    warmup_fraction: Annotated[float | None, _option(STEPS, "Part in which the rate rises; 0.05.")] = None,
    weight_decay: Annotated[float | None, _option(STEPS, "AdamW's; 0.")] = None,
    max_gradient_norm: Annotated[float | None, _option(STEPS, "Clips its norm; 1; 0 does not.")] = None,
    seed: Annotated[int | None, _option(STEPS, "Order of rows, weights, dropout; 0.")] = None,
    checkpoint_interval_steps: Annotated[
        int | None, _option(STEPS, "Between checkpoints; chosen from the number of steps.")
    ] = None,
    kept_checkpoints: Annotated[int | None, _option(STEPS, "Newest ones kept, besides the best; 2.")] = None,
    evaluations: Annotated[
        int | None, _option(EVALUATION, "How often held-out rows are measured on the way; 4.")
    ] = None,
    patience: Annotated[int | None, _option(EVALUATION, "Of early stopping; 2; 0 never stops.")] = None,
    generation_rows: Annotated[int | None, _option(EVALUATION, "Rows answered for exact match; 100.")] = None,
    generation_max_tokens: Annotated[int | None, _option(EVALUATION, "Bound of each answer; 128.")] = None,
    baseline: Annotated[
        Path | None,
        _option(EVALUATION, 'JSON with the plain base\'s "instruction" and "examples" (prompt, completion).'),
    ] = None,
    promote: Annotated[str | None, _option(PROMOTION, "The alias that moves to this version if ...")] = None,
    promote_metric: Annotated[str, _option(PROMOTION, "... this figure; the task's usual one.")] = "",
    promote_minimum: Annotated[float | None, _option(PROMOTION, "... reaches this, and")] = None,
    promote_if_better: Annotated[
        bool, _option(PROMOTION, "... beats the aliased version's.", "--promote-if-better")
    ] = False,
    continue_from: Annotated[
        str | None, typer.Option(help="A version to start from (redact@3), or a diverged job's full name.")
    ] = None,
    display_name: Annotated[str, typer.Option("--name", help="Your own name for the job.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check; show the data and estimate.")
    ] = False,
    pause_after_estimate: Annotated[
        bool,
        typer.Option(
            "--pause-after-estimate", help="Measure what it will take, then wait for `jobs resume`."
        ),
    ] = False,
    priority: Priority = "NORMAL",
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Train an adapter, and watch it; what is not given is chosen by the service.

    Ctrl-C stops watching, not the job. Exits with 6 if the job did not succeed.
    """
    settings = {
        "target_modules": tuple(target_module or ()),
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "rank_stabilized": rank_stabilized,
        "decomposed": decomposed,
        "rank_pattern": by_name("--rank-of", "MODULE=RANK", rank_of or (), int),
        "alpha_pattern": by_name("--alpha-of", "MODULE=ALPHA", alpha_of or (), float),
        "feedforward_modules": tuple(feedforward_module or ()),
        "modules_to_save": tuple(save_module or ()),
        "placement": BottleneckPlacement(placement) if placement else None,
        "reduction_factor": reduction_factor,
        "width": width,
        "activation": BottleneckActivation(activation) if activation else None,
        "scaling": scaling,
        "pooling": Pooling(pooling) if pooling else None,
        "last": last,
        "layers": tuple(layer or ()),
        "modules": tuple(module or ()),
    }
    dpo = Dpo(beta=beta, label_smoothing=label_smoothing)
    classification = ClassificationOptions(
        class_weights=ClassWeights(class_weights) if class_weights else None,
        label_weights=by_name("--label-weight", "LABEL=WEIGHT", label_weight or (), float),
    )
    with connect(context) as client:
        job = client.train(
            dataset=dataset,
            adapter=adapter,
            base=base,
            eval_dataset=eval_dataset,
            task=Task(task) if task else None,
            objective=Objective(objective) if objective else None,
            dpo=dpo if dpo != Dpo() else None,
            **method_settings(method, settings, lambda: _weight_format(client, base)),
            classification=classification if classification != ClassificationOptions() else None,
            contrastive=ContrastiveOptions(scale=scale) if scale is not None else None,
            optimization=Optimization(
                epochs=epochs,
                max_steps=max_steps,
                batch_rows=batch_rows,
                micro_batch_rows=micro_batch_rows,
                activation_checkpointing=activation_checkpointing,
                learning_rate=learning_rate,
                head_learning_rate=head_learning_rate,
                schedule=LearningRateSchedule(schedule) if schedule else None,
                warmup_fraction=warmup_fraction,
                weight_decay=weight_decay,
                max_gradient_norm=max_gradient_norm,
                seed=seed,
                checkpoint_interval_steps=checkpoint_interval_steps,
                kept_checkpoints=kept_checkpoints,
            ),
            data=DataOptions(
                holdout_fraction=holdout_fraction,
                max_row_tokens=max_row_tokens,
                long_rows=LongRows(long_rows) if long_rows else None,
                train_on_prompt=train_on_prompt,
            ),
            evaluation=EvaluationOptions(
                evaluations=evaluations,
                early_stopping_patience=patience,
                generation_rows=generation_rows,
                generation_max_tokens=generation_max_tokens,
                baseline=read_baseline(baseline) if baseline else None,
            ),
            promote_if=_promotion(promote, promote_metric, promote_minimum, promote_if_better),
            continue_from=continue_from,
            display_name=display_name,
            validate_only=dry_run,
            pause_after_estimate=pause_after_estimate,
            priority=priority,
        )
        follow(client, job, as_json=as_json, detach=detach)


def _weight_format(client: Client, base: str | None) -> WeightFormat:
    """Of the base that would be trained on."""
    return (client.bases.get(base) if base else client.server_info().base).weight_format


def _promotion(alias: str | None, metric: str, minimum: float | None, better: bool) -> PromoteIf | None:  # noqa: FBT001 - private
    if alias is None:
        if metric or minimum is not None or better:
            raise typer.BadParameter("names no alias; add --promote ALIAS", param_hint="--promote-...")
        return None
    return PromoteIf(alias=alias, metric=metric, minimum=minimum, better_than_current=better)


def read_baseline(path: Path) -> Baseline:
    """The baseline in a JSON file with `instruction` and `examples`; other keys are left alone.

    Raises:
        typer.BadParameter: the file does not hold one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        examples = [
            BaselineExample(_text(item["prompt"]), _text(item["completion"]))
            for item in found.get("examples", [])
        ]
        return Baseline(instruction=_text(found.get("instruction", "")), examples=tuple(examples))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise typer.BadParameter(
            f'{path} holds no {{"instruction": "...", "examples": [{{"prompt", "completion"}}]}}',
            param_hint="--baseline",
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
