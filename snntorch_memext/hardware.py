"""What an snnTorch network costs on hardware: the models of shared_core.hardware, under this adapter's name.

    from snntorch_memext.hardware import layer_table, estimate, sata, spikesim

    table = layer_table(net, x)                    # run once on real input, from rest
    print(spikesim(table).table())

Time goes as the network has it. Where all neurons have init_hidden=True you step it, and x is [T, N, ...]; where it
loops over steps by itself, x is what it takes; time="outside" or "inside" says so where that is not seen, run= does
the loop your way. States are set back by each neuron's own reset_mem, and are then as they were; neurons of other
networks, which snntorch.utils.reset would reset too, are left alone.
"""
from shared_core.hardware import LayerTable, compare, costs, early_exit, estimate, layer_table, sata, spikesim
from shared_core.hardware.crossbar import NICE, Cell, Crossbar, adapt_batch_norm, encode_weights

__all__ = ["NICE", "Cell", "Crossbar", "LayerTable", "adapt_batch_norm", "compare", "costs", "early_exit",
           "encode_weights", "estimate", "layer_table", "sata", "spikesim"]
