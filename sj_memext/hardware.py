"""What a SpikingJelly network costs on hardware: the models of shared_core.hardware, and the framework's own counter.

    from sj_memext.hardware import layer_table, estimate, sata, spikesim

    table = layer_table(net, x_seq)                         # run once on real input, [T, N, ...], from rest
    print(sata(table).table())
    print(spikesim(table).table())                          # energy as SpikingJelly's SpikeSim counter has it, dense
    print(spikesim(net, x_seq, activity="event").table())   # that counter itself: idle patches and rows cost nothing

layer_table sets states back before and after as functional.reset_net does, and leaves them as they were. Networks in
step mode "m" are called once, those in step mode "s" once for each step of x_seq.
"""
from torch import Tensor, nn

from shared_core import hardware as _core
from shared_core._plan_copy import unwrapped as _unwrapped
from shared_core.errors import MemextError
from shared_core.hardware import LayerTable, SpikeSimResult, compare, costs, early_exit, estimate, layer_table, sata
from shared_core.hardware._spikesim_map import place as _place
from shared_core.hardware._spikesim_units import Crossbars as _Crossbars
from shared_core.hardware._spikesim_units import cycle_parts_pj as _cycle_parts_pj
from shared_core.hardware.crossbar import NICE, Cell, Crossbar, adapt_batch_norm, encode_weights

__all__ = ["NICE", "Cell", "Crossbar", "LayerTable", "adapt_batch_norm", "compare", "costs", "early_exit",
           "encode_weights", "estimate", "layer_table", "sata", "spikesim"]

ACTIVITIES = ("dense", "event")


def spikesim(table_or_net: LayerTable | nn.Module, x_seq: Tensor | None = None, *, activity: str = "dense",
             **options) -> SpikeSimResult:
    """As shared_core.hardware.spikesim; also of a network, run once on x_seq.

    table_or_net: with a table, this is that function.  x_seq: of a network: as in layer_table.
    activity: "dense": every PE works in every cycle, as in the published tool. "event": convolutions whose inputs are
        spikes pay for patches with a spike and rows with a spike only, as counted during the run by SpikingJelly's
        SpikeSimCounter; what that does not count (linear layers, groups, transposed and 1-D convolutions) is dense.
    options: as in shared_core.hardware.spikesim, but for T and counted_nj, which the run decides.
    Raises MemextError: no x_seq with a network, or one with a table; another activity; as spikesim and layer_table.
    """
    if activity not in ACTIVITIES:
        raise MemextError(f"spikesim: activity is {activity!r}; allowed: {', '.join(map(repr, ACTIVITIES))}")
    if isinstance(table_or_net, LayerTable):
        if x_seq is not None or activity != "dense":
            raise MemextError("spikesim: a table holds no spikes, so x_seq and activity='event' are of no use with it; "
                              "pass the network: spikesim(net, x_seq, activity='event')")
        return _core.spikesim(table_or_net, **options)
    if not isinstance(table_or_net, nn.Module) or not isinstance(x_seq, Tensor):
        raise MemextError(f"spikesim: got {type(table_or_net).__name__} and {type(x_seq).__name__}; allowed: a "
                          "LayerTable, or a network and the x_seq that it is run on")
    for name in ("T", "counted_nj"):
        if name in options:
            raise MemextError(f"spikesim: {name} is decided by the run on x_seq; for other time steps use "
                              "spikesim(layer_table(net, x_seq), T=...)")
    net = _unwrapped(table_or_net)
    if activity == "dense":
        return _core.spikesim(layer_table(net, x_seq), **options)
    if options.get("compat") is not None:
        raise MemextError(f"spikesim: activity='event' with compat={options['compat']!r}: the published tool does not "
                          "look at spikes; pass one of them")
    table, counter = _run_with_counter(net, x_seq, options)
    return _core.spikesim(table, **options, counted_nj=_per_sample(table, counter, type(net).__name__))


def _run_with_counter(net: nn.Module, x_seq: Tensor, options: dict):
    from spikingjelly.activation_based import op_counter  # only those who count need it
    from spikingjelly.activation_based.op_counter.spikesim import SpikeSimCounter

    device, given = options.get("device", "rram"), options.get("crossbar_pj")
    own = {} if given is None else {f"{device}_xbar_pj": given}
    config = op_counter.SpikeSimEnergyConfig(xbar_size=options.get("xbar_size", 64), device=device,
                                             activity_mode="event", require_if_lif_neurons=False, **own)
    counter = SpikeSimCounter(config=config, strict=False)
    with op_counter.DispatchCounterMode([counter], strict=False):
        return layer_table(net, x_seq), counter


def _per_sample(table: LayerTable, counter, root: str) -> dict[str, dict[str, float]]:
    """{layer: {part: nJ}} of what the counter saw.

    It sums over the batch, which its own number of PE-cycles tells: ours is of one sample.
    """
    from spikingjelly.activation_based.op_counter.spikesim.formulas import compute_spikesim_event_energy_breakdown

    config, found = counter.config, {}
    hardware = _Crossbars(config.xbar_size, config.device, crossbar_pj=config.xbar_array_energy_pj)
    metadata, by_name = counter.get_stage_metadata(), {layer.name: layer for layer in table if layer.counted}
    for stage, stats in counter.get_stage_stats().items():
        layer = by_name.get(stage.removeprefix(f"{root}."), None)
        if layer is None or metadata[stage]["shape_mismatch_detected"]:
            continue  # called with several input sizes, it is several rows of the table
        placed = _place(layer, config.xbar_size)
        samples = stats["dense_pe_cycle_count"] / (placed.pes * placed.positions * layer.runs(table.T))
        energy = compute_spikesim_event_energy_breakdown(stats, metadata[stage], config)
        parts = _cycle_parts_pj(placed.places, hardware)
        control = {part: parts[part] for part in ("converter", "interconnect", "buffer")}
        share = energy["patch_control_pj"] / sum(control.values())
        both = {"crossbar": energy["xbar_pj"], "lif": energy["neuron_pj"],
                **{part: share * pj for part, pj in control.items()}}
        found[layer.name] = {part: pj * 1e-3 / samples for part, pj in both.items()}
    return found
