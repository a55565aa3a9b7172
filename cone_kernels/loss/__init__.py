"""Losses on the geometry of sentence vectors: their mean cosine, IsoScore*, uniformity and alignment."""

from cone_kernels.loss.isoscore import isoscore_loss as isoscore_loss
from cone_kernels.loss.isotropy import isotropy_loss as isotropy_loss
from cone_kernels.loss.uniformity import alignment_loss as alignment_loss
from cone_kernels.loss.uniformity import uniformity_loss as uniformity_loss
