"""What the CPU and the GPU share around a kernel: views, outputs, pointers, and the sums over neurons.

A backend gives `run(call, direction)`, and may give `fresh(tensor)`, which prepares new memory, and `address(tensor)`;
the rest is here, once.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .._build import KERNELS
from ..layout import Layout, layout_of
from ..spec import Outputs, Spec
from ..spikes import pack
from ._call import BLOCK, ONLINE, TYPES, Call, compute_dtype
from ._rebuilt import Rebuilt, channel_sums

Run = Callable[[Call, str], None]
Fresh = Callable[[Tensor], Tensor]
Address = Callable[[Tensor], int]
Gradients = tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]
_NOTHING_GIVEN = Rebuilt()


@lru_cache(maxsize=1)
def kernel_ids() -> dict[str, int]:
    """Struct name -> id, read from the MEMEXT_NEURONS list at the end of kernels/neuron.h."""
    listed = (KERNELS / "neuron.h").read_text().split("#define MEMEXT_NEURONS(X)")[1]
    return {name: int(i) for i, name in re.findall(r"X\((\d+), (\w+)\)", listed)}


@lru_cache(maxsize=1024)
def _template(spec: Spec, dtype: torch.dtype) -> Call:
    """What all calls of a neuron have in common."""
    dynamics, call = spec.dynamics, Call()
    call.neuron, call.variant = kernel_ids()[dynamics.struct], dynamics.variant
    call.surrogate, call.compute = spec.surrogate.kernel_id, TYPES[compute_dtype(dtype)]
    call.x_type, call.spike_type = TYPES[dtype], TYPES[spec.spike_dtype or dtype]
    call.flags, call.groups = ONLINE if spec.online else 0, spec.groups
    for i, value in enumerate(dynamics.constants):
        call.constants[i] = value
    for i, value in enumerate(spec.surrogate.params):
        call.surrogate_params[i] = value
    for i, value in enumerate(dynamics.rest):
        call.rest[i] = value
    return call


def _call(spec: Spec, times: int, dtype: torch.dtype, device: torch.device, layout: Layout,
          state: Sequence[Tensor | None], params: Sequence[Tensor], threads: int, address: Address
          ) -> tuple[Call, list[Tensor]]:
    """What every call says, and the tensors its pointers need alive. x itself is added by `_input`.

    times: how many time steps.  dtype: of x.  layout: of the membrane.
    """
    compute, alive = compute_dtype(dtype), []
    call = Call.from_buffer_copy(_template(spec, dtype))
    call.steps, call.neurons, call.threads = times * spec.groups, layout.neurons, threads
    for i, given in enumerate(state):
        if given is not None:
            initial = layout.state(given, compute)
            call.initial[i] = address(initial)
            alive.append(initial)
    for i, p in enumerate(params):
        values, inner, size = layout.parameter(p.to(device), compute)  # scalars may be on the CPU
        call.params[i].data, call.params[i].inner, call.params[i].size = address(values), inner, size
        alive.append(values)
    return call, alive


def _input(call: Call, alive: list[Tensor], layout: Layout, x: Tensor, address: Address) -> Tensor:
    dense, call.x_stride = layout.sequence(x)
    call.x = address(dense)
    alive.append(dense)
    return dense


def forward(spec: Spec, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor], *,
            keep: bool, threads: int, run: Run, fresh: Fresh = lambda t: t, address: Address = Tensor.data_ptr,
            traces: bool = False) -> Outputs:
    """Run all steps. keep: also return what the backward pass needs (anchors, for T > 32).

    traces: also return the trace of the one step (T = 1), for `single_step_backward`.
    """
    layout, times = layout_of(x), x.shape[0]
    membrane, run_length = layout.shared(spec.groups, spec.channel)
    compute, count = spec.dtype_of_state(x), len(spec.dynamics.states)
    call, alive = _call(spec, times, x.dtype, x.device, membrane, state, params, threads, address)
    call.run = run_length
    _input(call, alive, layout, x, address)
    new = lambda *lead: fresh(membrane.empty(*lead, dtype=compute, device=x.device))  # noqa: E731
    out = Outputs(
        spikes=fresh(layout.empty(times, dtype=spec.dtype_of_spikes(x), device=x.device)),
        final=tuple(new() for _ in range(count)),
        sequence=tuple(new(times) for _ in range(count)) if spec.record else (),
    )
    call.spikes = address(out.spikes)
    for i in range(count):
        call.final_state[i] = address(out.final[i])
        if spec.record:
            call.states_seq[i] = address(out.sequence[i])
    pack_after = spec.bits and run_length % 8 != 0  # a byte would be of two groups, hence of two threads
    if spec.bits and not pack_after:
        out.bits = torch.empty((times, (layout.neurons + 7) // 8), dtype=torch.uint8, device=x.device)
        call.bits = address(out.bits)
    if keep and call.steps > BLOCK:
        out.anchors = new((call.steps - 1) // BLOCK, count)
        call.anchors = address(out.anchors)
    if traces and spec.dynamics.trace_is_state:
        out.traces = out.final
    elif traces:
        out.traces = tuple(new() for _ in range(spec.dynamics.traces))
        for i, trace in enumerate(out.traces):
            call.traces[i] = address(trace)
    run(call, "forward")
    del alive
    if pack_after:
        out.bits = pack(out.spikes)
    return out


def backward(spec: Spec, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor], anchors: Tensor | None,
             grad_spikes: Tensor | None, grad_final: Sequence[Tensor | None], grad_sequence: Sequence[Tensor | None],
             needs_x: bool, needs_state: Sequence[bool], needs_params: Sequence[bool], *,
             threads: int, run: Run, fresh: Fresh = lambda t: t, address: Address = Tensor.data_ptr,
             sums_in_kernel: bool = False, **rebuilt) -> Gradients | tuple[*Gradients, Tensor | None]:
    """Gradients of x, of the initial states and of the parameters, from the saved input alone.

    rebuilt: see Rebuilt; with sums=True the sums come as a fourth value.
    sums_in_kernel: the kernel computes them; else Torch does, behind it.
    """
    layout = layout_of(x)
    membrane, run_length = layout.shared(spec.groups, spec.channel)
    call, alive = _call(spec, x.shape[0], x.dtype, x.device, membrane, state, params, threads, address)
    call.run = run_length
    dense = _input(call, alive, layout, x, address)
    given, sums = _NOTHING_GIVEN, None
    if rebuilt:
        given = Rebuilt(**rebuilt)
        given.check(x, layout)
        given.add_to(call, alive, layout, compute_dtype(x.dtype), address)
        if given.sums and needs_x and sums_in_kernel:
            sums = torch.zeros((threads, 2, call.x_scale.size), dtype=torch.float64, device=x.device)
            call.sums = address(sums)
    if anchors is not None:
        anchors = membrane.sequences(anchors)  # a hook on saved tensors may have changed the strides of x, or theirs
        call.anchors = address(anchors)
        alive.append(anchors)
    for i, g in enumerate(grad_sequence):
        if g is not None:
            rows, call.grad_seq_stride[i] = membrane.sequence(g, spec.dtype_of_state(x))
            call.grad_seq[i] = address(rows)
            alive.append(rows)
    found = _gradients(spec, call, alive, x.dtype, x.device, layout, membrane, state, params, grad_spikes, grad_final,
                       needs_x, needs_state, needs_params, run, fresh, address, given, dense)
    if not given.sums:
        return found
    if sums is not None:
        return *found, sums.sum(0)
    return *found, channel_sums(found[0], x, given.channel) if needs_x else None


def single_step_backward(spec: Spec, dtype: torch.dtype, device: torch.device, layout: Layout,
                         traces: Sequence[Tensor], state: Sequence[Tensor | None], params: Sequence[Tensor],
                         grad_spikes: Tensor | None, grad_final: Sequence[Tensor | None],
                         needs_x: bool, needs_state: Sequence[bool], needs_params: Sequence[bool], *,
                         threads: int, run: Run, fresh: Fresh = lambda t: t, address: Address = Tensor.data_ptr
                         ) -> Gradients:
    """As `backward` for one step, from its trace instead of its input. dtype, device, layout: of the input.

    state: read only if Dynamics.backward_reads says so; None elsewhere.
    """
    call, alive = _call(spec, 1, dtype, device, layout, state, params, threads, address)
    for i, trace in enumerate(traces):
        trace = layout.state(trace, compute_dtype(dtype))
        call.traces[i] = address(trace)
        alive.append(trace)
    return _gradients(spec, call, alive, dtype, device, layout, layout, state, params, grad_spikes, grad_final,
                      needs_x, needs_state, needs_params, run, fresh, address)


def _gradients(spec: Spec, call: Call, alive: list[Tensor], dtype: torch.dtype, device: torch.device,
               layout: Layout, membrane: Layout, state: Sequence[Tensor | None], params: Sequence[Tensor],
               grad_spikes: Tensor | None, grad_final: Sequence[Tensor | None],
               needs_x: bool, needs_state: Sequence[bool], needs_params: Sequence[bool], run: Run, fresh: Fresh,
               address: Address, given: Rebuilt = _NOTHING_GIVEN, x: Tensor | None = None) -> Gradients:
    """Adds what comes in and what goes out to a call of backward, and runs it.

    layout, membrane: of a step of the input, and of the state.  x: as the kernel reads it.
    """
    compute = compute_dtype(dtype)
    new = lambda: membrane.empty(dtype=compute, device=device)  # noqa: E731
    dense = None
    if grad_spikes is not None:
        dense, call.grad_spikes_stride = layout.sequence(grad_spikes, spec.spike_dtype or dtype)
        call.grad_spikes = address(dense)
        alive.append(dense)
    if given.into is not None and needs_x:
        given.check_memory(layout, dense, x, address)
    for i, g in enumerate(grad_final):
        if g is not None:
            dense = membrane.state(g, compute)
            call.grad_final[i] = address(dense)
            alive.append(dense)
    grad_x = given.into if needs_x else None
    if needs_x and grad_x is None:
        grad_x = fresh(layout.empty(call.steps // spec.groups, dtype=dtype, device=device))
    grad_state = [new() if need else None for need in needs_state]
    per_neuron = [new() if need else None for need in needs_params]
    call.grad_x = address(grad_x) if needs_x else None
    for i, g in enumerate(grad_state):
        call.grad_initial[i] = address(g) if g is not None else None
    for i, g in enumerate(per_neuron):
        call.grad_params[i] = address(g) if g is not None else None
    run(call, "backward")
    alive.clear()
    grad_state = [g if g is None or s is None else g.to(s.dtype) for g, s in zip(grad_state, state)]
    grad_params = [g if g is None else _sum_to(g, p) for g, p in zip(per_neuron, params)]
    return grad_x, grad_state, grad_params


def _sum_to(g: Tensor, p: Tensor) -> Tensor:
    """Sum a per-neuron gradient to the parameter's shape. float64: a running float32 sum over neurons loses 3e-6."""
    if p.numel() == 1:
        return g.sum(dtype=torch.float64).to(p.dtype).reshape(p.shape)
    lead = g.dim() - p.dim()
    dims = [d for d in range(g.dim()) if d < lead or (p.shape[d - lead] == 1 and g.shape[d] != 1)]
    return (g.sum(dims, dtype=torch.float64) if dims else g).to(p.dtype).reshape(p.shape)
