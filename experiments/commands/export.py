"""`stepseer export`: a trained model as a Hugging Face folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from experiments import show
from experiments.commands.generate import add_model
from experiments.options import Parser


def parser() -> Parser:
    made = Parser(
        "export",
        "Write a trained model in Hugging Face's format: config.json, safetensors, tokenizer.",
        examples="  stepseer export out --out exported",
    )
    add_model(made)
    made.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    made.add_argument("--overwrite", action="store_true", help="replace a folder that was exported before")
    return made


def run(args: argparse.Namespace) -> int:
    import engine
    from engine import sizes

    trained = engine.load(args.model, args.run)
    model, notes = trained.model, []
    if model.capacity_factor:
        notes.append(f"model.capacity_factor {model.capacity_factor:g} is of training; the exported model is dropless")
        model = dataclasses.replace(model, capacity_factor=0.0)
    if trained.tokenizer is None:
        notes.append("there is no tokenizer: its tokens are no text")
    seq_len = None if trained.config is None else trained.config.data.seq_len
    engine.hf.save(
        args.out, model, trained.params, tokenizer=trained.tokenizer, seq_len=seq_len, overwrite=args.overwrite
    )
    files = sorted(Path(args.out).iterdir())
    config = json.loads((Path(args.out) / "config.json").read_text())
    summary = {
        "out": args.out,
        "architecture": config["architectures"][0],
        "params_total": sizes.total_params(model),
        "bytes": sum(f.stat().st_size for f in files),
        "files": [f.name for f in files],
        "notes": notes,
    }
    if args.json:
        print(show.as_json(summary))
        return 0
    pairs = [
        ["architecture", summary["architecture"]],
        ["parameters", show.count(summary["params_total"]) + " with embeddings"],
        ["size", show.count(summary["bytes"]) + " bytes"],
        ["files", ", ".join(summary["files"])],
    ]
    console = show.console()
    console.print(show.table(args.out, ["", ""], pairs, left=2))
    for note in notes:
        console.print(f"note: {note}")
    return 0
