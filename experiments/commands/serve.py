"""`stepseer serve`: a page on which posteriors are asked."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

import laws
from experiments import show
from experiments.errors import InputError
from experiments.options import Parser


def parser() -> Parser:
    made = Parser(
        "serve",
        "A page in the browser on which posteriors are asked: answers, intervals, and pictures of both.",
        examples="  stepseer serve\n  stepseer serve steplaw mine.nc --port 9000",
    )
    made.add_argument("posteriors", metavar="LAW_OR_FILE", nargs="*", default=["steplaw"], help="default: steplaw")
    made.add_argument("--host", metavar="NAME", default="127.0.0.1", help="0.0.0.0 lets other machines ask, too")
    made.add_argument("--port", metavar="N", default="8765", help="default 8765; 0 takes a free one")
    made.add_argument("--no-browser", action="store_true", help="do not open the page")
    return made


def run(args: argparse.Namespace) -> int:
    from laws import web

    if not (args.port.isdigit() and int(args.port) < 65536):
        raise InputError(f"--port is {args.port!r}; give a number from 0 to 65535")
    posteriors = {Path(name).name: laws.load_posterior(name) for name in args.posteriors}
    with web.make_server(posteriors, args.host, int(args.port)) as server:
        address = f"http://{args.host}:{server.server_address[1]}/"
        said = f"{', '.join(posteriors)} at {address}; Ctrl-C ends it"
        print(show.as_json({"address": address, "posteriors": list(posteriors)}) if args.json else said, flush=True)
        if not args.no_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
