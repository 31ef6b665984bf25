"""The `edge` command: a table of commands, each loaded only when it runs, and one place for errors.

Importing this module loads nothing beyond the standard library's start-up set, so that `edge --help` is as
fast as Python itself. Exit codes: 0 done, 1 a failure said in one line, 2 wrong usage, 130 interrupted.
"""

import errno
import os
import sys

# name: (module, one-line help). A name with a space is a sub-command.
COMMANDS = {
    "pull": ("commands.models", "fetch a model, check its hash and keep it"),
    "models": ("commands.models", "list the models of the catalog and what is present"),
    "add": ("commands.documents", "add files, folders or py:module documentation to the store"),
    "list": ("commands.documents", "list the documents in the store"),
    "label": ("commands.documents", "say of a document whether its text may leave the device"),
    "remove": ("commands.documents", "remove documents from the store"),
    "search": ("commands.documents", "find passages"),
    "ask": ("commands.answers", "answer one question from the documents, with citations"),
    "chat": ("commands.answers", "ask question after question"),
    "serve": ("commands.serve", "answer programs over HTTP, as OpenAI's interface does"),
    "calibrate": ("commands.route", "learn from labelled questions how likely local answers are to be right"),
    "route report": ("commands.route", "show what each calibration is worth, and its certificate"),
    "route explain": ("commands.route", "say why a question went where it did"),
    "learned list": ("commands.learned", "list what was learned from remote answers"),
    "learned accept": ("commands.learned", "serve learned answers from now on"),
    "learned reject": ("commands.learned", "never serve or learn them again"),
    "learned drop": ("commands.learned", "forget learned answers"),
    "learned export": ("commands.learned", "write the accepted ones as a distillation set"),
    "reindex": ("commands.documents", "embed every passage again after a change of encoder"),
    "cache show": ("commands.cache", "show what evaluated prompts take that are kept to answer sooner"),
    "cache clear": ("commands.cache", "delete them"),
    "doctor": ("commands.models", "say what this machine has and what is wrong with the set-up"),
    "spend": ("commands.fallback", "show what remote calls have cost, and the last ones"),
    "outbox list": ("commands.fallback", "list the questions that wait for the network"),
    "outbox send": ("commands.fallback", "send them, each at most once, if the policy still allows it"),
    "outbox drop": ("commands.fallback", "delete questions from the outbox"),
    "privacy preview": ("commands.privacy", "print the request that would carry a question to the remote"),
    "privacy test": ("commands.privacy", "plant made-up secrets and look for them in what would leave"),
    "bundle build": ("commands.bundle", "pack models and what goes with them as one file"),
    "bundle inspect": ("commands.bundle", "show what a bundle holds and who has signed it"),
    "bundle verify": ("commands.bundle", "read every byte of a bundle and check it"),
    "bundle sign": ("commands.bundle", "sign a bundle in place"),
    "bundle keygen": ("commands.bundle", "make a key pair for signing"),
    "head fit": ("commands.head", "make a classifier of short texts from a few examples of each label"),
    "head classify": ("commands.head", "say which label a text has, how sure that is, and why"),
    "head show": ("commands.head", "show what a classifier knows, and the terms that speak for each label"),
    "distill": ("commands.distill", "make small models from documents and a teacher, and a bundle of them"),
    "distill static": ("commands.distill", "make an encoder without a transformer, for the smallest devices"),
    "export": ("commands.export", "write a Hugging Face folder as an ONNX model that agrees with it"),
    "convert": ("commands.convert", "a Hugging Face folder to a GGUF file, or back"),
    "prune-vocabulary": ("commands.convert", "write a GGUF model with only the tokens that your texts need"),
    "quantize": ("commands.quantize", "write a smaller file of the same model"),
    "tune": ("commands.tune", "find the form of a model that is fastest on this device and keeps its behaviour"),
    "bench engine": ("commands.bench", "measure prefill and decode beside a bare loop and llama_cpp.Llama"),
    "bench search": ("commands.bench", "measure vector search beside numpy, faiss, usearch and sqlite-vec"),
    "bench ingest": ("commands.bench", "measure the encoder and whole documents beside onnxruntime"),
    "bench retrieve": ("commands.bench", "measure Edge.search in a large store, first and warm, with its parts"),
    "bench ask": ("commands.bench", "measure questions end to end, to the first word and the last, beside peers"),
    "bench start": ("commands.bench", "measure a cold start: from a new process to the first word of an answer"),
    "bench compare": ("commands.bench", "compare two results of one benchmark, with their spreads"),
    "eval retrieval": ("commands.measure", "rank a judged collection by BM25, vectors, plain fusion and ours"),
    "eval route": ("commands.measure", "measure probabilities, promises and routing on a question set"),
    "eval divergence": (
        "commands.eval_models",
        "measure how far a GGUF model is from another, as after quantization",
    ),
    "eval intents": ("commands.head", "judge classifiers from a few examples, also on texts that have no label"),
    "eval answers": ("commands.measure", "measure retrieval and answers on a question set"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Never raises for a failure that a user can cause."""
    _prepare_streams()
    try:
        code = _dispatch(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say("\nedge: interrupted")
        return 130
    except OSError as error:
        if not _is_of_output(error):
            raise
        _discard_output()
        if isinstance(error, BrokenPipeError):  # the reader went away, as with `edge list | head`: nothing is wrong
            return 0
        _say(f"edge: the output cannot be written: {error.strerror}")
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if arguments[0] == "--version":
        from . import __version__

        sys.stdout.write(f"edge {__version__}\n")
        return 0
    name = " ".join(arguments[:2])
    if name not in COMMANDS:
        name = arguments[0]
    if name not in COMMANDS:
        return _unknown(arguments)
    return _run(name, arguments[len(name.split()) :])


def _run(name: str, arguments: list[str]) -> int:
    from importlib import import_module

    import click

    from .errors import EdgeError

    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        module = import_module(f"{__package__}.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name.replace(" ", "_").replace("-", "_") + "_command")
        # Not `command.main`: that ends the process itself, with 1, when the reader of a pipe goes away.
        with command.make_context(f"edge {name}", arguments) as context:
            result = command.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except (click.Abort, EOFError) as error:
        raise KeyboardInterrupt from error
    except EdgeError as error:
        if verbose:
            raise
        _say(f"edge: {error}")
        return 1
    except Exception as error:
        if verbose or _is_of_output(error):
            raise
        detail = " ".join(str(error).split())
        _say(f"edge: unexpected {type(error).__name__}: {detail}; run again with -v and report it")
        return 1


def _prepare_streams() -> None:
    """Standard streams that are there, and that take any text: what an encoding lacks is spelled out.

    One that the caller has closed (`<&-`) is None, and the next file that is opened would get its number, which
    native code writes messages to.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _is_of_output(error: Exception) -> bool:
    """Whether nobody takes what a command writes, or there is no space for it."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno in full)


def _discard_output() -> None:
    """Python writes what is still buffered when it ends, and would fail again; another's stream is left alone."""
    own = sys.__stdout__
    if own is not None and sys.stdout is own:
        os.dup2(os.open(os.devnull, os.O_WRONLY), own.fileno())


def _say(text: str) -> None:
    from contextlib import suppress

    with suppress(OSError):  # where nobody listens, the exit code says it as well
        sys.stderr.write(f"{text}\n")


def _unknown(arguments: list[str]) -> int:
    from difflib import get_close_matches

    group = [name for name in COMMANDS if name.startswith(arguments[0] + " ")]
    close = group or get_close_matches(arguments[0], COMMANDS, 3, 0.5)
    hint = f"try {', '.join(f'`edge {name}`' for name in close)}" if close else "see `edge --help`"
    _say(f"edge: no command {' '.join(arguments[:2])!r}; {hint}")
    return 2


def _help() -> str:
    lines = [f"  {name:<18}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: edge COMMAND [OPTIONS]",
            "",
            "An offline assistant over your own documents: small local models, answers with citations.",
            "",
            "Commands:",
            *lines,
            "",
            "`edge COMMAND --help` says more. Every command takes --json and -v. Settings: flags, then EDGE_HOME,",
            "EDGE_STORE, EDGE_MODEL, EDGE_OFFLINE=1 and the like, then $EDGE_HOME/config.toml.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
