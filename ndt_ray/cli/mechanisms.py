"""Commands of mechanistic analyses: their files; activations of other models, captured and compared."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ndt_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, assignment, opened
from ndt_ray.errors import SpecError


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (mechanisms, capture, transfer):
        ndt.command()(command)


def mechanisms(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")],
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[str, typer.Option("--out", "-o", help="The folder.")] = "mechanisms",
    archive: Annotated[str | None, typer.Option("--archive", help="Put the files into this zip, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write figures, matrices and findings of the analyses sae, sae_transfer and grokking; print the files."""
    from ndt_ray.figures.bundle import archive as pack
    from ndt_ray.figures.bundle import write_mechanisms

    written = write_mechanisms(opened(store), sweep, out)
    if not written:
        print(f"! nothing yet: ndt analyze {sweep} sae sae_transfer grokking grokking_timeline", file=sys.stderr)
    if archive is not None and written:
        written.append(pack(written, archive))
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


def capture(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Names on the Hugging Face hub, or local folders.")
    ],
    texts: Annotated[
        list[str], typer.Option("--texts", metavar="[TASK=]FILE", help="Texts to show, one a line; repeatable.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder.")] = "activations",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Numbers, as 4,8,12; 0 is the embedding. All, by default.")
    ] = None,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens of a text at most.")] = 128,
    as_json: JsonOption = False,
) -> None:
    """Capture activations of Hugging Face models: one file a model, layer and task, its metadata beside it."""
    from ndt_ray.analysis.mechanisms.sae import huggingface

    wanted = None if layers is None else _numbers(layers)
    tasks = [("", one) if not equals else (name, rest) for one in texts for name, equals, rest in [one.partition("=")]]
    read = [(task, file, huggingface.read_texts(Path(file))) for task, file in tasks]
    if len({task for task, _, _ in read}) < len(read):
        raise SpecError("--texts: give each file a task of its own, TASK=FILE")
    written: list[Path] = []
    for name in models:
        model, tokenizer = huggingface.load_model(name)
        label = Path(name).name if Path(name).is_dir() else name
        for task, file, lines in read:
            note = {"source": name, "file": Path(file).name}
            options: dict[str, Any] = {"layers": wanted, "task": task, "length": length, "metadata": note}
            written += huggingface.capture(Path(out), label, model, tokenizer, lines, **options)
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


def _numbers(text: str) -> list[int]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or not all(part.isdigit() for part in found):
        raise SpecError(f"--layers {text}: give numbers with commas, as 4,8,12")
    return [int(part) for part in found]


def transfer(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Files that `ndt capture` wrote.")],
    store: StoreOption = DEFAULT_STORE,
    sweep: Annotated[str, typer.Option(help="Name of the sweep whose tables the rows go to.")] = "activations",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of sae_transfer, as layers=4,8; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train sparse autoencoders on captured activations, and compare layers, models and tasks."""
    import inspect

    from ndt_ray.analysis.mechanisms.sae.from_files import transfer_files
    from ndt_ray.errors import did_you_mean

    given = dict(assignment(a) for a in assignments or ())
    known = [p.name for p in inspect.signature(transfer_files).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in given:
        if name not in known:
            raise SpecError(f"--set {name}: no such parameter{did_you_mean(name, known)}")
    found = transfer_files(folder, opened(store, create=True), sweep, **given)
    for note in found.notes:
        print(f"! {note}", file=sys.stderr)
    if as_json:
        print(json.dumps({"sweep": sweep, "rows": dict(found.rows), "skipped": found.skipped}))
    else:
        told = ", ".join(f"{count} rows of {name}" for name, count in found.rows.items())
        print(
            f"{told} in sweep {sweep}{' (there before)' if found.skipped else ''}; `ndt mechanisms {sweep}` draws them"
        )
