"""The `memext` command. A subcommand is one function below, decorated with `@command`.

Each returns the exit status; a MemextError it raises becomes one line on stderr and status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys

from .errors import MemextError

__all__ = ["main"]

_COMMANDS = []
_PRINT = "-"  # --json without a path


def argument(*names, **options):
    """One argument of a command: what argparse's add_argument takes."""
    return names, options


def command(name, summary, *arguments):
    """Makes `function(args) -> int` the subcommand `memext <name>`."""
    def register(function):
        _COMMANDS.append((name, summary, arguments, function))
        return function
    return register


@command(
    "report", "measure the memory of one training step of a model",
    argument("--model", metavar="MODULE:FACTORY", help="called without arguments, returns the model"),
    argument("--input", metavar="SHAPE", help="shape of a random input, e.g. 4,8,3,32,32"),
    argument("--step", metavar="MODULE:FUNCTION",
             help="called as function(model, x); default: forward, sum of the outputs, backward"),
    argument("--device", default="cpu", help="default: cpu"),
    argument("--json", metavar="PATH", nargs="?", const=_PRINT,
             help="write the report there; without PATH, print it instead of the table"),
    argument("--png", metavar="PATH", help="draw the timeline there"),
    argument("--lif", action="store_true",
             help="membrane memory by EfficientLIF-Net's accounting: of the model, or, without --model, the paper's "
                  "Tables I and II"),
    argument("--rates", nargs="*", metavar="SHARING",
             help="how often each layer fires, as the model is and with membranes shared (L, C#2, L+C#2, ...), instead "
                  "of its memory"),
)
def report(args):
    from .memory import measure

    if args.lif:
        return _report_lif(args)
    for option, value in (("--model", args.model), ("--input", args.input)):
        if value is None:
            raise MemextError(f"{option} is missing; it is needed for all but --lif")
    shape = _shape(args.input)
    for option, path in (("--json", args.json), ("--png", args.png)):
        _folder_of(path, option)
    factory = _load(args.model, "--model")
    if args.rates is not None:
        return _report_rates(args, factory, shape)
    step = _load(args.step, "--step") if args.step else _default_step
    model, x = _build(factory, args.model, shape, args.device)
    with _blame(f"the step on input {args.input} raised"):
        step(model, x)  # unmeasured: the first call also loads libraries and fills caches
        _reset_state(model)
        model.zero_grad(set_to_none=True)
        found = measure(lambda: step(model, x), model=model)
    _reset_state(model)
    if args.json == _PRINT:
        print(json.dumps(found.to_dict(), indent=2))
        args.json = None
    else:
        print(found.table())
    for option, path, write in (("--json", args.json, found.to_json), ("--png", args.png, found.plot)):
        if path:
            with _blame(f"{option} {path}: cannot be written:", OSError):
                write(path)
            print(f"wrote {path}")
    return 0


def _report_rates(args, factory, shape):
    """EfficientLIF-Net's Fig. 7, for this model."""
    from .sharing._rates import compared, rates_table

    model, x = _build(factory, args.model, shape, args.device)
    del model
    found = compared(lambda: _model(factory, args.model).to(args.device), x, args.rates, _reset_state)
    return _show(args, rates_table(found), found)


def _report_lif(args):
    """What membranes take, in theory: of a model, or of the networks in EfficientLIF-Net's tables."""
    from . import _lif_tables
    from .memory import lif_memory

    for option, value in (("--step", args.step), ("--png", args.png), ("--rates", args.rates)):
        if value is not None:
            raise MemextError(f"{option} does not go with --lif, which runs no training step; leave it out")
    if args.json != _PRINT:
        _folder_of(args.json, "--json")
    if args.model is None:
        table, values = _lif_tables.table(), _lif_tables.rows()
    elif args.input is None:
        raise MemextError("--input is missing; the membranes of --model are counted for an input of that shape")
    else:
        model, x = _build(_load(args.model, "--model"), args.model, _shape(args.input), args.device)
        found = lif_memory(model, x)
        table, values = found.table(), found.to_dict()
    return _show(args, table, values)


