"""Fixed shards of a corpus and the tree their states merge along, so that the sum does not depend on who adds it.

Float addition is not associative: states merged in another order differ in their last bits. So a corpus is cut into
shards by sentence index alone, and their states merge along one binary tree over the shard numbers, whoever computed
them and in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cone_kernels.state.agreement import refuse_differences
from cone_kernels.state.cone_state import ConeState

Node = tuple[int, int]
"""(level, index): the shards from index·2^level up to (index + 1)·2^level."""

# A process takes at least this many blocks of every doubling of the corpus, so loads differ by about 1 in so many.
_BLOCKS_EACH = 8


class ShardTree:
    """The states of shards, merged where both halves of a node are there; `add` and `merge` return new trees.

    The tree holds the open nodes, those whose other half is missing: about log2(n) of n shards that come in order.
    Equal sets of shards give bitwise equal trees, whatever the order in which shards were added and trees merged.

    Args:
        nodes: complete nodes by (level, index).

    Raises:
        ValueError: nodes overlap, or their states differ in layers, width, fields or `info`, each named.

    Examples:
        >>> tree = ShardTree().add(1, second).add(0, first).add(2, third)
        >>> list(tree.nodes)
        [(1, 0), (0, 2)]
        >>> tree.close(3)
        ConeState(...)
    """

    def __init__(self, nodes: Mapping[Node, ConeState] | None = None) -> None:
        open_nodes: dict[Node, ConeState] = {}
        for node, state in (nodes or {}).items():
            open_nodes = _with_node(open_nodes, node, state)
        self._nodes = open_nodes

    @property
    def nodes(self) -> dict[Node, ConeState]:
        """The open nodes, in the order of their shards."""
        return {node: self._nodes[node] for node in sorted(self._nodes, key=_first_shard)}

    def __contains__(self, shard: int) -> bool:
        return any(shard >> level == index for level, index in self._nodes)

    def add(self, shard: int, state: ConeState) -> ShardTree:
        """The tree with one more shard.

        Args:
            shard: its number, from 0.
            state: its sums, which are copied.

        Raises:
            ValueError: the shard is there already, or the state differs in what must agree, each field named.
        """
        return self._with([((0, shard), state.settled())])

    def merge(self, other: ShardTree) -> ShardTree:
        """The tree of both sets of shards; neither input changes.

        Raises:
            ValueError: a shard is in both, or the states differ in what must agree, each field named.
        """
        return self._with(other.nodes.items())

    def missing(self, n_shards: int) -> list[range]:
        """The shards below `n_shards` that are not there, as ranges in order."""
        gaps, at = [], 0
        for level, index in self.nodes:
            first = index << level
            if at < min(first, n_shards):
                gaps.append(range(at, min(first, n_shards)))
            at = (index + 1) << level
        return gaps + ([range(at, n_shards)] if at < n_shards else [])

    def folded(self) -> ConeState:
        """One state of the shards that are there, as if all others were empty.

        Raises:
            ValueError: there is no shard.
        """
        if not self._nodes:
            raise ValueError("tree: got no shard; a state needs at least one")
        *rest, total = self.nodes.values()
        for state in reversed(rest):
            total = state.merge(total)
        return total

    def close(self, n_shards: int) -> ConeState:
        """The state of the whole corpus.

        Args:
            n_shards: how many shards the corpus has.

        Raises:
            ValueError: shards are missing, or there are more; each named.
        """
        gaps = self.missing(n_shards)
        if gaps:
            raise ValueError(f"shards: the corpus has {n_shards}; there is none of {listed(gaps)}")
        beyond = [range(max(index << level, n_shards), (index + 1) << level) for level, index in self.nodes]
        beyond = [shards for shards in beyond if shards]
        if beyond:
            raise ValueError(f"shards: the corpus has {n_shards}; got {listed(beyond)} beyond them")
        return self.folded()

    def _with(self, nodes: Iterable[tuple[Node, ConeState]]) -> ShardTree:
        """A new tree of these open nodes and more."""
        grown = ShardTree()
        grown._nodes = self._nodes
        for node, state in nodes:
            grown._nodes = _with_node(grown._nodes, node, state)
        return grown

    def __repr__(self) -> str:
        shards = [range(index << level, (index + 1) << level) for level, index in self.nodes]
        return f"ShardTree({listed(shards) if shards else 'no shard'})"


def owner(shard: int, processes: int) -> int:
    """The number of the process that runs a shard, from 0; how many shards there will be need not be known.

    The processes take turns by blocks of shards. A block is a whole node of the tree, and blocks get larger as the
    number of the shard doubles. So the loads differ by about an eighth at most, and a process keeps O(log shards) open
    nodes. If they took turns by single shards, no two shards of a process would be halves of one node, and it would
    keep all of its shards open.

    Examples:
        >>> [owner(shard, 2) for shard in (0, 1, 2, 3)]
        [0, 1, 0, 1]
    """
    blocks = 1 << (_BLOCKS_EACH * processes - 1).bit_length()  # in every doubling
    level = max(0, shard.bit_length() - blocks.bit_length())
    # Where the blocks of a doubling cannot be shared evenly, adding the level gives the odd one to another process.
    return ((shard >> level) + level) % processes


def listed(shards: Iterable[range]) -> str:
    """Ranges of shards, to be read: "shards 0 to 3, 7", or "shard 7"."""
    ranges = list(shards)
    each = [f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]}" for found in ranges]
    return f"{'shard' if sum(map(len, ranges)) == 1 else 'shards'} {', '.join(each)}"


def _with_node(nodes: Mapping[Node, ConeState], node: Node, state: ConeState) -> dict[Node, ConeState]:
    """The open nodes with one more; a complete pair becomes its parent, up to the root."""
    if node[0] < 0 or node[1] < 0:
        raise ValueError(f"node: got {node}; level and index must be 0 or more")
    for other in nodes:
        first, last = _overlap(node, other)
        if first <= last:
            raise ValueError(f"merge: both have {listed([range(first, last + 1)])}")
    if nodes:
        refuse_differences("shards' states", _identity(next(iter(nodes.values()))), _identity(state))
    grown = dict(nodes)
    level, index = node
    while (sibling := (level, index ^ 1)) in grown:
        pair = [state, grown.pop(sibling)]
        left, right = pair if index % 2 == 0 else reversed(pair)
        state = left.merge(right)
        level, index = level + 1, index // 2
    return grown | {(level, index): state}


def _first_shard(node: Node) -> int:
    return node[1] << node[0]


def _overlap(one: Node, other: Node) -> Node:
    """First and last of the shards that two nodes share; they share none where the first is larger than the last."""
    ends = [((index + 1) << level) - 1 for level, index in (one, other)]
    return max(_first_shard(one), _first_shard(other)), min(ends)


def _identity(state: ConeState) -> dict[str, Any]:
    """What must agree before two states may merge, by field."""
    each = state.all_moments.items()
    fields = {f"{key}.{name}": value for key, moments in each for name, value in moments.identity().items()}
    return {**{f"info.{name}": value for name, value in state.info.items()}, "poolings": list(state.poolings), **fields}
