"""Runs in the environment of `environment`: exports one model through optimum, and runs the original in torch.

Called as a script with the path of a JSON request, for it can import nothing of this package. It opens no socket
and runs no code that a model brings along.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main(request_file: str) -> None:
    """Export `source` to the folder `out` for `task`; write the original's results on `ids` and the versions."""
    import numpy as np
    import torch  # type: ignore[import-not-found, unused-ignore]
    from optimum.exporters.onnx import main_export  # type: ignore[import-not-found, unused-ignore]

    request: dict[str, Any] = json.loads(Path(request_file).read_text("utf-8"))
    torch.set_num_threads(int(request["threads"]))
    main_export(
        request["source"],
        request["out"],
        task=request["task"],
        framework="pt",
        library_name="transformers",
        local_files_only=True,
        trust_remote_code=False,
        do_validation=False,  # we compare with what torch gives, on more than random tokens
        dtype="fp32",
    )
    for path in Path(request["out"]).glob("*.onnx"):
        _fold_constants(path)
    results = _run(request["source"], request["ids"], decoder=request["task"].startswith("text-generation"))
    np.save(request["results"], results)
    names = ("torch", "transformers", "optimum", "optimum-onnx", "onnx")
    Path(request["versions"]).write_text(json.dumps({name: version(name) for name in names}))


def _fold_constants(path: Path) -> None:
    """Let onnxruntime compute what depends on no input: fewer operators, and a graph that readers understand.

    Only standard operators come out. Products stay apart from the sums behind them, as quantizers expect. A model
    with external data is beyond what this can write, and stays as it is.
    """
    import onnx
    import onnxruntime

    if list(path.parent.glob(f"{path.name}?data")):
        return
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path.with_suffix(".folded"))
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=["MatMulAddFusion"])
    model = onnx.load(options.optimized_model_filepath)
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]  # it names all that it knows
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, str(path))


def _run(source: str, ids: list[list[int]], *, decoder: bool) -> Any:
    """A decoder's logits [tokens, vocabulary], or an encoder's mean states [texts, dimension] of length 1."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoModelForCausalLM  # type: ignore[import-not-found, unused-ignore]

    kind = AutoModelForCausalLM if decoder else AutoModel
    model = kind.from_pretrained(
        source, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    ).eval()
    rows = []
    with torch.inference_mode():
        for tokens in ids:
            output = model(
                input_ids=torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long)
            )
            if decoder:
                rows.append(output.logits[0].float().numpy())
            else:
                mean = output.last_hidden_state[0].float().mean(dim=0)
                rows.append((mean / mean.norm())[None].numpy())
    return np.concatenate(rows)


if __name__ == "__main__":
    main(sys.argv[1])