def _show(args, table, values):
    """Prints the table, or with --json alone the values; with --json PATH also writes them."""
    text = json.dumps(values, indent=2)
    print(text if args.json == _PRINT else table)
    if args.json not in (None, _PRINT):
        with _blame(f"--json {args.json}: cannot be written:", OSError), open(args.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        print(f"wrote {args.json}")
    return 0


@command(
    "plan", "predict the peak memory of one training step of a model under each method, without running it",
    argument("--model", required=True, metavar="MODULE:FACTORY",
             help="called without arguments, returns the model; one that is too large to build may be made under "
                  "torch.device('meta')"),
    argument("--input", required=True, metavar="SHAPE", help="shape of the input, e.g. 4,32,3,224,224"),
    argument("--budget", metavar="SIZE", help="what there is, e.g. 24GiB; default: only print the figures"),
    argument("--max-batch", action="store_true", help="also find the largest batch that fits, for each method"),
    argument("--optimizer", metavar="NAME", help="sgd, momentum (SGD with it), adam, adamw, ...; default: none"),
    argument("--batch-dim", type=int, default=1, metavar="D",
             help="dimension of the samples: 1 for T,N,... (the default), 0 for N,..."),
    argument("--device", default="cpu", help="cpu or cuda, on which the step would run; default: cpu"),
    argument("--json", metavar="PATH", help="write the plan there"),
)
def plan(args):
    from . import memory

    shape = _shape(args.input)
    _check_plan(args, shape)
    model = _model(_load(args.model, "--model"), args.model)
    try:
        found = memory.plan(model, shape, args.budget, args.optimizer, max_batch=args.max_batch,
                            batch_dim=args.batch_dim, device=args.device)
    except MemextError as error:
        raise MemextError(_as_options(str(error))) from error
    print(_as_options(found.table(advice=False)))
    if args.json:
        with _blame(f"--json {args.json}: cannot be written:", OSError):
            found.to_json(args.json)
        print(f"wrote {args.json}")
    if found.chosen is None:
        raise MemextError(" ".join(found.advice))
    return 0


def _check_plan(args, shape):
    """What is wrong with the arguments is said before the model is built."""
    from ._plan_optimizer import NAMES
    from .plan import bytes_of

    _folder_of(args.json, "--json")
    if args.budget is not None:
        try:
            bytes_of(args.budget)
        except MemextError as error:
            raise MemextError(f"--budget {args.budget!r} is no size; allowed: a positive number of bytes, or one with "
                              "KiB, MiB, GiB or TiB (powers of 1024; K, M, G, T for short) or KB, MB, GB, TB (of "
                              "1000), e.g. --budget 24GiB") from error
    elif args.max_batch:
        raise MemextError("--max-batch needs a budget, e.g. --budget 24GiB")
    if args.optimizer is not None and args.optimizer.lower() not in NAMES:
        raise MemextError(f"--optimizer {args.optimizer!r} is unknown; allowed: {', '.join(NAMES)}")
    for option, value, allowed in (("--device", args.device, ("cpu", "cuda")), ("--batch-dim", args.batch_dim, (0, 1))):
        if value not in allowed:
            raise MemextError(f"{option} is {value!r}; allowed: {' or '.join(map(str, allowed))}")
    if len(shape) <= args.batch_dim:
        raise MemextError(f"--input {args.input!r} has no dimension {args.batch_dim} for the batch; give time and "
                          "batch, T,N,..., or pass --batch-dim 0 for N,...")


def _as_options(text):
    """Advice in the spelling of Python's plan(), in that of this command."""
    return text.removeprefix("plan: ").replace("batch_dim=", "--batch-dim ")


@command("neurons", "list the registered neurons, and where each can run")
def neurons(args):
    from . import registry
    from .backends import cuda, native
    from .report import text_table

    columns = ("name", "owner", "framework", "alphabet", "backends")
    rows = [[_cell(getattr(neuron, column, None)) for column in columns] for neuron in registry.neurons()]
    if not rows:
        print("No neurons are registered.")
        return 0
    missing = {name: reason for name, backend in (("native", native), ("cuda", cuda))
               if (reason := backend.unavailable()) is not None}
    for row in rows:
        row[-1] = ", ".join(f"{name} (not here)" if name in missing else name for name in row[-1].split(", "))
    print(text_table(rows, columns))
    for name, reason in missing.items():
        print(f"{name} cannot run on this machine: {reason}")
    return 0


@command(
    "energy", "what one sample costs on hardware: energy, cycles and area of a model, or of a table of layers",
    argument("target", metavar="MODEL-OR-TABLE",
             help="module:factory, called without arguments, returns the model; or a table of layers, .csv or .json"),
    argument("--sample", metavar="MODULE:FUNCTION",
             help="of a model: called without arguments, returns a batch of real input, [T,N,...] where the model "
                  "takes a sequence or is called once a step"),
    argument("--input", metavar="SHAPE", help="instead of --sample: shape of a random input, e.g. 4,8,3,32,32"),
    argument("--time-steps", metavar="T", help="default: the sample's, or the table's"),
    argument("--sparsity", metavar="S",
             help="share of inputs that are 0, for all layers; or 'weights', to skip zero weights too; default: "
                  "each layer's own"),
    argument("--dataflow", metavar="NAME",
             help="of SATA: tick-batch (the default), output-stationary, weight-stationary"),
    argument("--lif-units", metavar="N",
             help="of SATA; default: one for each processing element, or by the model's C#n"),
    argument("--array", metavar="ROWSxCOLUMNS", help="of SATA; default: 16x8"),
    argument("--xbar-size", metavar="N", help="of SpikeSim: rows and columns of a crossbar; default: 64"),
    argument("--device", metavar="NAME", help="of SpikeSim: rram (the default) or sram"),
    argument("--compat", metavar="TOOL[,TOOL]",
             help="sata-2023, sata-2024, spikesim: as that published tool counts"),
    argument("--compare", metavar="OTHER", nargs="+",
             help="a second model or table, or 'same'; then settings that differ, e.g. same lif_units=32 T=2; early "
                  "exit: threshold=0.1, or exits=0.6,0.2,0.1,0.1 (who stops at step 1, 2, ...)"),
    argument("--layers", action="store_true", help="also print a line per layer"),
    argument("--table", metavar="PATH", help="write the table of layers there, .csv or .json"),
    argument("--json", metavar="PATH", nargs="?", const=_PRINT,
             help="write the figures there; without PATH, print them"),
    argument("--png", metavar="PATH", help="draw stacked bars there"),
)
def energy(args):
    from .hardware import command

    for option, path in (("--json", args.json), ("--png", args.png), ("--table", args.table)):
        _folder_of(path, option)
    with _blame("a file cannot be written:", OSError):
        values, text, plot = command.energy(args, lambda target, **early: _layers(args, target, **early))
    _show(args, text, values)
    if args.png:
        with _blame(f"--png {args.png}: cannot be written:", OSError):
            plot(args.png)
        if args.json != _PRINT:
            print(f"wrote {args.png}")
    return 0


def _layers(args, target, threshold=None):
    """The layer table of a model, on the sample that the arguments name; with a threshold, those of early exit."""
    from .hardware import exits_on, layer_table

    if (args.sample is None) == (args.input is None):
        raise MemextError(f"{target!r} is a model; pass either --sample module:function, which returns a batch of real "
                          "input, or --input SHAPE, for a random one (a table of layers ends in .csv or .json)")
    factory = _load(target, "MODEL-OR-TABLE")
    if args.sample is None:
        model, x = _build(factory, target, _shape(args.input), "cpu")
    else:
        function = _load(args.sample, "--sample")
        with _blame(f"--sample {args.sample!r} raised"):
            x = function()
        model = _model(factory, target)
    return layer_table(model, x) if threshold is None else exits_on(model, x, threshold)


@command(
    "run", "run a program as it is, with memory-efficient neurons in its models",
    argument("--method", metavar="METHOD",
             help="neuron (the default), compress, recompute, reverse, sltt, share; or auto: the fastest that fits "
                  "--budget"),
    argument("--budget", metavar="SIZE", help="what there is, e.g. 8GiB: --method auto"),
    argument("--report", metavar="FOLDER", help="write the report there as run.json"),
    argument("--plot", action="store_true", help="with --report: draw the memory of one step there, as run.png"),
    argument("--no-probe", action="store_true", help="do not run the first step on copies of the model to compare"),
    argument("--legacy", action="store_true", help="the program is written for SpikingJelly 0.0.0.0.12 to 0.0.0.0.14"),
    argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE",
             help="run a module, as python -m does; with its arguments"),
    argument("program", nargs=argparse.REMAINDER, metavar="SCRIPT", help="a Python script, with its arguments"),
)
def run(args):
    from . import program

    return program.prepare(args)


