"""`lab demo`: the four findings on real pairs, then a small translator, with and without its dropout."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.table import Table
from torch import Tensor

from . import checkpoint, faults, labels, matrix
from .config import TrainConfig
from .data import PAD_ID, Translation, cache_dir, collate, pair_loader, translation
from .diagnosis import diagnose
from .language_model import LanguageModel
from .parallel import find_device
from .report import Report
from .subject import Subject
from .trainer import History, fit
from .transformer import Transformer

console = Console(highlight=False, soft_wrap=False)
NOTEBOOKS = ("00_start_here", "01_padding_crash", "02_attending_to_pads", "03_stuck_in_eval", "04_attention_masks")
KEPT = "demo-translator"  # where, in the cache
ROWS = [21, 25, 24]  # short training pairs of unequal length


def say(text: str = "") -> None:
    console.print(text)


def run(quick: bool = False, out: Path = Path("figures"), device: str = "cpu") -> None:
    """The whole demo. Raises ValueError for a device that is not there, OSError for an `out` that cannot be written."""
    began = time.perf_counter()
    where = find_device(device)
    out.mkdir(parents=True, exist_ok=True)
    data = translation("jupyterlab-fr", vocab_size=1000, max_len=24)
    sizes = ", ".join(f"{len(rows)} {split}" for split, rows in data.splits.items())
    say(f"[bold]Real data[/]: JupyterLab's interface in English and French, human translations: {sizes} pairs.")
    show_batch(data)
    four_findings(data)
    draw_matrix(out)
    model, config = train_translator(data, 20 if quick else 600, where)
    if quick:
        say("Not kept: --quick trains too little for it to be worth a look.")
    else:
        say(f"Kept in {keep(data, model, config)}, where notebook 04 finds it and draws its heads.")
    lost_dropout(20 if quick else 300, where, out)
    say(Rule("Next"))
    say(f"The demo took {time.perf_counter() - began:.0f} s. Open the notebooks with [bold]make lab[/]:")
    for name in NOTEBOOKS:
        say(f"  notebooks/{name}.ipynb")


def show_batch(data: Translation) -> None:
    """The tokens of one padded batch: what the loss is asked for, and what the decoder is fed."""
    batch = data.batch("train", ROWS)
    table = Table(title="One padded batch", show_lines=True)
    table.add_column("source")
    table.add_column("labels (−100: the loss looks away)")
    table.add_column("decoder inputs")
    for source, label, fed in zip(batch["input_ids"], batch["labels"], batch["decoder_input_ids"], strict=True):
        table.add_row(*(styled(data.tokens(row)) for row in (source, label, fed)))
    say(table)


def styled(tokens: list[str]) -> str:
    """Tokens in a line, runs of the same one as `<pad> ×5`, special ones marked."""
    marks = {"<pad>": "dim", "-100": "bold red", "<s>": "cyan", "</s>": "cyan"}
    parts = []
    for token, run in groupby(tokens):
        count = len(list(run))
        text = escape(token) + (f" ×{count}" if count > 1 else "")
        parts.append(f"[{marks[token]}]{text}[/]" if token in marks else text)
    return " ".join(parts)


def four_findings(data: Translation) -> None:
    """Each finding of the review: its fault injected and seen, the check before and after."""
    torch.manual_seed(0)
    translator = Transformer(data.config())
    language_model = LanguageModel(data.config())
    pairs = partial(subject, translator, data)
    texts = partial(prompts, language_model, data)
    finding(1, "Decoder input still contains the ignored label of the padding", "padding-crash", crash, pairs)
    finding(
        2, "No target padding mask for decoder self-attention", "attends-to-pads", pads_leak, partial(pairs, "left")
    )
    finding(
        3, "Transformer.evaluate()/generate() never restore training mode", "stuck-in-eval-transformer", stuck, pairs
    )
    finding(4, "LanguageModel.generate() never restores training mode", "stuck-in-eval-language-model", stuck, texts)


def subject(model: Transformer, data: Translation, side: str = "right") -> Subject:
    """The translator with real pairs, padded at that side, and all that the four checks ask for."""
    batches = [data.batch("validation", range(16))]
    return Subject(
        model,
        collate=partial(collate, side=side),
        examples=data.examples("train", ROWS),
        evaluate=lambda model: model.evaluate(batches),
        generate=lambda model, batch: model.generate(batch["input_ids"], 8),
        name=f"the translator, {side}-padded pairs",
    )


def prompts(model: LanguageModel, data: Translation) -> Subject:
    """The language model with the English sides as left-padded prompts."""
    rows = [source for source, _ in data.examples("train", ROWS)]
    return Subject(
        model,
        batch={"input_ids": labels.pad(rows, PAD_ID, "left")},
        generate=lambda model, batch: model.generate(batch["input_ids"], 8),
        name="the language model, left-padded prompts",
    )


def finding(number: int, title: str, name: str, see: Callable[[Subject], str], make: Callable[[], Subject]) -> None:
    """One finding: broken, seen, reported; repaired, reported again."""
    fault = faults.get(name)
    say(Rule(f"Finding {number}: {title}"))
    with fault.inject():
        broken = make()
        say(f"[bold]Injected[/] {fault.id}: {escape(fault.summary)}.")
        say(f"[bold]Seen[/]     {escape(see(broken))}")
        show_report("Broken", diagnose(broken, only=[fault.caught_by]))
    show_report("Repaired", diagnose(make(), only=[fault.caught_by]))
    say(f"         the repair: python -m lab faults show {fault.id}")


def show_report(state: str, report: Report) -> None:
    said = [finding.text() for finding in report.findings]
    text = "\n".join(said) if said else f"nothing found by {', '.join(report.passed)} on {report.subject}"
    mark = "[red]✘[/]" if said else "[green]✔[/]"
    say(f"{mark} [bold]{state}[/]")
    console.print(Padding(escape(text), (0, 0, 0, 9)))


def crash(subject: Subject) -> str:
    try:
        subject.model(**subject.batch)
    except IndexError as error:
        return f"one forward pass: IndexError: {error}"
    return "no crash"


def pads_leak(subject: Subject) -> str:
    """The loss of the shortest pair alone, and as a row of its batch padded at the right and at the left."""
    model, examples = subject.model.eval(), subject.examples
    shortest = min(examples, key=lambda pair: len(pair[1]))
    row = [examples.index(shortest)]
    batches = (collate(examples, side) for side in ("right", "left"))
    right, left = (model(**{key: ids[row] for key, ids in batch.items()}).loss.item() for batch in batches)
    alone = model(**collate([shortest])).loss.item()
    model.train()
    return (
        f"the loss of the shortest pair is {alone:.6f} alone, {right:.6f} with pads at the right (the causal mask "
        f"hides them) and {left:.6f} with pads at the left"
    )


def stuck(subject: Subject) -> str:
    """Whether two passes in train mode differ, before and after generate()."""
    model, batch = subject.model.train(), subject.batch

    @torch.no_grad()
    def difference() -> float:
        first, second = (subject.logits(model, batch) for _ in range(2))
        return float((first - second).abs().max())

    before = difference()
    subject.generate(model, batch)
    after = difference()
    model.train()
    return f"two training passes on one batch differ by {before:.3g} before generate(), and by {after:.3g} after it"


def draw_matrix(out: Path) -> None:
    from . import draw

    say(Rule("The review's faults and their half-repairs against their checks"))
    rows = matrix.run(matrix.REVIEW)
    table = Table("injected", "caught by its check", "also found, and why")
    for row in rows:
        own = f"✔ {row.caught_by}" if row.caught_by in row.found else f"✘ missed by {row.caught_by}"
        also = [f"{name}: {row.also.get(name, 'UNEXPLAINED')}" for name in sorted(row.found - {row.caught_by})]
        table.add_row(row.name, own if row.caught_by else "", "; ".join(also) or "nothing")
    say(table)
    path = out / "review_matrix.svg"
    draw.save(draw.fault_matrix(rows, matrix.columns(matrix.REVIEW)), path)
    say(f"drawn in {path}; [bold]lab faults[/] lists all {len(faults.all())} faults")


@contextmanager
def progress(name: str, steps: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """A progress bar with loss, tokens/s and validation loss; one line an evaluation where there is no terminal."""
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=steps, text="")
        smooth, validation = 0.0, ""

        def on_step(record: dict[str, float]) -> None:
            nonlocal smooth, validation
            speed = record["tokens"] / record["seconds"]
            smooth = speed if not smooth else 0.95 * smooth + 0.05 * speed
            text = f"step {record['step']}/{steps}  loss {record['loss']:.3f}  {smooth:,.0f} tokens/s"
            if "validation" in record:
                validation = f"  validation {record['validation']:.3f}"
                if not console.is_terminal:
                    say(f"{name}: {text}{validation}")
            bar.update(task, advance=1, text=text + validation)

        yield on_step


def train_translator(data: Translation, steps: int, device: torch.device) -> tuple[Transformer, TrainConfig]:
    """English to French in about two minutes, and what came of it."""
    say(Rule("A small English→French translator"))
    torch.manual_seed(0)
    model = Transformer(data.config(d_model=192, d_ff=768)).to(device)
    config = TrainConfig(steps, learning_rate=1e-3, warmup_steps=max(1, steps // 5), eval_every=max(1, steps // 10))
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps.")
    with progress("translator", steps) as on_step:
        loader = data.loader("train", max_tokens=1024)
        fit(model, loader, config, validation=data.loader("validation"), on_step=on_step)
    show_translations(data, model)
    return model, config


def keep(data: Translation, model: Transformer, config: TrainConfig) -> Path:
    """Leave the translator as a checkpoint where `kept` finds it. Raises OSError where it cannot be written."""
    run = cache_dir() / KEPT
    shutil.rmtree(run, ignore_errors=True)  # the same step of an earlier demo
    about = checkpoint.describe(model, config, {"place": data.name, "name": data.name, "kind": "pairs"})
    weights = checkpoint.get_weights(model)
    step = {"progress": {"step": config.steps}}
    return checkpoint.save(run, about | step, weights, {}, tokenizer=data.tokenizer.to_str())


def kept(data: Translation) -> Transformer | None:
    """The translator that `lab demo` left, in eval mode; None where there is none that speaks this tokenizer."""
    try:
        found = checkpoint.find(cache_dir() / KEPT)
        return found.build() if found.tokenizer().get_vocab() == data.tokenizer.get_vocab() else None
    except ValueError:
        return None


def show_translations(data: Translation, model: Transformer) -> None:
    """Five held-out pairs, and the scores of the whole test split."""
    from sacrebleu.metrics import CHRF

    sources, references, outputs = [], [], []
    for batch in data.loader("test"):
        device = next(model.parameters()).device
        ids = model.generate(batch["input_ids"].to(device), 48)
        outputs += map(data.text, ids)
        sources += map(data.text, batch["input_ids"])
        references += map(data.text, batch["labels"])
    table = Table(title="Held out", show_lines=True)
    for column in ("English", "the model", "the human"):
        table.add_column(column)
    for i in spread(len(sources)):
        table.add_row(*map(escape, (sources[i], outputs[i], references[i])))
    say(table)
    chrf, exact = CHRF().corpus_score(outputs, [references]), sum(map(str.__eq__, outputs, references))
    result = model.evaluate(data.loader("test"))
    say(
        f"{chrf} and {exact} of {len(outputs)} exactly right on the test split; {result.loss:.3f} nats, perplexity "
        f"{result.perplexity:.1f} per token. It is small and saw {len(data.splits['train'])} pairs."
    )


def spread(count: int, wanted: int = 5) -> list[int]:
    """Some indices, evenly over 0..count-1."""
    return [count * (2 * i + 1) // (2 * wanted) for i in range(wanted)]


def lost_dropout(steps: int, device: torch.device, out: Path) -> None:
    """One training twice, healthy and with stuck-in-eval injected, where dropout matters: on few pairs, for long."""
    from . import draw

    say(Rule("What lost dropout costs"))
    data = translation("jupyterlab-fr", vocab_size=800, max_len=16)
    train = pair_loader(data.splits["train"].select(range(300)), collate, 512)
    batch = {key: value.to(device) for key, value in data.batch("train", range(4)).items()}
    validation = data.loader("validation")
    config = TrainConfig(steps, learning_rate=5e-3, warmup_steps=max(1, steps // 15), eval_every=max(1, steps // 6))
    say("The same training twice on 300 pairs: same seed, same batches; once with stuck-in-eval-transformer injected.")
    histories = {}
    for name in ("healthy", "stuck in eval"):
        with nullcontext() if name == "healthy" else faults.get("stuck-in-eval-transformer").inject():
            torch.manual_seed(0)
            model = Transformer(data.config(d_model=64, num_layers=1, d_ff=256, dropout=0.4)).to(device)
            with progress(name, steps) as on_step:
                histories[name] = fit(model, train, config, validation=validation, on_step=on_step)
            say(f"{name}: {two_passes(model, batch)}")
    say(cost_table(histories))
    curves = {
        f"{name}, {split}": ([row["step"] for row in rows], [row["loss"] for row in rows])
        for name, history in histories.items()
        for split, rows in (("training", recent(history)), ("validation", history.evaluations))
    }
    draw.save(
        draw.curves(curves, xlabel="step", ylabel="nats per token", title="Lost dropout"), out / "lost_dropout.svg"
    )
    say(f"drawn in {out / 'lost_dropout.svg'}")


def recent(history: History) -> list[dict[str, float]]:
    """At each evaluation's step, the mean training loss since the one before."""
    rows, last = [], 0
    for evaluation in history.evaluations:
        step = evaluation["step"]
        losses = [row["loss"] for row in history.steps[last:step]]
        rows.append({"step": step, "loss": sum(losses) / len(losses)})
        last = step
    return rows


def cost_table(histories: dict[str, History]) -> Table:
    healthy, stuck = histories.values()
    table = Table()
    for column in ("step", *(f"{split}, {name}" for split in ("training", "validation") for name in histories), "cost"):
        table.add_column(column, justify="right")
    rows = zip(recent(healthy), recent(stuck), healthy.evaluations, stuck.evaluations, strict=True)
    for losses in rows:
        cost = losses[3]["loss"] - losses[2]["loss"]
        table.add_row(str(losses[0]["step"]), *(f"{row['loss']:.3f}" for row in losses), f"{cost:+.3f}")
    return table


def two_passes(model: Transformer, batch: dict[str, Tensor]) -> str:
    """What two passes say of the mode that training left the model in."""
    first, second = (model(**batch).loss.item() for _ in range(2))
    same = "identical: its dropout is gone" if first == second else "different: its dropout is awake"
    return f"after training, two passes of one batch give losses {first:.6f} and {second:.6f}, {same}."
