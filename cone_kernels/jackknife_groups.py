"""Which jackknife group a sentence is in: neighbours in the corpus are alike, and so are together."""

from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels.sums import GROUPS

# Stretches of 1, 2, 4 and 8 sentences begin the corpus, so that a small one too fills many groups; the rest are of 16.
_STRETCHES = 16  # of each length
_LENGTHS = (1, 2, 4, 8, 16)


def jackknife_groups(sentence_ids: Tensor) -> Tensor:
    """The groups, in [0, 64), of sentences with these indices in the corpus.

    The corpus is cut into stretches, the first 16 of one sentence, 16 each of 2, 4 and 8, and from sentence 240 on all
    of 16; stretch s is in group s mod 64. A sentence by sentence deal would put what belongs together, a premise and
    its hypotheses or the sentences of a document, into different groups, as if it were independent, and the standard
    error would come out too small (on SNLI by a quarter). Of sentences in random order both give the same error.

    Args:
        sentence_ids: int64 of any shape, 0 or more.

    Example:
        >>> jackknife_groups(torch.tensor([0, 1, 15, 16, 17, 18, 240, 255, 256]))
        tensor([ 0,  1, 15, 16, 16, 17,  0,  0,  1])
    """
    # Counted from 16 on, stretches of length 2^k are those of [16 * 2^k, 32 * 2^k): shifted by k they count up by one.
    shifted = sentence_ids + _STRETCHES
    doublings = sum((shifted >= _STRETCHES * length).to(torch.int64) for length in _LENGTHS[1:])
    return (_STRETCHES * doublings + (shifted >> doublings) - _STRETCHES) % GROUPS
