"""The command line. What needs torch is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .cli_claims import claims

app = typer.Typer(
    help="Reproduce, catch, explain and repair what makes a transformer train badly.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
faults_app = typer.Typer(
    help="The faults: broken twins of healthy functions. Without a command, the list.", invoke_without_command=True
)
app.add_typer(faults_app, name="faults")
app.command()(claims)

Out = Annotated[Path, typer.Option("--out", help="Where the figures go.")]


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A few training steps only.")] = False,
    out: Out = Path("figures"),
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Watch the review's four findings happen on real data, be caught, and be repaired; then train a translator."""
    from .demo import run

    run(quick=quick, out=out, device=device)


@faults_app.callback()
def list_faults(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    from . import faults

    for fault in faults.all():
        kind = "half-repair" if fault.half_repair else "fault"
        print(f"{fault.id:30} {kind:12} {fault.summary}")
        print(f"{'':30} {'':12} caught by {fault.caught_by}; taught in {fault.lesson}")


@faults_app.command("show")
def show_fault(name: Annotated[str, typer.Argument(help="A name from `lab faults`.")]) -> None:
    """The difference between the broken code and the healthy code."""
    from . import faults

    fault = faults.get(name)
    print(f"{fault.id}: {fault.summary}\n\n{fault.diff()}")


@app.command()
def figures(
    out: Out = Path("figures"),
    recompute: Annotated[bool, typer.Option("--recompute", help="Measure what is on them again, first.")] = False,
    theme: Annotated[str, typer.Option(help="light, dark.")] = "light",
) -> None:
    """Draw every committed picture again from the CSVs in figures/data, byte for byte."""
    from .figures import write_all

    for path in write_all(out, recompute, theme):
        print(path)


@app.command()
def diagnose(
    target: Annotated[
        str | None, typer.Argument(help="path/to/file.py:function or package.module:function; the function is called.")
    ] = None,
    format: Annotated[str, typer.Option(help="text, html, json, sarif.")] = "text",
    only: Annotated[list[str] | None, typer.Option(help="Checks or families, by comma; may be repeated.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Checks or families, by comma; may be repeated.")] = None,
    fail_on: Annotated[str, typer.Option(help="Exit with 1 from this severity upwards: P0 to P3, or none.")] = "P2",
    explain: Annotated[str | None, typer.Option(metavar="CHECK", help="What a check looks at, and stop.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Every check in a line, and stop.")] = False,
    baseline: Annotated[Path | None, typer.Option(help="A file of findings that are known, and accepted.")] = None,
    write_baseline: Annotated[
        bool, typer.Option("--write-baseline", help="Write what is found to --baseline.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report there in place of printing it.")] = None,
    seed: Annotated[int, typer.Option(help="Of the batches that the checks make.")] = 0,
) -> None:
    """Diagnose your own model: what TARGET returns, a model, a pair (model, batch) or a lab.Subject.

    This imports the file or module and calls the function: it runs that code. Exit status: 0 where nothing of
    --fail-on or worse was found, 1 where something was, 2 where it was asked wrongly or the function raises.
    """
    from . import pointing

    if list_ or explain:
        print(pointing.listing() if list_ else pointing.explanation(explain))
        return
    if target is None:
        raise ValueError(f"there is nothing to diagnose: name a function as {pointing.FORM}, or give --list.")
    how = {"format": format, "only": only or (), "skip": skip or (), "fail_on": fail_on, "out": out, "seed": seed}
    status = pointing.diagnose_target(target, **how, baseline=baseline, write_baseline=write_baseline)
    raise typer.Exit(status)


Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Where corpora lie; else $LAB_DATA, ../shared/data, the hub.")
]
Run = Annotated[Path, typer.Option("--checkpoint", help="The --out of a training, or one of its steps.")]
Best = Annotated[bool, typer.Option("--last", help="The last checkpoint in place of the best.")]