@command(
    "explain", "what is wrong with how a model, or a program, uses memory, and what to do",
    argument("rest", nargs=argparse.REMAINDER, metavar="TARGET",
             help="script.py and its arguments, a program, which is stopped after three training steps; or "
                  "module:factory, called without arguments, returns the model"),
    argument("-m", dest="module", metavar="MODULE", help="the program that `python -m MODULE` runs"),
    argument("--input", metavar="SHAPE", help="with MODULE:FACTORY: shape of a batch, e.g. 4,8,3,32,32"),
    argument("--steps", metavar="T", type=int, default=1,
             help="with MODULE:FACTORY: how often a training step calls the model, where time is a loop around it"),
    argument("--all", action="store_true", help="a line for every neuron"),
    argument("--no-plan", action="store_true", help="leave out the predicted peak of each method (some seconds)"),
    argument("--json", metavar="PATH", nargs="?", const=_PRINT,
             help="write what was found there; without PATH, print it instead of the text"),
)
def explain(args):
    from .doctor.command import explained

    found = explained(args, lambda target, shape: _build(_load(target, "MODULE:FACTORY"), target, _shape(shape), "cpu"))
    _folder_of(None if args.json == _PRINT else args.json, "--json")
    return _show(args, found.text(every=args.all), found.to_dict())


