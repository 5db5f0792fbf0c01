"""What was seen of a model, turned into what is wrong and what to do. A rule is one function that yields findings."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from ..report import size
from ._explain import Explanation, Finding, Look
from ._watch import Seen

__all__ = ["findings", "first"]

_RULES: list[Callable] = []
_RESETS = {"spikingjelly": "functional.reset_net(net)", "snntorch": "snntorch.utils.reset(net)"}
_OFTEN, _SELDOM = 0.95, 0.0  # firing rates
_WORTH = 0.9  # of native's peak: what is worth a line of code
_STEPPED = 0.7  # where time is a loop, a method that leaves more than this is worth less than taking the loop over


def rule(function: Callable) -> Callable:
    _RULES.append(function)
    return function


def findings(seen: Look, found: Explanation) -> list[Finding]:
    """The problems first."""
    if seen.error is not None:
        return [_failed(seen)]
    made = [finding for function in _RULES for finding in function(seen, found)]
    return sorted(made, key=lambda finding: not finding.problem)


def _listed(names, most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _of(seen: Look, test: Callable[[Seen], bool]) -> list[Seen]:
    return [s for s in seen.watch.seen.values() if s.calls and test(s)]


# ---- rules ----

def _failed(seen: Look) -> Finding:
    s = seen.watch.failed
    where = "the forward pass" if s is None else f"{s.name or 'the model'} ({s.kind})"
    given = "" if seen.watch.failed_with is None else f" got {list(seen.watch.failed_with)} and"
    text = f"{where}{given} raised {type(seen.error).__name__}: {' '.join(str(seen.error).split())[:300]}"
    todo = ("give explain what your training loop gives the model (a tuple for several inputs), or the program itself: "
            "memext explain script.py")
    modes = {m.step_mode for m in seen.watch.seen.values()} - {None}
    if modes == {"s"} and seen.watch.failed_with is not None and len(seen.watch.failed_with) in (4, 5):
        todo = ("all its modules are in step mode 's', one time step per call: pass a sample [N, ...] without time, or "
                "call functional.set_step_mode(net, 'm') and pass [T, N, ...]")
    elif "m" in modes:
        todo = "modules in step mode 'm' take [T, N, ...]: pass a sample with time first"
    return Finding("failed", True, (s.name,) if s else (), text, todo)


@rule
def _crashed(seen: Look, found: Explanation) -> Iterator[Finding]:
    if seen.crashed is not None:
        text = " ".join(str(seen.crashed).split())[:300].split(" Saved intermediate")[0].rstrip(".")
        why = " (see which neuron was not reset, below)" if "second time" in text and seen.before else ""
        yield Finding("crashed", True, (), f"the program ended with {type(seen.crashed).__name__}: {text}{why}")


@rule
def _nothing_here(seen: Look, found: Explanation) -> Iterator[Finding]:
    if not found.neurons:
        yield Finding("no neuron", False, (), "no spiking neuron was found: no class of SpikingJelly or snnTorch, and "
                      "no module that turns real values into spikes",
                      "import the framework before explain; or there is nothing to do here")


@rule
def _not_reset(seen: Look, found: Explanation) -> Iterator[Finding]:
    """A state with a graph from before: of an earlier step, which its backward pass has freed."""
    if seen.before:
        names = list(seen.before)
        state = f"{names[0]}.{seen.before[names[0]][0]}"
        yield Finding("not reset", True, tuple(names),
                      f"{len(names)} neurons still carry the graph of an earlier step ({state}"
                      f"{', ...' if len(names) > 1 else ''}): memory grows from step to step, or backward raises "
                      "'Trying to backward through the graph a second time'",
                      f"call {_reset(found)} after optimizer.step()")
        return
    names = [s.name or s.kind for s in seen.watch.seen.values() if s.entered_with]
    if names:
        yield Finding("needs reset", False, tuple(names),
                      f"{len(names)} neurons begin a forward pass with the state, and the graph, that the one before "
                      "left", f"call {_reset(found)} between two batches (but not between the time steps of one)")


def _reset(found: Explanation) -> str:
    kinds = {n.framework for n in found.neurons}
    if kinds == {"by hand"}:
        return "their own reset (set the state to None or zeros)"
    return " and ".join(_RESETS[kind] for kind in sorted(kinds & set(_RESETS))) or "their reset"


@rule
def _time_as_batch(seen: Look, found: Explanation) -> Iterator[Finding]:
    """A neuron for single steps that is handed a sequence: no time, no memory, no error."""
    sequences = _of(seen, lambda s: s.step_mode == "m" and bool(s.shapes))
    if not sequences:
        return
    T = Counter(s.shapes[0][0] for s in sequences if len(s.shapes[0])).most_common(1)[0][0]
    ranks = {len(s.shapes[0]) for s in sequences}
    wrong = _of(seen, lambda s: s.host is not None and s.step_mode == "s" and s.calls == seen.steps and bool(s.shapes)
                and len(s.shapes[0]) in ranks and s.shapes[0][0] == T)
    if wrong:
        yield Finding("time as batch", True, tuple(s.name for s in wrong),
                      f"{_listed(s.name for s in wrong)}: step mode 's', but called once with "
                      f"{list(wrong[0].shapes[0])} while other layers take T = {T}: it takes time for the batch, and "
                      "carries nothing from step to step", "functional.set_step_mode(net, 'm')")


@rule
def _batch_as_time(seen: Look, found: Explanation) -> Iterator[Finding]:
    """A neuron for sequences behind a layer for batches: samples are taken for time steps."""
    wrong = _of(seen, lambda s: s.host is not None and s.step_mode == "m" and s.fed_by is not None)
    if wrong:
        s = wrong[0]
        yield Finding("batch as time", True, tuple(s.name for s in wrong),
                      f"{_listed(s.name for s in wrong)}: step mode 'm', and fed by {s.fed_by}, whose output "
                      f"{list(s.shapes[0])} is [N, ...]: the samples of a batch are taken for time steps, and the "
                      "membrane runs from one sample to the next",
                      "give the model [T, N, ...] and its layers step mode 'm' (functional.set_step_mode), or reshape "
                      "to [T, N, ...] before the neuron")


@rule
def _shape_changes(seen: Look, found: Explanation) -> Iterator[Finding]:
    """SpikingJelly 2.0.0 puts v back to its start on another shape, and says nothing."""
    wrong = _of(seen, lambda s: s.host is not None and s.host.framework.name == "spikingjelly"
                and len({shape[1:] if s.step_mode == "m" else shape for shape in s.shapes}) > 1)
    if wrong:
        s = wrong[0]
        yield Finding("shape changed", True, tuple(s.name for s in wrong),
                      f"{_listed(s.name for s in wrong)}: called with {list(s.shapes[0])} and then "
                      f"{list(s.shapes[1])}; SpikingJelly sets the membrane back whenever the shape changes, without "
                      "a word", "use one neuron object per shape")


@rule
def _records(seen: Look, found: Explanation) -> Iterator[Finding]:
    for holder in seen.holders:
        grows = holder.where in seen.grows
        yield Finding("recorded", grows, (holder.where,),
                      f"{holder.where} holds {holder.tensors} tensors with their graphs ({size(holder.nbytes)}, and "
                      f"what their graphs keep){' and grows with every step' if grows else ''}",
                      "record x.detach() (spikes as bool: a quarter of the size), and empty it after each step")


@rule
def _no_gradient(seen: Look, found: Explanation) -> Iterator[Finding]:
    if seen.reached is None:
        return
    model, called = seen.watch.model, {m for m, s in seen.watch.seen.items() if s.calls}
    owners = {id(p): m for m in model.modules() for p in m.parameters(recurse=False)}
    names = {name: owners[id(p)] for name, p in model.named_parameters()
             if p.requires_grad and id(p) not in seen.reached}
    if not names:
        return
    total = sum(p.requires_grad for p in model.parameters())
    if len(names) == total:
        yield Finding("no gradient", True, tuple(names), "no parameter gets a gradient: the output is cut off from "
                      "them (detach, no_grad, or an operation without a derivative)",
                      "compute the loss from the output as the forward pass returns it")
        return
    cut = [name for name, module in names.items() if module in called]
    unused = [name for name in names if name not in cut]
    if unused:
        yield Finding("unused", False, tuple(unused), f"{len(unused)} of {total} parameters belong to layers that were "
                      f"not called ({_listed(unused)})", "under DistributedDataParallel pass "
                      "find_unused_parameters=True, or leave them out of the model")
    if cut:
        yield Finding("no gradient", False, tuple(cut), f"{len(cut)} of {total} parameters get no gradient though "
                      f"their layer runs ({_listed(cut)})",
                      "if that is not meant, look for detach or no_grad behind them; under "
                      "DistributedDataParallel pass find_unused_parameters=True")


@rule
def _silent(seen: Look, found: Explanation) -> Iterator[Finding]:
    rates = {n.name: n.rate for n in found.neurons if n.rate is not None}
    never = [name for name, rate in rates.items() if rate <= _SELDOM]
    always = [name for name, rate in rates.items() if rate >= _OFTEN]
    if never:
        yield Finding("never fires", len(never) == len(rates), tuple(never),
                      f"{_listed(never)}: no spike at all on this sample; nothing behind learns from it",
                      "a lower threshold, stronger input, or a norm before the neuron (or the sample is not like your "
                      "data)")
    if always:
        yield Finding("always fires", False, tuple(always), f"{_listed(always)}: fires (almost) always on this sample",
                      "a higher threshold, or a norm before the neuron")


@rule
def _shared(seen: Look, found: Explanation) -> Iterator[Finding]:
    many = [n for n in found.neurons if n.per_step > 1]
    if many:
        what = f"{many[0].name} is called {many[0].per_step} times in every time step"
        yield Finding("shared", False, tuple(n.name for n in many), f"{what}"
                      f"{f', and so are {len(many) - 1} more' if len(many) > 1 else ''}: layers share its membrane",
                      "meant so in EfficientLIF-Net; else give each layer a neuron of its own")


@rule
def _looped(seen: Look, found: Explanation) -> Iterator[Finding]:
    inside = [n for n in found.neurons if n.looped and n.framework != "by hand"]
    single = [n for n in found.neurons if n.framework != "by hand" and n.step_mode != "m"]
    if inside:
        where = "around the model" if seen.steps > 1 else "in the model's forward"
        how = ("sj_memext.functional.multi_step_forward(x_seq, net)" if inside[0].framework == "spikingjelly" else
               "shared_core.temporal.unroll(net, x_seq)")
        multi = "; or step mode 'm', where the layers allow it" if inside[0].framework == "spikingjelly" else ""
        yield Finding("looped", False, tuple(n.name for n in inside),
                      f"time is a Python loop {where} ({found.T} steps): autograd keeps the graph of all steps",
                      f"{how} in its place keeps spikes as bits and a few states{multi}")
    elif single and seen.steps == 1:
        yield Finding("one step", False, tuple(n.name for n in single), "each call of the model is one time step, so "
                      "time is a loop of your own around it", "pass steps=T to see a whole training step")


@rule
def _by_hand(seen: Look, found: Explanation) -> Iterator[Finding]:
    mine = [n for n in found.neurons if n.framework == "by hand"]
    if not mine:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(n.kind for n in mine).items())
    loops = f", each a loop over {mine[0].T} steps" if mine[0].looped and mine[0].T else ""
    whole = len(mine) == len(found.neurons)
    stateful = [s for s in seen.watch.seen.values() if s.by_hand and s.by_hand.startswith("keeps")]
    todo = ("only whole modules run again in the backward pass help: shared_core.checkpoint.checkpoint_modules(net, "
            "[...]), see below; or describe it as a neuron of its own (docs/add_a_neuron.md)")
    if stateful:
        todo = (f"it carries {stateful[0].by_hand.split()[-1]} from call to call, so it cannot simply be run again; "
                "describe it as a neuron of its own (docs/add_a_neuron.md)")
    yield Finding("by hand", False, tuple(n.name for n in mine),
                  f"{kinds}: neurons written by hand{loops}, no class of SpikingJelly or snnTorch"
                  f"{'' if whole else ', beside those of the framework'}; no method of retrofit reaches into them",
                  todo)


@rule
def _left(seen: Look, found: Explanation) -> Iterator[Finding]:
    why = {}
    for n in found.neurons:
        if n.why and n.framework != "by hand":
            why.setdefault((n.kind, n.why), []).append(n.name)
    for (kind, reason), names in why.items():
        yield Finding("left", False, tuple(names), f"{_listed(names)} ({kind}) would be left as it is: {reason}")


@rule
def _mode(seen: Look, found: Explanation) -> Iterator[Finding]:
    if not seen.watch.model.training:
        yield Finding("eval", False, (), "the model is in eval mode", "net.train(), to see what training does")
    uncalled = [s.name for s in seen.watch.seen.values() if s.host is not None and not s.calls]
    if uncalled:
        yield Finding("not called", False, tuple(uncalled), f"{_listed(uncalled)}: not called in this forward pass")


def first(found: Explanation, seen: Look) -> str:
    """The one thing to do first."""
    urgent = [finding.todo for finding in found.problems if finding.todo]
    if urgent:
        return urgent[0]
    better = [m for m in found.methods if m.peak is not None and m.of_native is not None and m.of_native < _WORTH]
    best = min(better, key=lambda m: m.peak, default=None)
    through_time = [finding.todo for finding in found.findings if finding.key == "looped"]
    if through_time and (best is None or best.of_native > _STEPPED):
        return through_time[0]
    if best is not None:
        return f"{best.call}    # peak {best.of_native:.2f}x of now"
    if found.methods:
        return "nothing; no method makes this training step much smaller"
    return ""
