"""`edge bundle`: build, inspect, verify and sign bundles. The toolchain, `quantize`, builds and signs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..bundle.cache import Inspection, inspect_bundle, verify_bundle
from ..bundle.manifest import Sampling
from ..bundle.signature import make_keys
from ..config import Settings
from ..errors import BundleError
from ..prompt import Reading
from .options import console, options, print_json, progress_bar

_FILE = click.Path(path_type=Path)
_KEYS = click.option(
    "--key", "keys", multiple=True, type=_FILE, help="A public key to trust, beside $EDGE_HOME/trusted_keys/*.pub."
)
_FILE_ROLES = ("calibration", "evaluation", "measurements", "template")


@click.command()
@click.argument("out", type=_FILE)
@click.option("--name", required=True, help="Of the bundle: small letters, digits, dots and dashes.")
@click.option("--version", required=True, help="Of the bundle, such as 1.0.0.")
@click.option("--decoder", help="A catalog name, a .gguf file or the folder of an ONNX decoder.")
@click.option("--encoder", "encoder_source", help="A catalog name or a folder.")
@click.option("--reader", type=_FILE, help="Folder of a model that finds answers in passages.")
@click.option("--head", "heads", multiple=True, metavar="NAME=PATH", help="A head: an .onnx file or a folder.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=FILE", help="A LoRA adapter as GGUF.")
@click.option("--calibration", multiple=True, type=_FILE, help="A file of $EDGE_HOME/calibrations.")
@click.option("--evaluation", multiple=True, type=_FILE, help="A small question set (JSONL: question, answers).")
@click.option("--measurements", multiple=True, type=_FILE, help="A file of measurements (JSON).")
@click.option("--template", multiple=True, type=_FILE, help="A chat template in place of the decoder's (Jinja).")
@click.option("--licence-text", "texts", multiple=True, type=_FILE, help="The text of a licence.")
@click.option(
    "--licence",
    "licences",
    multiple=True,
    metavar="[ROLE=]SPDX",
    help="Licence of a role's files, or of all for which nothing else says it. Models of the catalog have theirs.",
)
@click.option("--figures", type=_FILE, help="What was measured: a JSON object, kept in the manifest.")
@click.option(
    "--context", "tested", default=4096, show_default=True, help="Tokens that the decoder was tested with."
)
@click.option(
    "--prompt-tokens", type=click.IntRange(64), help="Prompt that the decoder reads best; catalog: known."
)
@click.option("--evidence-tokens", type=click.IntRange(0), help="Of chosen sentences; 0: none are chosen.")
@click.option("--extractive", is_flag=True, help="With a reader it chooses among the words that this finds.")
@click.option("--plain", is_flag=True, help="Numbered passages confuse the decoder; catalog: known.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0, 100), help="0 is greedy.")
@click.option("--date", help="YYYY-MM-DD; default: that of SOURCE_DATE_EPOCH, else none.")
@click.option("--sign", "private_key", type=_FILE, help="Private key to sign with; see `edge bundle keygen`.")
@click.option("--force", is_flag=True, help="Replace OUT.")
@options()
def bundle_build_command(
    settings: Settings,
    out: Path,
    name: str,
    version: str,
    decoder: str | None,
    encoder_source: str | None,
    reader: Path | None,
    heads: tuple[str, ...],
    adapters: tuple[str, ...],
    texts: tuple[Path, ...],
    licences: tuple[str, ...],
    figures: Path | None,
    tested: int,
    prompt_tokens: int | None,
    evidence_tokens: int | None,
    extractive: bool,
    plain: bool,
    temperature: float,
    date: str | None,
    private_key: Path | None,
    force: bool,
    as_json: bool,
    **files: tuple[Path, ...],
) -> None:
    """Pack models and what goes with them as OUT, a file that ends with .edge.

    The same files and options give the same bytes, everywhere and at any time. What was built is opened and
    checked once before it gets its name. Use it with `edge ask --bundle OUT`; `unzip` makes a folder of it, which
    can be used as well.
    """
    from ..hub.models import resolve

    pack = import_module("quantize.pack")  # the toolchain: loaded by name only
    given = _Licences(licences)
    parts, reading = [], Reading()
    for role, source in (("decoder", decoder), ("encoder", encoder_source)):
        if source is not None:
            model = resolve(source, settings)
            if model.role != role:
                raise BundleError(f"{model.name} has the role {model.role}, not {role}", hint="see `edge models`")
            path = model.path if model.format == "gguf" else model.directory
            known = model.spec.licence if model.spec else None
            parts.append(pack.Part(role, path, given.of(role, known), model.name))
            if role == "decoder":
                reading = model.reading
    if prompt_tokens is not None:
        reading = replace(reading, prompt_tokens=prompt_tokens)
    if evidence_tokens is not None:
        reading = replace(reading, evidence_tokens=evidence_tokens)
    if extractive:
        reading = replace(reading, extractive=True)
    if plain:
        reading = replace(reading, numbered=False)
    more = [(role, path) for role in _FILE_ROLES for path in files[role]]
    more += [("licence", path) for path in texts] + ([("reader", reader)] if reader is not None else [])
    more += [_named("head", each) for each in heads] + [_named("adapter", each) for each in adapters]
    parts += [pack.Part(role, path, given.of(role)) for role, path in more]
    recipe = pack.Recipe(
        name=name,
        version=version,
        parts=parts,
        created=pack.build_date(date, os.environ),
        figures=pack.read_figures(figures) if figures is not None else {},
        context=tested,
        reading=reading,
        sampling=Sampling(temperature=temperature),
    )
    with progress_bar("packing", unit="bytes") as bar:
        found = pack.build_bundle(recipe, out, private_key=private_key, overwrite=force, progress=bar)
    if as_json:
        print_json({"command": "edge bundle build", "path": out, **_summary(found.inspection)})
        return
    manifest = found.inspection.manifest
    console().print(
        f"{out}: {manifest.name} {manifest.version}, {len(manifest.files)} files, "
        f"{found.inspection.bytes / 1e6:,.1f} MB, {found.inspection.signed}, id {manifest.id}",
    )


@click.command()
@click.argument("path", metavar="BUNDLE", type=_FILE)
@_KEYS
@options("require_signature")
def bundle_inspect_command(settings: Settings, path: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """Show what BUNDLE holds and who has signed it. Nothing is unpacked; `edge bundle verify` reads the content."""
    found = inspect_bundle(path, settings.home, require_signature=settings.require_signature, keys=keys)
    if as_json:
        print_json({"command": "edge bundle inspect", "path": path, **_summary(found)})
    else:
        _show(found)


@click.command()
@click.argument("path", metavar="BUNDLE", type=_FILE)
@_KEYS
@options("require_signature")
def bundle_verify_command(settings: Settings, path: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """Read every byte of BUNDLE and check it: form, manifest, signature, sizes, hashes, structure of each file.

    For that an archive is unpacked under EDGE_HOME and removed again.
    """
    with progress_bar("verifying", unit="bytes") as bar:
        found = verify_bundle(
            path, settings.home, require_signature=settings.require_signature, keys=keys, progress=bar
        )
    inspection, out = found.inspection, console()
    if as_json:
        print_json(
            {"command": "edge bundle verify", **_summary(inspection), "path": path, "checked": found.checked}
        )
        return
    for name, what in found.checked.items():
        out.print(f"  {name:<44} sha256 and structure right: {what}")
    out.print(f"  {'signature':<44} {inspection.signed}")
    out.print(
        f"{path} is sound: {len(found.checked)} files, {inspection.bytes:,} bytes, id {inspection.manifest.id}",
    )


@click.command()
@click.argument("path", metavar="BUNDLE", type=_FILE)
@click.option("--key", "private_key", required=True, type=_FILE, help="The private key.")
@options()
def bundle_sign_command(settings: Settings, path: Path, private_key: Path, as_json: bool) -> None:
    """Sign BUNDLE in place, after every byte of it was checked. An older signature is replaced."""
    publish = import_module("quantize.publish")
    with progress_bar("signing", unit="bytes") as bar:
        found = publish.sign_bundle(path, private_key, progress=bar)
    if as_json:
        print_json({"command": "edge bundle sign", "path": path, **_summary(found.inspection)})
    else:
        console().print(f"{path} is signed by the key {found.inspection.signed.key}")


@click.command()
@click.argument("out", metavar="FILE", type=_FILE)
@options()
def bundle_keygen_command(settings: Settings, out: Path, as_json: bool) -> None:
    """Make an Ed25519 key pair: the private key in FILE, the public one in FILE.pub.

    Keep FILE secret. Whoever is to trust your bundles puts FILE.pub into $EDGE_HOME/trusted_keys.
    """
    public_key, key = make_keys(out)
    if as_json:
        print_json({"command": "edge bundle keygen", "private_key": out, "public_key": public_key, "key": key})
    else:
        console().print(f"{out}: the private key, for you alone\n{public_key}: the public key, {key}")


class _Licences:
    """What `--licence` says, by role; "" stands for every role."""

    def __init__(self, given: tuple[str, ...]) -> None:
        self._by_role: dict[str, str] = {}
        for each in given:
            role, equals, expression = each.rpartition("=")
            if self._by_role.setdefault(role if equals else "", expression) != expression:
                raise BundleError(f"--licence says two things of {role or 'all files'}", hint="give one of them")

    def of(self, role: str, known: str | None = None) -> str:
        found = self._by_role.get(role) or known or self._by_role.get("")
        if not found:
            raise BundleError(f"the licence of {role} is not known", hint=f"give --licence {role}=SPDX")
        return found


def _named(kind: str, text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise BundleError(f"--{kind} is {text!r}", hint=f"write --{kind} NAME=PATH")
    return f"{kind}:{name}", Path(path)


def _summary(found: Inspection) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "id": manifest.id,
        "name": manifest.name,
        "version": manifest.version,
        "licence": manifest.licence,
        "created": manifest.created,
        "form": found.form,
        "bytes": found.bytes,
        "signature": found.signed,
        "decoder": manifest.decoder,
        "encoder": manifest.encoder,
        "files": manifest.files,
        "figures": dict(manifest.figures),
    }


def _show(found: Inspection) -> None:
    manifest, out = found.manifest, console()
    made = f", made {manifest.created}" if manifest.created else ""
    out.print(f"{manifest.name} {manifest.version}, {manifest.licence}{made}, {found.bytes / 1e6:,.1f} MB")
    out.print(f"  id         {manifest.id}\n  signature  {found.signed}")
    if (decoder := manifest.decoder) is not None:
        kind = f"{decoder.architecture}, {decoder.quantization}, {decoder.format}"
        out.print(f"  decoder    {decoder.name}: {kind}, tested with {decoder.context:,} tokens")
    if (encoder := manifest.encoder) is not None:
        kind = f"{encoder.format}, {encoder.dimension} dimensions, {encoder.pooling} pooling"
        out.print(f"  encoder    {encoder.name}: {kind}")
    for name, value in sorted(manifest.figures.items()):
        text = f"{json.dumps(name)[1:-1]:<10} {json.dumps(value)}"  # escaped: strangers wrote it
        out.print(f"  {text if len(text) <= 90 else text[:90] + '…'}")
    for entry in manifest.files:
        out.print(
            f"  {entry.bytes:>14,}  {entry.sha256[:16]}  {entry.role:<14} {entry.licence:<12} {entry.path}",
        )