def main(argv=None):
    """Runs `memext` with the given arguments (default: the program's) and returns the exit status.

    0: done; 2: the request cannot be honoured, said in one line on stderr.
    """
    parser = argparse.ArgumentParser(prog="memext", description="Memory-efficient spiking neurons.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, arguments, function in _COMMANDS:
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        for names, options in arguments:
            subparser.add_argument(*names, **options)
        subparser.set_defaults(function=function)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return stop.code
    try:
        status = args.function(args)
    except MemextError as error:
        print(f"memext {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return status() if callable(status) else status  # a program of the user's: its exceptions are its own


def _shape(text):
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise MemextError(f"--input {text!r} is not a shape; "
                          "allowed: positive whole numbers separated by commas, e.g. 4,8,3,32,32.")
    return shape


def _load(target, option):
    """The object that 'module:attribute' names; modules in the current directory are found."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise MemextError(f"{option} {target!r}: allowed: module:attribute, e.g. mynet:build.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    with _blame(f"{option} {target!r}: importing {module_name!r} raised"):
        found = importlib.import_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise MemextError(f"{option} {target!r}: module {module_name!r} has no {attribute!r}; "
                              "name a function that is defined there.")
        found = getattr(found, part)
    if not callable(found):
        raise MemextError(f"{option} {target!r} is {type(found).__name__}; it must be callable.")
    return found


def _folder_of(path, option):
    """Said before the work, not after it."""
    folder = os.path.dirname(os.path.abspath(path or "."))
    if not os.path.isdir(folder):
        raise MemextError(f"{option} {path!r}: there is no folder {folder!r}; create it first.")


def _model(factory, name):
    import torch

    with _blame(f"--model {name!r}: the factory raised"):
        model = factory()
    if not isinstance(model, torch.nn.Module):
        raise MemextError(f"--model {name!r}: the factory returned {type(model).__name__}; "
                          "it must return a torch.nn.Module.")
    return model


def _build(factory, name, shape, device):
    import torch

    model = _model(factory, name)
    with _blame(f"--device {device!r} cannot be used:"):
        generator = torch.Generator().manual_seed(0)  # the same input for every method compared
        return model.to(device), torch.rand(shape, generator=generator).to(device)


def _default_step(model, x):
    from ._memory_graph import tensors_in

    losses = [tensor.sum() for tensor in tensors_in(model(x)) if tensor.requires_grad]
    if not losses:
        raise MemextError("no output of the model requires a gradient; pass --step with your own step.")
    sum(losses).backward()


def _reset_state(model):
    """Clears neuron state the way the model's own framework does, if the factory's module has loaded one."""
    from ._plan_copy import framework_reset

    with _blame("the framework's own reset of the neurons raised"):
        framework_reset(model)


@contextlib.contextmanager
def _blame(what, kinds=Exception):
    """Turns an exception of user code into a MemextError that says whose it is."""
    try:
        yield
    except MemextError:
        raise
    except kinds as error:
        raise MemextError(f"{what} {type(error).__name__}: {error}") from error


def _cell(value):
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple, set, frozenset)) else str(value)


if __name__ == "__main__":
    sys.exit(main())
