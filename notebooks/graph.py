"""The graph that autograd really keeps, with the value that each node computed, and the gradient that runs back.

with Recorder() as recorder:
    theta_S_prime = metadistil.pilot_update(...)["theta"]
nodes = recorder.graph_of(theta_S_prime, [teacher.theta, student.theta])
"""

import collections
import re
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(eq=False)
class Node:
    """One operation of the graph, or a leaf."""

    function: object  # autograd's own node
    value: Tensor  # what it computed
    inputs: list["Node"] = field(default_factory=list)  # the nodes whose results it took
    gradient: Tensor | None = None  # what came back, if anything did

    @property
    def name(self) -> str:
        """As autograd calls it, without its ending: Mul, Sigmoid, ...; of a parameter "leaf"."""
        if hasattr(self.function, "variable"):
            return "leaf"
        return re.sub(r"Backward\d*$", "", self.function.name())


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
        """All nodes on the ways from these leaves to the result, the result's own first. Empty if it has no graph."""
        values = {one.grad_fn: one.detach() for one in self.results if one.grad_fn is not None}
        places = {leaf.data_ptr() for leaf in leaves}  # detached, a parameter is another tensor in the same place
        nodes = {}

        def visit(function):
            """This function's node; None if no way leads from it to a leaf."""
            if function not in nodes:
                inputs = [visit(one) for one, _ in function.next_functions if one is not None]
                inputs = [node for node in inputs if node is not None]
                leaf = getattr(function, "variable", None)
                reached = inputs or leaf is not None and leaf.data_ptr() in places
                value = values.get(function) if leaf is None else leaf.detach()
                nodes[function] = Node(function, value, inputs) if reached else None
            return nodes[function]

        if result.grad_fn is not None:
            visit(result.grad_fn)
        return [node for node in reversed(nodes.values()) if node is not None]


def send_back(nodes: list[Node], result: Tensor, leaf: Tensor, gradient: Tensor) -> Tensor:
    """Send a gradient back from the result to the leaf, and note in each node what came by -> what arrives."""
    hooks = []
    for node in nodes:
        if node.name != "leaf":

            def note(gradients, node=node):
                node.gradient = gradients[0].detach()

            hooks.append(node.function.register_prehook(note))
    (arrived,) = torch.autograd.grad(result, leaf, gradient, retain_graph=True)
    for hook in hooks:
        hook.remove()
    for node in nodes:
        if getattr(node.function, "variable", None) is leaf:
            node.gradient = arrived
    return arrived


class Kept:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


def bytes_kept(call, given) -> list[int]:
    """The bytes that autograd keeps in the course of a call, after each coming and going of a tensor; the tensors that
    are given anyhow do not count."""
    given = {tensor.untyped_storage().data_ptr() for tensor in given}
    holders, history = collections.Counter(), [0]

    def note(place, change, nbytes):
        """A storage has one holder more, or one less. It counts from its first holder to its last."""
        before = holders[place]
        holders[place] += change
        if 0 in (before, holders[place]):
            history.append(history[-1] + change * nbytes)

    def pack(tensor):
        """What autograd stores instead of a tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in given:
            return tensor
        kept = Kept(tensor)
        note(storage.data_ptr(), +1, storage.nbytes())
        weakref.finalize(kept, note, storage.data_ptr(), -1, storage.nbytes())
        return kept

    def unpack(kept):
        """The tensor, when autograd wants it back."""
        return kept.tensor if isinstance(kept, Kept) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        call()
    return history
