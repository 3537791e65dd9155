"""Predictions in the tree: each node counts, for each replica, those that cover its edge."""

from __future__ import annotations

from router.core.chains import Chain, Holder, Prediction
from router.core.ids import Namespace
from router.core.radix import Node, Radix


def predict(radix: Radix, holder: Holder, namespace: Namespace, prompt: bytes) -> Prediction:
    """Count the path of `prompt` as the replica's."""
    if not prompt:
        return Prediction(holder, None)
    node = radix.boundary(radix.grow(radix.root(namespace), 0, prompt), len(prompt))
    node.used = radix.moment
    prediction = Prediction(holder, node)
    holder.predictions.setdefault(node, []).append(prediction)
    above: Node | None = node
    while above is not None and above.parent is not None:
        above.predicted[holder] = above.predicted.get(holder, 0) + 1
        above = above.parent
    return prediction


def drop(radix: Radix, prediction: Prediction) -> None:
    """Uncount it, unless it is dropped already."""
    end, holder = prediction.node, prediction.holder
    if end is None:
        return
    prediction.node = None
    siblings = holder.predictions[end]
    siblings.remove(prediction)
    if not siblings:
        del holder.predictions[end]
    node: Node | None = end
    while node is not None and node.parent is not None:
        node.predicted[holder] -= 1
        if not node.predicted[holder]:
            del node.predicted[holder]
        node = node.parent
    radix.prune((end,))


def drop_overtaken(radix: Radix, chain: Chain, index: int) -> None:
    """Drop the predictions of a chain's replica that end on the way to a block it has stored."""
    overtaken: list[Prediction] = []
    end = chain.ends[index]
    node: Node | None = chain.node_of(index)
    while node is not None:
        if node.end <= end:
            overtaken += chain.holder.predictions.get(node, ())
        node = node.parent
    for prediction in overtaken:
        drop(radix, prediction)
