"""The graph that autograd really keeps, with the value that each node computed, and the gradient that runs back.

with Recorder() as recorder:
    theta_S_prime = metadistil.pilot_update(...)["theta"]
nodes = recorder.graph_of(theta_S_prime, [teacher.theta, student.theta])
theta_S_prime.backward(v, inputs=[teacher.theta])  # each node on this way notes the gradient that comes by
"""

import re
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(eq=False)
class Node:
    """One operation of the graph, or a leaf."""

    name: str  # as autograd calls it, without its ending: Mul, Sigmoid, ...; of a parameter "leaf"
    value: Tensor  # what it computed
    inputs: list["Node"]  # the nodes whose results it took
    gradient: Tensor | None = None  # what came back, if anything did

    def note(self, gradients):
        """A hook of autograd's: keep the gradient that comes by."""
        self.gradient = gradients[0].detach()


class Recorder(TorchDispatchMode):
    """Inside, every result is kept, those of backward passes as well. So each node's value can be told afterwards."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.results.append(result)
        return result

    def graph_of(self, result: Tensor, leaves: list[Tensor]) -> list[Node]:
        """All nodes on the ways from these leaves to the result, the result's own first; none if it has no graph. Each
        notes the gradient that the next backward pass brings."""
        values = {one.grad_fn: one.detach() for one in self.results if one.grad_fn is not None}
        places = {leaf.data_ptr() for leaf in leaves}  # detached, a parameter is another tensor in the same place
        nodes = {None: None}

        def visit(function):
            """This function's node; None if no way leads from it to a leaf."""
            if function not in nodes:
                inputs = [visit(one) for one, _ in function.next_functions]
                inputs = [node for node in inputs if node is not None]
                leaf = getattr(function, "variable", None)
                node = None
                if leaf is not None and leaf.data_ptr() in places:
                    node = Node("leaf", leaf.detach(), [])
                elif inputs:
                    node = Node(re.sub(r"Backward\d*$", "", function.name()), values.get(function), inputs)
                if node is not None:
                    function.register_prehook(node.note)
                nodes[function] = node
            return nodes[function]

        visit(result.grad_fn)
        return [node for node in reversed(nodes.values()) if node is not None]


def bytes_kept(call, given) -> list[int]:
    """The bytes that autograd keeps in the course of a call, after each coming and going of a storage; the tensors that
    are given anyhow do not count."""
    given = {tensor.untyped_storage().data_ptr() for tensor in given}
    history = [0]

    class Entry:
        """A storage's entry in the ledger, from the first node that keeps a tensor in it to the last."""

        def __init__(self, nbytes):
            self.nbytes = nbytes
            history.append(history[-1] + nbytes)

        def __del__(self):
            history.append(history[-1] - self.nbytes)

    entries = weakref.WeakValueDictionary()  # {place of the storage: its entry, as long as a node holds it}

    def pack(tensor):
        """What autograd keeps instead of a tensor: the tensor, with its storage's entry."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in given:
            return tensor, None
        entry = entries.get(storage.data_ptr()) or Entry(storage.nbytes())
        entries[storage.data_ptr()] = entry
        return tensor.detach(), entry

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[0]):
        call()
    return history