@app.command()
def prepare(
    corpus: Annotated[
        str, typer.Argument(help="wikitext-2, wikitext-103, wiki2015, python-docs, a text file, owner/name on the hub.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write; by default in the cache.")] = None,
    tokenizer: Annotated[str, typer.Option(help="bpe, trained on the corpus; gpt2; or a tokenizer.json.")] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Of a bpe tokenizer.")] = 8192,
    column: Annotated[str, typer.Option(help="The text column of a corpus of the hub.")] = "text",
    data_dir: DataDir = None,
) -> None:
    """Tokenise a corpus once, into files that training reads without loading them."""
    from .data import prepare

    data = prepare(corpus, out, tokenizer=tokenizer, vocab_size=vocab_size, column=column, data_dir=data_dir)
    for split, counts in data.manifest["splits"].items():
        print(
            f"{split:10} {counts['tokens']:>12,} tokens of {counts['documents']:,} documents, {counts['bytes']:,} bytes"
        )
    print(data.folder)


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="The folder of the run.")],
    data: Annotated[str | None, typer.Option("--data", help="A prepared folder, or the name of a corpus.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="See `lab presets`; by default the one for lessons.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of a micro-batch over all devices.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Micro-batches a step.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16.")] = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile the model.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and dropout.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="field=value of the model's or the training's config.")
    ] = None,
    device: Device = "cpu",
    parallel: Annotated[str, typer.Option(help="ddp or fsdp, where torchrun started several processes.")] = "ddp",
    tensorboard: Annotated[Path | None, typer.Option(help="Also write TensorBoard's files there.")] = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Diagnose model and first batch before step 1.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Train a preset on a corpus: python -m lab train --data python-docs --out runs/first"""
    from .preflight import Stopped
    from .run import train

    named = {
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_tokens": batch_tokens,
        "accumulate": accumulate,
        "precision": precision,
        "compile": compile,
        "seed": seed,
    }
    changes = [f"{name}={value}" for name, value in named.items() if value is not None] + (set_ or [])
    where = {"device": device, "parallel": parallel, "data_dir": data_dir, "tensorboard": tensorboard}
    try:
        train(data, out, preset=preset, changes=changes, resume=resume, preflight=preflight, **where)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        raise typer.Exit(1) from stop


@app.command()
def presets() -> None:
    """The named sizes and recipes, and what to expect of each."""
    from inspect import cleandoc

    from . import presets

    for name in presets.names():
        print(f"{name}\n    {cleandoc(presets.get(name).doc)}\n".replace("\n", "\n    ").rstrip() + "\n")


@app.command()
def size(
    target: Annotated[
        str | None, typer.Argument(help="path/to/file.py:function that returns a model; the function is called.")
    ] = None,
    preset: Annotated[list[str] | None, typer.Option("--preset", help="See `lab presets`. May be repeated.")] = None,
    tokens: Annotated[
        float | None, typer.Option(help="To train on, such as 1e9; by default those of the preset's recipe.")
    ] = None,
    distinct: Annotated[float | None, typer.Option(help="How many of the tokens differ, where they repeat.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of the batch whose activations are counted.")] = 1,
    context: Annotated[int | None, typer.Option(help="Tokens of a row; by default the longest.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16: autocast over fp32 weights.")] = "fp32",
    json_: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Parameters, FLOPs and memory of presets or of your own model, and the loss that published laws expect."""
    from . import size_table

    entries = size_table.entries(target, preset or (), tokens, distinct, rows, context, precision)
    print(size_table.as_json(entries) if json_ else size_table.text(entries))


@app.command(name="eval")
def evaluate(
    checkpoint: Run,
    data: Annotated[str | None, typer.Option("--data", help="Other data than the checkpoint's own.")] = None,
    split: Annotated[str, typer.Option(help="train, validation, test.")] = "validation",
    last: Best = False,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    """The loss of a checkpoint: perplexity per token, per word where words are known, bits per byte. JSON."""
    import json

    from .run import evaluate

    which = "last" if last else "best"
    print(
        json.dumps(
            evaluate(checkpoint, place=data, split=split, which=which, device=device, data_dir=data_dir), indent=2
        )
    )


@app.command()
def generate(
    checkpoint: Run,
    prompt: Annotated[str, typer.Option(help="How the text begins, or the sentence to translate.")] = "",
    max_new_tokens: Annotated[int | None, typer.Option(help="By default what the context holds.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest that hold this probability.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    last: Best = False,
    device: Device = "cpu",
) -> None:
    """Continue a text, or translate it, from a checkpoint alone."""
    from .run import generate

    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    which = "last" if last else "best"
    pieces = generate(checkpoint, prompt, which=which, device=device, max_new_tokens=max_new_tokens, seed=seed, **how)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="rates, ladder, prediction, causes, sizes.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="Runs by name or pattern (d64-*); may be repeated.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Every run and how far it is, and stop.")] = False,
    collect: Annotated[
        Path | None, typer.Option(help="Write NAME.csv and NAME_curves.csv of the finished runs there, and stop.")
    ] = None,
    register: Annotated[
        bool, typer.Option("--register", help="prediction: write what the ladder's fit expects, and stop.")
    ] = False,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Do the runs of an experiment, one after the other; what is finished is skipped, what was killed goes on."""
    from . import experiments

    if collect is not None:
        for path in experiments.collect(name, out, collect):
            print(path)
        return
    plans = experiments.chosen(experiments.plans_of(name, device), only or ())
    if list_:
        for plan in plans:
            print(experiments.status(out / name / plan.name, plan))
        return
    if register and name != "prediction":
        raise ValueError(f"--register is of the experiment prediction, not of {name}; leave it out.")
    if register:
        print(experiments.register(plans))
        return
    if name == "prediction":
        experiments.require_registered(plans)
    experiments.run_all(name, plans, out, device=device, data_dir=data_dir)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="training, or diagnose: the battery of checks on a GPT-2.")] = "training",
    preset: Annotated[
        list[str] | None, typer.Option("--preset", help="16m, 50m, 117m; for diagnose 3m, 124m. May be repeated.")
    ] = None,
    nanogpt: Annotated[Path | None, typer.Option(help="A checkout of nanoGPT to measure beside.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
    repeats: Annotated[int, typer.Option(help="Rounds; each contender takes one step a round.")] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the training steps.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write everything measured there.")] = None,
    device: Device = "cpu",
) -> None:
    """Speed and memory against Hugging Face's GPT-2 and nanoGPT, alternated in one run; or those of the checks."""
    if what == "diagnose":
        from . import bench_diagnose

        bench_diagnose.run(tuple(preset or bench_diagnose.SIZES), json_path, threads)
        return
    if what != "training":
        raise ValueError(f"there is no bench {what!r}; it is training or diagnose.")
    from .bench import run

    run(
        presets=tuple(preset or ("16m",)),
        nanogpt=nanogpt,
        precision=precision,
        repeats=repeats,
        threads=threads,
        json_path=json_path,
        device=device,
    )


def main() -> None:
    """Run the command line; an error that names what to do is shown alone (LAB_TRACEBACK=1 adds its traceback)."""
    try:
        app()
    except (ValueError, OSError, ImportError, ArithmeticError, MemoryError) as error:
        if os.environ.get("LAB_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
