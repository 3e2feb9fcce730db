"""The graph that autograd really keeps, with the value that each node computed, and the gradient that runs back.

with Recorder() as recorder:
    theta_S_prime = metadistil.pilot_update(...)["theta"]
nodes = recorder.graph_of(theta_S_prime, [teacher.theta, student.theta])
"""

import re
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
        nodes = {}

        def visit(function):
            if function in nodes:
                return nodes[function]
            leaf = getattr(function, "variable", None)
            node = nodes[function] = Node(function, values[function] if leaf is None else leaf.detach())
            node.inputs = [visit(one) for one, _ in function.next_functions if one is not None]
            return node

        if result.grad_fn is not None:
            visit(result.grad_fn)
        places = {leaf.data_ptr() for leaf in leaves}  # detached, a parameter is another tensor in the same place

        def begins_there(node):
            return any(map(begins_there, node.inputs)) or node.name == "leaf" and node.value.data_ptr() in places

        found = [node for node in nodes.values() if begins_there(node)]
        for node in found:
            node.inputs = [one for one in node.inputs if one in found]
        return found


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


def way(nodes: list[Node], leaf: Tensor) -> list[Node]:
    """The nodes from the result to the leaf; none if no way leads there."""

    def search(node):
        if getattr(node.function, "variable", None) is leaf:
            return [node]
        for one in node.inputs:
            found = search(one)
            if found:
                return [node, *found]
        return []

    return search(nodes[0]) if nodes else []


class Kept:
    """A tensor that autograd keeps; it tells its ledger when it comes and when it goes."""

    def __init__(self, ledger, tensor):
        self.ledger, self.tensor, self.key = ledger, tensor.detach(), tensor.untyped_storage().data_ptr()
        ledger.note(self.key, +1, tensor.untyped_storage().nbytes())

    def __del__(self):
        self.ledger.note(self.key, -1, self.tensor.untyped_storage().nbytes())


class Ledger:
    """The bytes that autograd keeps, after every coming and going."""

    def __init__(self, given):
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.holders, self.history = {}, [0]

    def note(self, key, change, nbytes):
        """A storage has one holder more, or one less. It counts from its first holder to its last."""
        before = self.holders.get(key, 0)
        self.holders[key] = before + change
        if 0 in (before, before + change):
            self.history.append(self.history[-1] + change * nbytes)

    def pack(self, tensor):
        """What autograd stores in place of a tensor that it keeps."""
        return tensor if tensor.untyped_storage().data_ptr() in self.given else Kept(self, tensor)

    def unpack(self, kept):
        """The tensor, when autograd wants it back."""
        return kept.tensor if isinstance(kept, Kept) else kept


def bytes_kept(call, given) -> list[int]:
    """The bytes kept for backward passes in the course of a call; the tensors that are given anyhow do not count."""
    ledger = Ledger(given)
    with torch.autograd.graph.saved_tensors_hooks(ledger.pack, ledger.unpack):
        call()
    return ledger.history
