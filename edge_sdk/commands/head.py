"""`edge head` and `edge eval intents`: classifiers of short texts. They are fitted in the toolchain, `quantize`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from ..config import Settings
from ..json_values import to_json
from .measure import stamped
from .options import cancel_on_interrupt, console, options, print_json, progress_bar

_SHARE = click.option(
    "--share",
    type=float,
    help="Of the texts to come, those without a label.  [default: as of EXAMPLES, or 0.1]",
)
_FEATURES = click.option(
    "--features",
    type=click.Choice(["vectors", "words", "both"]),
    default="vectors",
    show_default=True,
    help="What is read of a text: the encoder's vectors, words, or both.",
)


@click.command()
@click.argument("examples", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_FEATURES
@click.option("--carry", is_flag=True, help="Put the encoder into OUT, so that nothing else is needed.")
@click.option("--out-of-scope", default="oos", show_default=True, help="The label of texts that have none.")
@_SHARE
@options("encoder", "bundle")
def head_fit_command(
    settings: Settings,
    examples: Path,
    out: Path,
    features: str,
    carry: bool,
    out_of_scope: str,
    share: float | None,
    as_json: bool,
) -> None:
    """Fit a classifier to EXAMPLES (JSONL: text, label) in the new folder OUT.

    Ten examples a label are good, and some texts that have none of the labels (`--out-of-scope`) better still. With
    the encoder's vectors it understands words that it has not seen; with words alone it needs no encoder and shows
    the terms that decide. Pack it with `edge bundle build --head NAME=OUT`.
    """
    from ..loading import encoder_folder, load_encoder

    heads = import_module("quantize.students.heads")  # the toolchain stands above the runtime: loaded by name only
    if features == "words" and carry:
        raise click.UsageError("words need no encoder to --carry")
    rows = heads.read_labelled(examples, out_of_scope=out_of_scope)
    encoder = None if features == "words" else load_encoder(settings)
    with progress_bar("fitting") as bar:
        result = heads.fit_head(
            rows,
            out,
            encoder=encoder,
            words=features != "vectors",
            carry=encoder_folder(settings) if carry else None,
            share=share,
            progress=bar,
        )
    if as_json:
        print_json({"command": "edge head fit", "out": out, **result})
        return
    console().print(
        f"{out}: {result['labels']} labels from {result['examples']} examples, {result['bytes'] / 1e6:.1f} MB; "
        f"{result['cross_validated_accuracy']:.1%} of the examples are right under those of the other folds",
    )


@click.command()
@click.argument("head")
@click.argument("texts", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Say what spoke for the label rather than for the second best.")
@options("encoder", "bundle", "require_signature")
def head_classify_command(
    settings: Settings, head: str, texts: tuple[str, ...], explain: bool, as_json: bool
) -> None:
    """Say which label each of TEXTS has. HEAD is a folder made by `edge head fit`, or its name in the bundle."""
    from ..loading import load_head

    found = load_head(settings, head).classify_all(texts, explain=explain)
    if as_json:
        rows = [{"text": text, **to_json(each)} for text, each in zip(texts, found, strict=True)]
        print_json({"command": "edge head classify", "head": head, "texts": rows})
        return
    for text, each in zip(texts, found, strict=True):
        strange = "" if each.out_of_scope is None else f", out of scope {each.out_of_scope:.0%}"
        console().print(f"{each.label}  {each.probability:.0%}{strange}: {text}")
        for reason in each.reasons:
            console().print(f"  {reason.weight:+.2f}  {reason.part}")
        if explain:
            console().print(f"  rather than {each.second}; most alike:")
            for example in each.nearest:
                console().print(f"  {example.similarity:.2f}  {example.label}: {example.text}")


@click.command()
@click.argument("head")
@click.argument("labels", nargs=-1)
@click.option("--terms", default=8, show_default=True, type=click.IntRange(1, 1000), help="How many of each label.")
@options("encoder", "bundle", "require_signature")
def head_show_command(settings: Settings, head: str, labels: tuple[str, ...], terms: int, as_json: bool) -> None:
    """Show the labels of HEAD, or those named, and of a head over words the terms that speak most for each."""
    from ..loading import load_head

    loaded = load_head(settings, head)
    top = {label: loaded.top_terms(label, terms) for label in labels or loaded.labels}
    if as_json:
        print_json({"command": "edge head show", "head": head, "figures": dict(loaded.figures), "labels": top})
        return
    for label, reasons in top.items():
        console().print(f"{label}  {', '.join(reason.part for reason in reasons)}")


@click.command()
@click.option(
    "--data", required=True, envvar="EDGE_DATA", type=click.Path(path_type=Path), help="The set's file or folder."
)
@_FEATURES
@click.option("--shots", default=10, show_default=True, type=click.IntRange(2, 1000), help="Examples of a label.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1, 100), help="Draws of the examples.")
@click.option("--without-oos", is_flag=True, help="Fit to nothing that is out of scope.")
@_SHARE
@options("encoder")
def eval_intents_command(
    settings: Settings,
    data: Path,
    features: str,
    shots: int,
    seeds: int,
    without_oos: bool,
    share: float | None,
    as_json: bool,
) -> int:
    """Fit heads to a few examples of each label and judge them on texts with and without a label.

    The file is a JSON object with the lists train, test, oos_train and oos_test of [text, label], as CLINC150's.
    """
    from ..loading import encoder_folder, load_encoder

    evaluate = import_module("quantize.evaluate_intents")
    with cancel_on_interrupt() as cancel, progress_bar("judging") as bar:
        result = evaluate.evaluate_intents(
            data,
            encoder=None if features == "words" else load_encoder(settings),
            words=features != "vectors",
            encoder_folder=None if features == "words" else encoder_folder(settings),
            shots=shots,
            seeds=seeds,
            outside=not without_oos,
            share=share,
            progress=bar,
            cancel=cancel,
        )
    if not as_json:
        for name, value in result.items():
            if isinstance(value, dict) and "mean" in value:
                console().print(f"  {name:<22} {value['mean']:.3f}  ({value['least']:.3f} to {value['most']:.3f})")
    print_json(stamped("eval intents", result))
    return 130 if cancel.is_set() else 0
